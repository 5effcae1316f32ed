"""Using a model: one generate loop for all, sampling, beam search, evaluation, and what `onefold.load` returns."""
