"""Text to token ids and back: tokenizers trained here, and those that come with published models."""
