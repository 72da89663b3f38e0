"""Announcements that the inbox lost before they were read: what the sensor counted, and since when.

The sensor `daq_events` counts in its cursor, without a time. When a count has grown is told by the
evaluations of the check that nothing was lost, each of which keeps the counts that it saw.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dagster import AssetCheckKey
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from cygno_assets.names import ACCOUNTED, ANNOUNCEMENTS
from cygno_assets.records.cursors import counted_by_sensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster import DagsterInstance

NOTICED = "loss_noticed"
"""Metadata of the check: when a count last grew, in seconds since 1970."""
_SAID_FOR_S = 86_400.0
_EVALUATED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}

MEANINGS: dict[str, str] = {
    "aged_out": "messages left the inbox, for age or size, before they were read",
    "recreated": "times the inbox's stream was created anew; what was not read of it is lost",
    "beyond_end": "times the inbox ended before what was read of it; what came between is lost",
}
"""What the sensor counts, by its cursor's names."""


@dataclass(frozen=True)
class Losses:
    """What was lost before it was read.

    Attributes:
        counts: by the names of MEANINGS; ever since the sensor's cursor was set.
        noticed: when one of them last grew, in seconds since 1970; None if none ever did.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    noticed: float | None = None

    @property
    def recent(self) -> bool:
        """Whether a loss was noticed within the last day: nobody can mend it, but must know."""
        return self.noticed is not None and time.time() - self.noticed < _SAID_FOR_S

    def __str__(self) -> str:
        """In words."""
        found = [(count, MEANINGS[name]) for name, count in self.counts.items() if count]
        return "; ".join(f"{count} {meaning}" for count, meaning in found)


def losses(instance: DagsterInstance) -> Losses:
    """What the sensor has counted, and when that last grew.

    Raises:
        ValueError: the sensor's cursor is damaged.
    """
    counts = counted_by_sensor(instance, MEANINGS)
    if not any(counts.values()):
        return Losses(counts)
    before = _evaluated(instance)
    grew = any(count > before.get(name, 0) for name, count in counts.items())
    return Losses(counts, time.time() if grew else before.get(NOTICED))


def _evaluated(instance: DagsterInstance) -> dict[str, Any]:
    """Metadata of the check's newest evaluation; the one under way has none yet."""
    records = instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(ANNOUNCEMENTS, ACCOUNTED), limit=1, status=_EVALUATED
    )
    event = records[0].event if records else None
    if event is None or event.dagster_event is None:
        return {}
    metadata = event.dagster_event.asset_check_evaluation_data.metadata
    return {name: item.value for name, item in metadata.items()}
