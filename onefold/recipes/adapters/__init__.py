"""Teaching large models with little memory, or with their answers alone."""
