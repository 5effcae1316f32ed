"""Serving a model: an OpenAI-compatible HTTP API with a chat page, and a chat in the terminal."""
