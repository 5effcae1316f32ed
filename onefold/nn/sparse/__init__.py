"""Layers of experts, of which each token sees few."""
