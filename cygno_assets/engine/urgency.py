"""Which runs may wait for others, by their tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster._core.storage.tags import BACKFILL_ID_TAG, PRIORITY_TAG

if TYPE_CHECKING:
    from dagster import DagsterRun


def priority_of(run: DagsterRun) -> int:
    """A run's priority; 0 if it has none, or one that is no number."""
    try:
        return int(run.tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        return 0


def is_background(run: DagsterRun) -> bool:
    """Whether it is a backfill's or has a negative priority: processes of their own do these."""
    return BACKFILL_ID_TAG in run.tags or priority_of(run) < 0
