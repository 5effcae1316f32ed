"""What is minimised: each objective turns (model, batch, step) into sums and their counts."""
