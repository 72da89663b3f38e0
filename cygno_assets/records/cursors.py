"""What sensors remember, as Dagster keeps it: how far the inbox is read, what is to be made again.

Here belongs reading their cursors; what a sensor does with its own is in automation/.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dagster._core.scheduler.instigation import InstigatorStatus

from cygno_assets.names import DAQ_EVENTS, FAILED_EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster import DagsterInstance


def read_by_sensor(instance: DagsterInstance, stream: str) -> int:
    """The last stream sequence that the sensor has read; 0 if it has read none of this stream.

    Args:
        instance: Dagster's.
        stream: creation time of the inbox's stream.
    """
    cursor = _cursor(instance, DAQ_EVENTS)
    return int(cursor["sequence"]) if cursor.get("stream") == stream else 0


def waiting_to_be_made_again(instance: DagsterInstance) -> Mapping[str, int]:
    """Events whose failure may pass, with their announcement's stream sequence, 0 if not known.

    None while the sensor is switched off, for then they wait for nothing.
    """
    waiting = _cursor(instance, FAILED_EVENTS, only_if_on=True).get("waiting", {})
    return {event: int(fields.get("sequence", 0)) for event, fields in waiting.items()}


def passed_over(instance: DagsterInstance) -> Mapping[str, int]:
    """Events that `daq_events` left to their run or retry; by announcements' stream sequences."""
    passed: Mapping[str, int] = _cursor(instance, DAQ_EVENTS).get("passed_over", {})
    return passed


def _cursor(instance: DagsterInstance, sensor: str, *, only_if_on: bool = False) -> dict[str, Any]:
    """A sensor's cursor; empty before its first tick, or if a person typed a number into it."""
    for state in instance.all_instigator_state():
        if only_if_on and state.status == InstigatorStatus.STOPPED:
            continue
        if state.name == sensor and state.instigator_data is not None:
            text = getattr(state.instigator_data, "cursor", None)
            value = json.loads(text) if text else {}
            return value if isinstance(value, dict) else {}
    return {}
