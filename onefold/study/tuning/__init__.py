"""Searching without gradients."""
