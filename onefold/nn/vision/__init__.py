"""Blocks of picture models."""
