"""State spaces: filters whose memory does not grow."""
