"""Training: one run, one loop, optimizers, schedules, what resuming needs, several processes, estimates."""
