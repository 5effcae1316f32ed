"""Word vectors, which are trained by loops of their own."""
