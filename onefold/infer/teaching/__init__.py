"""Models that write training data for others: loaded here, or reached as a service."""
