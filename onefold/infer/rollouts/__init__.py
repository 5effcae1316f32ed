"""Training data that the model being trained writes itself, and what it is worth."""
