"""Comparing what the inbox holds, what ran, what is materialized and what is stored.

Here belongs what is a difference and why; what is done about it is the caller's. Events that the
sensor has not read yet, and those under way, are no difference.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from dagster import DagsterRunStatus, RunsFilter

from cygno_assets.names import PARTITION_TAG, PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.partitions import daq_event_partitions
from cygno_assets.records.cursors import Retries, passed_over, read_by_sensor, retries
from cygno_assets.records.history import (
    RETRIED_WITHIN,
    about_to_be_retried,
    events_of,
    failed_for_good,
    failure_kind,
    failures_after,
    makes_event,
    may_pass,
    retried_by_dagster,
    unfinished_runs,
)
from cygno_assets.records.losses import Losses, losses
from cygno_assets.records.made import newest_of
from cygno_assets.storage.event_tables import FAILED, states_of
from cygno_assets.storage.locations import file_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dagster import DagsterInstance, RunRecord
    from upath import UPath

    from cygno_assets.daq.inbox import Inbox

_AT_ONCE = 500
What = Literal[
    "never ran",
    "failed",
    "failed long ago",
    "forgotten",
    "no record",
    "no image",
    "no tensor",
    "only an image",
    "damaged image",
    "damaged tensor",
]

MEANINGS: dict[What, str] = {
    "never ran": "announced and read, but no run of it is known",
    "failed": "its last run failed, and nothing runs it again by itself",
    "failed long ago": "the same, but neither inbox nor Dagster know of it any more: the catalogue "
    "does",
    "forgotten": "its last run failed on what may pass, but no sensor is going to make it again",
    "no record": "its tensor is stored, but Dagster knows of no materialization",
    "no image": "its tensor is materialized, but its image is not stored",
    "no tensor": "its tensor is materialized, but not stored",
    "only an image": "its image is stored, but no tensor is, and no announcement or failure known",
    # These two are found by contents.py.
    "damaged image": "the stored bytes are not what the md5 in its name, or of its record, says",
    "damaged tensor": "the stored array is none, or not the one that was materialized",
}
_MADE: frozenset[What] = frozenset({"no image", "no tensor", "damaged image", "damaged tensor"})
FAILURES: frozenset[What] = frozenset({"failed", "failed long ago", "forgotten"})
"""Differences whose detail is the kind of a failure."""


@dataclass(frozen=True)
class Difference:
    """One event of which not everything agrees.

    Attributes:
        event_id: which.
        what: is the matter.
        detail: why, in words; of a failure its kind.
    """

    event_id: str
    what: What
    detail: str

    @property
    def mendable(self) -> bool:
        """Whether making the event again may mend it; what failed for good would fail again."""
        return self.what not in {"failed", "failed long ago"}


@dataclass(frozen=True)
class Reconciliation:
    """What was compared, and what does not agree.

    Attributes:
        announced: events in the inbox that the sensor has read.
        waiting: messages in the inbox that it has not.
        rejected: messages in the inbox that could not be events.
        running: events under way, or to be made again after a failure that may pass.
        materialized: events with a tensor, as Dagster knows; older ones the catalogue holds.
        differences: the rest.
        losses: what left the inbox before it was read, of which nobody knows the events.
    """

    announced: int
    waiting: int
    rejected: int
    running: int
    materialized: int
    differences: Sequence[Difference] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)

    def counts(self) -> dict[str, int]:
        """How many events there are of each difference that there is."""
        found = Counter(difference.what for difference in self.differences)
        return {str(what): found[what] for what in MEANINGS if what in found}

    def failures(self) -> dict[str, int]:
        """How many events there are of each kind of failure, also those of long ago."""
        failed = (one.detail for one in self.differences if one.what in FAILURES)
        return dict(sorted(Counter(failed).items()))


def reconcile(instance: DagsterInstance, inbox: Inbox, root: UPath) -> Reconciliation:
    """Compares them all.

    Beside a running system what is requested, made or pruned while one looks is seen half.
    So there are two looks if the first finds something to mend, and only what both see is said.

    Args:
        instance: Dagster's.
        inbox: of announcements.
        root: of the stored files.

    Raises:
        InboxUnavailableError: it does not answer.
        ValueError: a table of the catalogue, or a sensor's cursor, is damaged.
    """
    first = _look(instance, inbox, root)
    if not any(one.mendable for one in first.differences):
        return first
    seen = {(one.event_id, one.what) for one in first.differences}
    found = _look(instance, inbox, root)
    stays = [d for d in found.differences if not d.mendable or (d.event_id, d.what) in seen]
    return replace(found, differences=stays)


def still_to_make(
    instance: DagsterInstance, differences: Sequence[Difference]
) -> Sequence[Difference]:
    """Those of them whose event nothing makes now, nor has made since they were compared.

    Args:
        instance: Dagster's.
        differences: as `reconcile` has found them.
    """
    # In this order: what ends in between is found materialized.
    busy = events_of([*unfinished_runs(instance), *about_to_be_retried(instance)])
    unmade = [one.event_id for one in differences if one.what not in _MADE]
    made = newest_of(instance, PREPROCESSED_TENSOR, unmade).keys()
    return [one for one in differences if one.event_id not in busy | made]


def _look(instance: DagsterInstance, inbox: Inbox, root: UPath) -> Reconciliation:
    state = inbox.state()
    # In this order: what moves on meanwhile is found further on the road, never nowhere. Dagster
    # stores a sensor's cursor after the runs that it requested.
    read_to = read_by_sensor(instance, state.created)
    announced, rejected = inbox.announced_until(read_to)
    again, passed = retries(instance), passed_over(instance)
    running = events_of(unfinished_runs(instance))
    failed, passing = _failures(instance, again)
    made = set(instance.get_materialized_partitions(PREPROCESSED_TENSOR))
    images, tensors = (
        file_names(root.joinpath(*key.path)).keys() for key in (RAW_IMAGE, PREPROCESSED_TENSOR)
    )
    in_inbox = set(announced)
    busy = running | passing | (passed.keys() - made)
    # What was pruned of Dagster's history has no partition any more, but a row in the catalogue.
    partitions = instance.get_dynamic_partitions(str(daq_event_partitions.name))
    settled = made | busy | failed.keys()
    pruned = states_of(root, (in_inbox | images | tensors) - settled - {*partitions})
    # In the catalogue as failed, but here all the same: its row is older than its tensor.
    long_ago = {e for e, (status, _) in pruned.items() if status == FAILED} - settled - tensors
    others = (made | images | tensors | failed.keys() | long_ago) - in_inbox
    differences: list[Difference] = []
    for event in [*announced, *sorted(others)]:
        if event in busy:
            continue
        if event in made:
            if event not in tensors:
                differences.append(_of(event, "no tensor"))
            elif event not in images:
                differences.append(_of(event, "no image"))
        elif event in failed and event not in tensors:
            differences.append(failed[event])
        elif event in long_ago:
            what: What = "failed" if event in in_inbox else "failed long ago"
            differences.append(Difference(event, what, pruned[event][1] or "failure"))
        elif event in pruned:
            if event not in tensors:
                differences.append(_of(event, "no tensor"))
        elif event in tensors:
            differences.append(_of(event, "no record"))
        else:
            differences.append(_of(event, "never ran" if event in in_inbox else "only an image"))
    return Reconciliation(
        announced=len(announced),
        waiting=state.last_sequence - read_to,
        rejected=rejected,
        running=len(busy & in_inbox),
        materialized=len(made),
        differences=differences,
        losses=losses(instance),
    )


def _of(event: str, what: What) -> Difference:
    return Difference(event, what, MEANINGS[what])


def _failures(instance: DagsterInstance, again: Retries) -> tuple[dict[str, Difference], set[str]]:
    """Of events whose newest failed run stands: those that nothing runs again; those that are."""
    failed: dict[str, Difference] = {}
    passing: set[str] = set()
    unread = _unread(instance, again.read_to)
    for event, record in _newest_failures(instance):
        run = record.dagster_run
        by_sensor = event in again.waiting or (may_pass(run) and run.run_id in unread)
        # First: the sensor may still have it, of the failure before.
        if failed_for_good(run):
            failed[event] = Difference(event, "failed", failure_kind(run))
        elif by_sensor or (retried_by_dagster(run) and _ended_ago(record) < RETRIED_WITHIN):
            passing.add(event)
        else:
            failed[event] = Difference(event, "forgotten", failure_kind(run))
    return failed, passing


def _newest_failures(instance: DagsterInstance) -> Iterable[tuple[str, RunRecord]]:
    """The newest failed or canceled run of each event.

    Asked for by status alone, which has an index: few of all runs ever failed.
    """
    ended_badly = RunsFilter(statuses=[DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED])
    newest: dict[str, RunRecord] = {}
    cursor: str | None = None
    while records := instance.get_run_records(ended_badly, limit=_AT_ONCE, cursor=cursor):
        cursor = records[-1].dagster_run.run_id
        for record in records:
            event = record.dagster_run.tags.get(PARTITION_TAG)
            if event is not None and makes_event(record.dagster_run):
                newest.setdefault(event, record)
    return newest.items()


def _unread(instance: DagsterInstance, read_to: int | None) -> set[str]:
    """Runs whose failure `failed_events` has still to read; before its first tick it reads none."""
    unread: set[str] = set()
    while read_to is not None:
        page = failures_after(instance, read_to, _AT_ONCE).records
        unread |= {record.run_id for record in page}
        read_to = page[-1].storage_id if page else None
    return unread


def _ended_ago(record: RunRecord) -> timedelta:
    """How long ago a run ended."""
    ended = record.end_time or record.update_timestamp.timestamp()
    return timedelta(seconds=time.time() - ended)
