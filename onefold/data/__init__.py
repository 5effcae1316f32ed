"""From files to batches: sources, tokenizer, records, plans, loader, chat."""
