"""Text: documents, tokenizers, plans of which tokens lie in which row, and what is made of them for training."""
