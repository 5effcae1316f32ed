"""Published formats of picture models: Hugging Face folders and timm's, read and written by tables of names."""
