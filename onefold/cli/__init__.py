"""The command line: verbs that translate what was typed; what they do lives below."""
