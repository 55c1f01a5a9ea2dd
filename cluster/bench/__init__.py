"""The load generator: drives any OpenAI-compatible server and says how fast it answers."""
