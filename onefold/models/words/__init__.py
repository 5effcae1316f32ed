"""Word vectors as models."""
