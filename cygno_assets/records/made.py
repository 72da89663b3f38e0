"""What was made of events, as Dagster's event log has it: one materialization after the other.

Here belongs reading it in order and as plain values; what is concluded from it is the callers'.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dagster import AssetRecordsFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dagster import AssetKey, DagsterInstance, EventLogRecord

_PAGE = 1000


@dataclass(frozen=True)
class Made:
    """One materialization of an event's asset.

    Attributes:
        event_id: the partition.
        storage_id: its place in Dagster's event log; later ones are larger.
        run_id: of the run that made it.
        timestamp: when, in seconds since 1970.
        metadata: its values by label; of a time, seconds since 1970.
    """

    event_id: str
    storage_id: int
    run_id: str
    timestamp: float
    metadata: Mapping[str, Any]


def made_since(
    instance: DagsterInstance, asset: AssetKey, *, storage_id: int = 0, since: float | None = None
) -> Iterator[Made]:
    """Reads on in the materializations of an event's asset, the oldest first.

    Args:
        instance: Dagster's.
        asset: `raw_image` or `preprocessed_tensor`.
        storage_id: of the last one already read; 0 for the beginning.
        since: only those after this time, in seconds since 1970.
    """
    after = storage_id
    while True:
        page = instance.fetch_materializations(
            AssetRecordsFilter(asset_key=asset, after_storage_id=after, after_timestamp=since),
            limit=_PAGE,
            ascending=True,
        )
        yield from _made(page.records)
        if not page.has_more:
            return
        after = page.records[-1].storage_id


def made_lately(
    instance: DagsterInstance, asset: AssetKey, *, since: float, limit: int
) -> list[Made]:
    """The newest materializations of an event's asset, the newest first.

    Args:
        instance: Dagster's.
        asset: `raw_image` or `preprocessed_tensor`.
        since: only those after this time, in seconds since 1970.
        limit: how many at the most; up to 1000.
    """
    # Asked for the time too, and with none since then, the database would go through all of them.
    page = instance.fetch_materializations(asset, limit=limit)
    return [made for made in _made(page.records) if made.timestamp > since]


def _made(records: Iterable[EventLogRecord]) -> Iterator[Made]:
    for record in records:
        materialization = record.asset_materialization
        if materialization is None or record.partition_key is None:
            continue
        yield Made(
            event_id=record.partition_key,
            storage_id=record.storage_id,
            run_id=record.run_id,
            timestamp=record.timestamp,
            metadata={
                label: _plain(entry.value) for label, entry in materialization.metadata.items()
            },
        )


def _plain(value: object) -> object:
    return value.timestamp() if isinstance(value, datetime) else value
