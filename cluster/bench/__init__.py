"""The load generator: measures the speed of any OpenAI-compatible server."""
