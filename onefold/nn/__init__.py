"""The blocks that every model is made of: attention, positions, norms, feed-forward layers."""
