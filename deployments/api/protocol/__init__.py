"""What clients send and receive: a module for each API, and how bodies are decoded. One error shape is shared."""
