"""The published families: their config.json, and which of their tensors is which of ours."""
