"""Asset checks: what must be true of the data, shown beside it in the web UI."""
