"""Several processes as one: models in shards, sums over all of them."""
