"""Texts that belong together: one to read and one to write, or two that mean the same."""
