"""The generate loop: sampling, beam search, caches that grow, and matrix products for few rows."""
