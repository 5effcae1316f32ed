"""What everything else stands on: configuration, batches, files, progress, processes, errors."""
