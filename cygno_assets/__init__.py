"""CYGNO's live camera images and its simulated training set as Dagster data assets.

Importing this package costs nothing: what is heavy is imported where it is used.
"""

from cygno_assets.loading import load_events, load_training

__all__ = ["load_events", "load_training"]
