"""From files to batches: what text and pictures share (records, sources, order, loader), and a room for each."""
