"""Layers that spend more arithmetic on some tokens than on others."""
