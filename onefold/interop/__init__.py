"""What lies on disk: our own folders, and the formats that others publish models in."""
