"""What sensors remember, as Dagster keeps it: how far the inbox is read, what is to be made again.

Here belongs reading their cursors; what a sensor does with its own is in automation/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster._core.scheduler.instigation import InstigatorStatus

from cygno_assets.names import DAQ_EVENTS, FAILED_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dagster import DagsterInstance


@dataclass(frozen=True)
class Retries:
    """What the sensor `failed_events` has read, and is to make again.

    Attributes:
        read_to: place in Dagster's event log of the last failure it read; None before its first
            tick.
        waiting: events whose failure may pass, with their announcement's stream sequence, 0 if
            that is not known.
    """

    read_to: int | None
    waiting: Mapping[str, int]


def read_by_sensor(instance: DagsterInstance, stream: str) -> int:
    """The last stream sequence that the sensor has read; 0 if it has read none of this stream.

    Args:
        instance: Dagster's.
        stream: creation time of the inbox's stream.

    Raises:
        ValueError: the sensor's cursor is damaged.
    """
    cursor = _cursor(instance, DAQ_EVENTS)
    return _whole(cursor, "sequence") if cursor.get("stream") == stream else 0


def counted_by_sensor(instance: DagsterInstance, names: Iterable[str]) -> dict[str, int]:
    """What the sensor `daq_events` has counted under these names; 0 of what it has not.

    Raises:
        ValueError: the sensor's cursor is damaged.
    """
    cursor = _cursor(instance, DAQ_EVENTS)
    return {name: _whole(cursor, name) for name in names}


def retries(instance: DagsterInstance) -> Retries:
    """How far the sensor `failed_events` is, in one look; nowhere while it is switched off.

    Raises:
        ValueError: the sensor's cursor is damaged.
    """
    cursor = _cursor(instance, FAILED_EVENTS, only_if_on=True)
    try:
        waiting = {
            event: _whole(fields, "sequence") for event, fields in cursor.get("waiting", {}).items()
        }
    except AttributeError:
        raise _damaged(FAILED_EVENTS, cursor) from None
    read_to = None if cursor.get("storage_id") is None else _whole(cursor, "storage_id")
    return Retries(read_to, waiting)


def waiting_to_be_made_again(instance: DagsterInstance) -> Mapping[str, int]:
    """Events whose failure may pass, with their announcement's stream sequence, 0 if not known."""
    return retries(instance).waiting


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
            try:
                value = json.loads(text) if text else {}
            except ValueError:
                raise _damaged(sensor, text) from None
            return value if isinstance(value, dict) else {}
    return {}


def _whole(cursor: Mapping[str, Any], name: str) -> int:
    value = cursor.get(name, 0)
    if isinstance(value, int):
        return value
    raise ValueError(f"a sensor's cursor is damaged: {name} is {str(value)[:80]!r}")


def _damaged(sensor: str, found: object) -> ValueError:
    return ValueError(
        f"the cursor of the sensor {sensor} is damaged: {str(found)[:80]!r}; set it in the web UI"
    )
