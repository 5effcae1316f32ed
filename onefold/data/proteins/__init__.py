"""Proteins: files of sequences and of structures, their alphabet, training data, and synthetic families."""
