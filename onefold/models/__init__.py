"""Models: blocks stacked, with what goes in and what comes out. They know nothing of files and data."""
