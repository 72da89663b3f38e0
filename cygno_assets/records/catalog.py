"""What is new of events in Dagster's event log, as rows of the event catalogue.

Here belong reading on in the log, finding the day an event belongs to, and taking its row from
the metadata of its assets. How rows are joined and kept is storage/event_tables.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from dagster import AssetRecordsFilter, DagsterEventType, RunsFilter, RunStatusChangeRecordsFilter

from cygno_assets.daq.announcement import NotAnEventError, is_event_id, parse_announcement
from cygno_assets.names import (
    EVENT_CATALOG,
    PARTITION_TAG,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
)
from cygno_assets.partitions import FIRST_EVENT_DAY
from cygno_assets.records.history import failed_for_good, failure_kind, makes_event, reason_of
from cygno_assets.records.made import Made, made_since, newest_of
from cygno_assets.storage import event_tables
from cygno_assets.storage.event_tables import EVENT_COLUMNS, FAILED, MATERIALIZED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dagster import DagsterInstance, DagsterRun
    from upath import UPath

    from cygno_assets.daq.inbox import Inbox
    from cygno_assets.settings import Settings

READ_TO = "read_to"
"""Of a day's metadata and of its table's `attrs`: the place in Dagster's event log up to which it
has been read for that day."""
_PAGE = 1000
_TIMES = ("acquired", "announced", "downloaded")
_OF_IMAGE = (
    *("source", "stream_sequence", "size_bytes", "md5", "mean_adu", "sd_adu", "min_adu"),
    *("max_adu", "column_sd_adu", "hottest_column", "hottest_column_excess_adu"),
    *("brightest_adu", "brightest_row", "brightest_column", "pixel_counts"),
)
_OF_TENSOR = ("clipped_low_share", "clipped_high_share", "spec_hash", "latency_s")
_AHEAD = timedelta(days=1)
"""Announcements of later times are refused (daq/announcement.py): what was made earlier than this
before a day is of no event of that day."""


@dataclass(frozen=True)
class Failed:
    """A run that failed and that nothing runs again by itself.

    Attributes:
        run: which.
        storage_id: of its failure, in Dagster's event log.
        timestamp: of its failure, in seconds since 1970.
        created: when the run was created.
    """

    run: DagsterRun
    storage_id: int
    timestamp: float
    created: datetime


@dataclass(frozen=True)
class Entry:
    """What is new of one event: that it was made, or that it failed.

    Attributes:
        event_id: which.
        image: its newest materialization of `raw_image`, if any is known.
        tensor: of `preprocessed_tensor`, if one is new.
        failed: its newest failure, if one is new.
        announced: by its newest announcement, where that had to be asked for.
        day: that it belongs to, in UTC.
    """

    event_id: str
    image: Made | None
    tensor: Made | None
    failed: Failed | None
    announced: Mapping[str, Any]
    day: date

    def row(self, instance: DagsterInstance) -> event_tables.Row:
        """As a row of the catalogue; a tensor outweighs a failure."""
        image = {} if self.image is None else self.image.metadata
        row: event_tables.Row = dict.fromkeys(column.name for column in EVENT_COLUMNS)
        row |= {"event_id": self.event_id, **self.announced}
        row |= {label: image[label] for label in _OF_IMAGE if label in image}
        row |= {label: _time(image[label]) for label in _TIMES if label in image}
        row["image_path"] = image.get("path")
        if self.tensor is not None:
            made = self.tensor
            row |= {label: made.metadata.get(label) for label in _OF_TENSOR}
            return row | {
                "status": MATERIALIZED,
                "materialized": _time(made.timestamp),
                "tensor_path": made.metadata.get("path"),
                "run_id": made.run_id,
                "log_id": made.storage_id,
            }
        assert self.failed is not None, "an entry is of one or the other"  # noqa: S101 – for mypy
        run = self.failed.run
        return row | {
            "status": FAILED,
            "failure_kind": failure_kind(run),
            "failure_reason": reason_of(instance, run),
            "run_id": run.run_id,
            "log_id": self.failed.storage_id,
        }


@dataclass(frozen=True)
class News:
    """What Dagster's event log has of events between two places.

    Attributes:
        read_to: the place up to which it was read.
        images: newest materializations of `raw_image`, by event.
        tensors: newest materializations of `preprocessed_tensor`, by event.
        failures: newest failures, by event.
    """

    read_to: int
    images: Mapping[str, Made]
    tensors: Mapping[str, Made]
    failures: Mapping[str, Failed]


def recorded_place(instance: DagsterInstance, day: date) -> int | None:
    """The place in Dagster's event log up to which a day was read; None if it never was."""
    page = instance.fetch_materializations(
        AssetRecordsFilter(EVENT_CATALOG, asset_partitions=[day.isoformat()]), limit=1
    )
    for record in page.records:
        if record.asset_materialization is not None:
            place = record.asset_materialization.metadata[READ_TO].value
            return place if isinstance(place, int) else None
    return None


def read_news(
    instance: DagsterInstance, read_from: int, *, day: date | None = None, limit: int | None = None
) -> News:
    """Reads on in the event log.

    Args:
        instance: Dagster's.
        read_from: the place already read to; 0 for the beginning.
        day: leave out what is too old to be of this day.
        limit: read only so far that there are so many tensors.
    """
    # First: what comes while the rest is read is new the next time.
    read_to = instance.event_log_storage.get_maximum_record_id() or 0
    since = None
    if day is not None and day > FIRST_EVENT_DAY and read_from == 0:
        since = (datetime.combine(day, datetime.min.time(), UTC) - _AHEAD).timestamp()
    made = made_since(instance, PREPROCESSED_TENSOR, storage_id=read_from, since=since)
    tensors = list(islice(takewhile(lambda one: one.storage_id <= read_to, made), limit))
    if tensors and len(tensors) == limit:
        read_to = tensors[-1].storage_id
    made = made_since(instance, RAW_IMAGE, storage_id=read_from, since=since)
    images = takewhile(lambda one: one.storage_id <= read_to, made)
    return News(
        read_to=max(read_from, read_to),
        images={one.event_id: one for one in images},
        tensors={one.event_id: one for one in tensors},
        failures={
            failed.run.tags[PARTITION_TAG]: failed
            for failed in sorted(
                _failures(instance, read_from, read_to, since), key=lambda one: one.storage_id
            )
        },
    )


def entries(
    instance: DagsterInstance, inbox: Inbox, root: UPath, settings: Settings, news: News
) -> list[Entry]:
    """What is new of each event, with its day.

    The day is that of a row the event already has; else the one it was acquired in, by its image's
    metadata or its announcement in the inbox; else the one its run was created in. No day is later
    than the entry in the log, nor before the first partition.

    Args:
        instance: Dagster's.
        inbox: asked for events that left no image.
        root: of the stored files.
        settings: by which announcements are read.
        news: of `read_news`.

    Raises:
        InboxUnavailableError: it does not answer, and had to be asked.
        ValueError: a file of the catalogue is damaged.
    """
    events = {*news.tensors, *news.failures}
    images = {event: news.images[event] for event in events & news.images.keys()}
    images |= newest_of(instance, RAW_IMAGE, events - images.keys())
    # Fetched by its announcement, so this says when it was acquired first. Of what was made again
    # from a stored image, the announcement may be another one, or gone.
    first_hand = {
        event
        for event, image in images.items()
        if {"downloaded", "acquired"} <= image.metadata.keys()
    }
    held = event_tables.days_of(root, events - first_hand)
    unknown = sorted(
        event
        for event in events - held.keys()
        if event not in images or "acquired" not in images[event].metadata
    )
    announced = _announced(inbox, settings, unknown) if unknown else {}
    found = []
    for event in sorted(events):
        entry = Entry(
            event,
            images.get(event),
            news.tensors.get(event),
            news.failures.get(event),
            announced.get(event, {}),
            held.get(event, FIRST_EVENT_DAY),
        )
        found.append(entry if event in held else replace(entry, day=_day(entry)))
    return found


def _day(entry: Entry) -> date:
    newest = max(one.timestamp for one in (entry.tensor, entry.failed) if one is not None)
    acquired = entry.announced.get("acquired")
    if acquired is None and entry.image is not None and "acquired" in entry.image.metadata:
        acquired = _time(entry.image.metadata["acquired"])
    if acquired is None:
        acquired = _time(newest) if entry.failed is None else entry.failed.created
    return max(FIRST_EVENT_DAY, min(acquired, _time(newest)).astimezone(UTC).date())


def _announced(inbox: Inbox, settings: Settings, events: list[str]) -> dict[str, Mapping[str, Any]]:
    """What the newest announcements say of these events."""
    timezone = ZoneInfo(settings.daq_timezone)
    known: dict[str, Mapping[str, Any]] = {}
    for event, message in inbox.newest_announcements(filter(is_event_id, events)).items():
        try:
            announcement = parse_announcement(
                message.payload, timezone=timezone, names_without_md5=settings.names_without_md5
            )
        except NotAnEventError:  # recorded under other settings
            continue
        known[event] = {
            "acquired": announcement.acquired.astimezone(UTC),
            "announced": message.received,
            "source": announcement.source,
            "stream_sequence": message.sequence,
        }
    return known


def _failures(
    instance: DagsterInstance, read_from: int, read_to: int, since: float | None
) -> Iterator[Failed]:
    for kind in (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED):
        after = read_from
        while True:
            page = instance.fetch_run_status_changes(
                RunStatusChangeRecordsFilter(
                    kind,
                    after_storage_id=after,
                    before_storage_id=read_to + 1,
                    after_timestamp=since,
                ),
                limit=_PAGE,
                ascending=True,
            )
            records = page.records
            ids = [record.run_id for record in records]
            runs = instance.get_run_records(RunsFilter(run_ids=ids)) if ids else []
            known = {run.dagster_run.run_id: run for run in runs}
            for record in records:
                of = known.get(record.run_id)  # None: pruned
                if of is not None and _failed_event(of.dagster_run):
                    yield Failed(
                        of.dagster_run, record.storage_id, record.timestamp, of.create_timestamp
                    )
            if not page.has_more:
                break
            after = records[-1].storage_id


def _failed_event(run: DagsterRun) -> bool:
    return makes_event(run) and PARTITION_TAG in run.tags and failed_for_good(run)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
