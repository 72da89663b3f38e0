"""Taking out of Dagster's history what the catalogue holds, so that it does not grow for ever.

Here belongs what may go, and how; when, is automation/pruning.py's. An event stays of which the
catalogue knows less than Dagster, and so does every run that made the newest of anything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

from cygno_assets.names import PARTITION_TAG, PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.partitions import daq_event_partitions
from cygno_assets.records.history import makes_event
from cygno_assets.storage.event_tables import days_held, read_day
from cygno_assets.storage.locations import file_names, sweep_half_written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dagster import DagsterInstance, DagsterRun
    from upath import UPath

    from cygno_assets.settings import Settings

T = TypeVar("T")

_EVENTS_AT_ONCE = 100
_RUNS_AT_ONCE = 500
_DAY_S = 86_400.0
_SAY_EVERY_S = 5.0
_HALF_WRITTEN_S = _DAY_S  # more than any writing takes
_MADE = {DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_CHECK_EVALUATION}
_ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class Keep:
    """What stays.

    Attributes:
        since: events made after that, and other runs that ended after it; seconds since 1970.
        events: of the events no more than so many, the newest.
        images_since: raw images of events made after that, and of all in Dagster's history;
            seconds since 1970. None keeps all of them.
    """

    since: float
    events: int
    images_since: float | None = None


@dataclass(frozen=True)
class Plan:
    """What goes.

    Attributes:
        events: whose runs and partition keys go.
        runs: of these events.
        other_runs: of schedules, checks, backfills; each superseded by a newer one.
        images: events whose raw image goes.
        kept_back: events old enough, of which the catalogue knows less than Dagster, or that are
            being made again.
    """

    events: Sequence[str]
    runs: Sequence[str]
    other_runs: Sequence[str]
    images: Sequence[str]
    kept_back: int

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {
            "events": len(self.events),
            "runs": len(self.runs),
            "other_runs": len(self.other_runs),
            "raw_images": len(self.images),
            "events_kept_back": self.kept_back,
        }

    def __str__(self) -> str:
        """In a line."""
        return (
            f"{len(self.events)} events with {len(self.runs)} runs, {len(self.other_runs)} other "
            f"runs, {len(self.images)} raw images; {self.kept_back} events kept back"
        )


def keep_by(settings: Settings, now: float) -> Keep:
    """What the settings keep.

    Args:
        settings: days and numbers.
        now: in seconds since 1970.
    """
    days = settings.raw_image_days
    return Keep(
        since=now - settings.history_days * _DAY_S,
        events=settings.history_events,
        images_since=None if days is None else now - days * _DAY_S,
    )


def plan(instance: DagsterInstance, root: UPath, keep: Keep) -> Plan:
    """Looks what may go, and changes nothing.

    Args:
        instance: Dagster's.
        root: of the stored files.
        keep: what stays.
    """
    known = set(instance.get_dynamic_partitions(str(daq_event_partitions.name)))
    stored = file_names(root.joinpath(*RAW_IMAGE.path)) if keep.images_since is not None else {}
    here: list[tuple[float, str, str]] = []
    aged: set[str] = set()
    for ended, event, run_id in _catalogued(root):
        if event in known:
            here.append((ended, event, run_id))
        if event in stored and keep.images_since is not None and ended < keep.images_since:
            aged.add(event)
    here.sort()
    too_many = max(len(here) - keep.events, 0)
    old = {
        event: run_id
        for place, (ended, event, run_id) in enumerate(here)
        if place < too_many or ended < keep.since
    }
    events: list[str] = []
    runs: list[str] = []
    for event, of_event in _runs_of(instance, list(old)):
        if _is_known(of_event, old[event]):
            events.append(event)
            runs += [run.run_id for run in of_event]
    return Plan(
        events=events,
        runs=runs,
        other_runs=list(_superseded(instance, keep.since)),
        images=sorted(aged - (known - set(events))),
        kept_back=len(old) - len(events),
    )


def prune(
    instance: DagsterInstance, root: UPath, planned: Plan, say: Callable[[str], None]
) -> None:
    """Takes it out: runs with their events, then the partition keys, then the images.

    In this order, so that one that breaks off leaves a partition without runs, which the next one
    takes out, and never a run without its partition. It takes its time; so it looks again, some
    events at a time, and leaves those that have got a run since the plan was made.

    Args:
        instance: Dagster's.
        root: of the stored files.
        planned: by `plan`.
        say: told how far it is, every few seconds.
    """
    name = str(daq_event_partitions.name)
    progress = _Progress(say)
    for run_id in progress.through(planned.other_runs, "other runs"):
        instance.delete_run(run_id)
    foreseen = set(planned.runs)
    left = 0
    for event, runs in progress.through(_runs_of(instance, planned.events), "events"):
        if any(run.run_id not in foreseen or run.status not in _ENDED for run in runs):
            left += 1
            continue
        for run in runs:
            instance.delete_run(run.run_id)
        instance.delete_dynamic_partition(name, event)
    folder = root.joinpath(*RAW_IMAGE.path)
    names = file_names(folder) if planned.images else {}
    for event in progress.through(planned.images, "raw images"):
        # An event that is announced anew becomes a partition before it has a run.
        if event in names and not instance.has_dynamic_partition(name, event):
            folder.joinpath(names[event]).unlink(missing_ok=True)
    if left:
        say(f"{left} events stay, for they are made again")
    if swept := sweep_half_written(root, _HALF_WRITTEN_S):
        say(f"{swept} files that were left half written")


class _Progress:
    """Says how far one is, every few seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = time.monotonic()

    def through(self, items: Iterable[T], what: str) -> Iterator[T]:
        """The items, one after the other."""
        for number, item in enumerate(items):
            if time.monotonic() - self._said > _SAY_EVERY_S:
                self._said = time.monotonic()
                self._say(f"{number} {what}")
            yield item


def _catalogued(root: UPath) -> Iterator[tuple[float, str, str]]:
    """Of each event of the catalogue: when it was made, or acquired if it was not; and its run."""
    for day in days_held(root):
        rows = read_day(root, day, ("event_id", "acquired", "materialized", "run_id"))
        if rows is None:
            continue
        rows = rows.assign(ended=rows["materialized"].fillna(rows["acquired"]))
        rows = rows.dropna(subset=["ended", "run_id"])
        for ended, event, run_id in zip(
            rows["ended"], rows["event_id"], rows["run_id"], strict=True
        ):
            yield ended.timestamp(), event, run_id


def _is_known(runs: Sequence[DagsterRun], catalogued: str) -> bool:
    """Whether the catalogue has what these runs of an event, the newest first, have made."""
    if any(run.status not in _ENDED for run in runs):
        return False
    for run in runs:
        if run.run_id == catalogued:
            return True
        selected = run.asset_selection
        if run.status == DagsterRunStatus.SUCCESS and (
            not selected or PREPROCESSED_TENSOR in selected
        ):
            return False
    return not runs


def _runs_of(
    instance: DagsterInstance, events: Sequence[str]
) -> Iterator[tuple[str, list[DagsterRun]]]:
    """The runs of each event, the newest first."""
    for first in range(0, len(events), _EVENTS_AT_ONCE):
        some = events[first : first + _EVENTS_AT_ONCE]
        runs: dict[str, list[DagsterRun]] = {event: [] for event in some}
        for run in instance.get_runs(RunsFilter(tags={PARTITION_TAG: some})):
            runs[run.tags[PARTITION_TAG]].append(run)
        yield from runs.items()


def _superseded(instance: DagsterInstance, before: float) -> Iterator[str]:
    """Runs of no event that ended before then, and made nothing that is the newest of its kind."""
    cursor: str | None = None
    ended = RunsFilter(statuses=_ENDED, updated_before=datetime.fromtimestamp(before, UTC))
    while runs := instance.get_runs(ended, cursor=cursor, limit=_RUNS_AT_ONCE):
        cursor = runs[-1].run_id
        for run in runs:
            if not makes_event(run) and not _made_the_newest(instance, run):
                yield run.run_id


def _made_the_newest(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Whether the newest materialization, or evaluation of a check, of anything is of this run."""
    for entry in instance.all_logs(run.run_id, of_type=_MADE):
        event = entry.get_dagster_event()
        if event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data.asset_check_key
            latest = instance.get_latest_asset_check_evaluation_record(check)
            newest = latest.run_id if latest else None
        else:
            asset = event.asset_key
            record = asset and instance.get_latest_data_version_record(
                asset, partition_key=event.partition
            )
            newest = record.run_id if record else None
        if newest in {None, run.run_id}:
            return True
    return False
