"""LSTMs that read and write texts."""
