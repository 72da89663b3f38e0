"""What makes one Dagster run per event affordable; named in dagster.yaml and imported by nobody.

Here belong a run launcher and storages that any Dagster project could use. Nothing of this
project's own: no import of it, and no word of it.
"""
