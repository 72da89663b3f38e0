"""What makes runs: sensors, schedules and the jobs they start."""
