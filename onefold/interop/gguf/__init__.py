"""GGUF, the one-file format of llama.cpp."""

from onefold.interop.gguf.model import load_gguf, save_gguf

__all__ = ["load_gguf", "save_gguf"]
