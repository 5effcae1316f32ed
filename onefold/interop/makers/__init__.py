"""Checkpoints as their makers keep them."""
