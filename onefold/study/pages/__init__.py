"""What a run looks like: its report, comparisons, and what they are drawn of."""
