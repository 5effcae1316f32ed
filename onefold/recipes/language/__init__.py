"""Models that write on."""
