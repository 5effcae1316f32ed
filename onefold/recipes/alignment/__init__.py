"""From a language model to one that people want."""
