"""Tokenizers beside models, and out of what model files hold."""
