"""Conversations: files and templates, messages to ids, preferences among answers, prompts to be answered."""
