"""Models that read both ways, and what is made of them."""
