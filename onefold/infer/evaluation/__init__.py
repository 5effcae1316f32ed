"""How good a model is, by what is known about its task."""
