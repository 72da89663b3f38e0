"""The training set's archive: where it comes from and how it is read. No Dagster."""
