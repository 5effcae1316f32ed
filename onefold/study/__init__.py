"""Looking at runs: baselines, forecasts, reports, comparisons and checks."""
