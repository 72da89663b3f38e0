"""What dagster.yaml names. Nobody imports it but Dagster, and it knows nothing of events."""
