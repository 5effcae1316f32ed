"""What a step does to parameters: rules, groups, schedules, and when a step is not taken."""
