"""More parameters, longer texts or fewer operations at the same cost."""
