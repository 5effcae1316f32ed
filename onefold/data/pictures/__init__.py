"""Pictures and clips: where they lie, how they are decoded, kept, changed at random and gathered into batches."""
