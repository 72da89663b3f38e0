"""What is known of events afterwards: by Dagster, by the inbox and by the storage, and compared."""
