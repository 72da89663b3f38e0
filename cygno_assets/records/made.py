"""What was made of events, as Dagster's event log has it: one materialization after the other.

Here belongs reading it in order, forwards or from the newest back, and as plain values; what is
concluded from it is the callers'.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dagster import AssetRecordsFilter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from dagster import AssetKey, DagsterInstance, EventLogRecord

_PAGE = 1000
_EVENTS_AT_ONCE = 500
_VERSION_TAG = "dagster/data_version"


@dataclass(frozen=True)
class Made:
    """One materialization of an event's asset.

    Attributes:
        event_id: the partition.
        storage_id: its place in Dagster's event log; later ones are larger.
        run_id: of the run that made it.
        timestamp: when, in seconds since 1970.
        metadata: its values by label; of a time, seconds since 1970.
        version: its data version.
    """

    event_id: str
    storage_id: int
    run_id: str
    timestamp: float
    metadata: Mapping[str, Any]
    version: str | None = None


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
        yield from filter(None, map(_made, page.records))
        if not page.has_more:
            return
        after = page.records[-1].storage_id


def newest_made(
    instance: DagsterInstance,
    asset: AssetKey,
    limit: int,
    *,
    events: Collection[str] | None = None,
    since: float | None = None,
) -> list[Made]:
    """Reads back from the newest materialization of an event's asset; each event counts once.

    Args:
        instance: Dagster's.
        asset: `raw_image` or `preprocessed_tensor`.
        limit: so many events at the most.
        events: only of these; some thousands at the most.
        since: only those after this time, in seconds since 1970.

    Returns:
        The newest materialization of each event, the newest first.
    """
    found: dict[str, Made] = {}
    cursor: str | None = None
    # Asked for a time too, and with none since then, the database would go through all of them.
    wanted = AssetRecordsFilter(
        asset_key=asset, asset_partitions=None if events is None else list(events)
    )
    # The last ones wanted may lie far back, or nowhere: not a row at a time.
    at_once = min(_PAGE, limit) if events is None else _PAGE
    while len(found) < limit:
        page = instance.fetch_materializations(wanted, limit=at_once, cursor=cursor)
        for made in filter(None, map(_made, page.records)):
            if since is not None and made.timestamp <= since:
                return list(found.values())
            found.setdefault(made.event_id, made)
            if len(found) == limit:
                return list(found.values())
        if not page.has_more:
            break
        cursor = page.cursor
    return list(found.values())


def newest_of(
    instance: DagsterInstance, asset: AssetKey, events: Collection[str]
) -> dict[str, Made]:
    """The newest materialization of each of these events, as far as any is known."""
    wanted = sorted(events)
    parts = [wanted[i : i + _EVENTS_AT_ONCE] for i in range(0, len(wanted), _EVENTS_AT_ONCE)]
    return {
        made.event_id: made
        for part in parts
        for made in newest_made(instance, asset, len(part), events=part)
    }


def _made(record: EventLogRecord) -> Made | None:
    materialization = record.asset_materialization
    if materialization is None or record.partition_key is None:
        return None
    return Made(
        event_id=record.partition_key,
        storage_id=record.storage_id,
        run_id=record.run_id,
        timestamp=record.timestamp,
        metadata={label: _plain(entry.value) for label, entry in materialization.metadata.items()},
        version=(materialization.tags or {}).get(_VERSION_TAG),
    )


def _plain(value: object) -> object:
    return value.timestamp() if isinstance(value, datetime) else value
