"""Word vectors on disk, and as a model that learns from few labels."""
