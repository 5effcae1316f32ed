"""Texts and what is known of them: classes, numbers, tags of words, places of answers."""
