"""The wire: announcements, the recorder, the inbox they are kept in, and downloads. No Dagster."""
