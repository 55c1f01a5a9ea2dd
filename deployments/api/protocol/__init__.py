"""What clients send and get, once: a module for each API, the errors they share, and how bodies are read."""
