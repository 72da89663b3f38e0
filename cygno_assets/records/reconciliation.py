"""Comparing what the inbox holds, what ran, what is materialized and what is stored.

Here belongs what is a difference and why; what is done about it is the caller's. Events that the
sensor has not read yet, and those under way, are no difference.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dagster import DagsterRunStatus, RunsFilter

from cygno_assets.names import PARTITION_TAG, PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.partitions import daq_event_partitions
from cygno_assets.records.cursors import read_by_sensor
from cygno_assets.records.history import (
    events_of,
    failure_kind,
    may_pass,
    retried_by_dagster,
    unfinished_runs,
)
from cygno_assets.storage.event_tables import FAILED, states_of
from cygno_assets.storage.locations import file_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dagster import DagsterInstance, DagsterRun
    from upath import UPath

    from cygno_assets.daq.inbox import Inbox

_RUNS_AT_ONCE = 500
What = Literal["never ran", "failed", "no record", "no image", "no tensor"]

MEANINGS: dict[What, str] = {
    "never ran": "announced and read, but no run of it is known",
    "failed": "its last run failed, and nothing runs it again by itself",
    "no record": "its tensor is stored, but Dagster knows of no materialization",
    "no image": "its tensor is materialized, but its image is not stored",
    "no tensor": "its tensor is materialized, but not stored",
}


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
        """Whether making the event again may mend it."""
        return self.what != "failed"


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
    """

    announced: int
    waiting: int
    rejected: int
    running: int
    materialized: int
    differences: Sequence[Difference] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many events there are of each difference."""
        found = Counter(difference.what for difference in self.differences)
        return {str(what): found[what] for what in MEANINGS}

    def failures(self) -> dict[str, int]:
        """How many failed events there are of each kind."""
        failed = (one.detail for one in self.differences if one.what == "failed")
        return dict(sorted(Counter(failed).items()))


def reconcile(instance: DagsterInstance, inbox: Inbox, root: UPath) -> Reconciliation:
    """Compares them all.

    Args:
        instance: Dagster's.
        inbox: of announcements.
        root: of the stored files.

    Raises:
        InboxUnavailableError: it does not answer.
    """
    state = inbox.state()
    # In this order: what moves on meanwhile is found further on the road, never nowhere.
    read_to = read_by_sensor(instance, state.created)
    announced, rejected = inbox.announced_until(read_to)
    in_inbox = set(announced)
    running = events_of(unfinished_runs(instance))
    failed, passing = _failures(instance, announced)
    made = set(instance.get_materialized_partitions(PREPROCESSED_TENSOR))
    images, tensors = (
        file_names(root.joinpath(*key.path)).keys() for key in (RAW_IMAGE, PREPROCESSED_TENSOR)
    )
    busy = running | passing
    # What was pruned of Dagster's history has no partition any more, but a row in the catalogue.
    partitions = instance.get_dynamic_partitions(str(daq_event_partitions.name))
    pruned = states_of(root, (in_inbox | tensors) - made - busy - failed.keys() - {*partitions})
    differences: list[Difference] = []
    for event in [*announced, *sorted((made | tensors) - in_inbox)]:
        if event in busy:
            continue
        if event in pruned:
            status, kind = pruned[event]
            if status == FAILED:
                differences.append(Difference(event, "failed", kind or "failure"))
            elif event not in tensors:
                differences.append(_of(event, "no tensor"))
        elif event not in made:
            if event in tensors:
                differences.append(_of(event, "no record"))
            elif event in failed:
                differences.append(Difference(event, "failed", failed[event]))
            else:
                differences.append(_of(event, "never ran"))
        elif event not in tensors:
            differences.append(_of(event, "no tensor"))
        elif event not in images:
            differences.append(_of(event, "no image"))
    return Reconciliation(
        announced=len(announced),
        waiting=state.last_sequence - read_to,
        rejected=rejected,
        running=len(busy & in_inbox),
        materialized=len(made),
        differences=differences,
    )


def _of(event: str, what: What) -> Difference:
    return Difference(event, what, MEANINGS[what])


def _failures(instance: DagsterInstance, events: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Of events that failed: the kind of those that nothing runs again; and which are run again."""
    failed: dict[str, str] = {}
    passing: set[str] = set()
    for run in _failed_runs(instance, list(events)):  # the oldest first: the newest has its say
        event = run.tags[PARTITION_TAG]
        passing.discard(event)
        failed.pop(event, None)
        if retried_by_dagster(run) or may_pass(run):
            passing.add(event)
        else:
            failed[event] = failure_kind(run)
    return failed, passing


def _failed_runs(instance: DagsterInstance, events: Sequence[str]) -> list[DagsterRun]:
    runs: list[DagsterRun] = []
    for first in range(0, len(events), _RUNS_AT_ONCE):
        wanted = RunsFilter(
            tags={PARTITION_TAG: events[first : first + _RUNS_AT_ONCE]},
            statuses=[DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED],
        )
        runs += reversed(list(instance.get_runs(wanted)))
    return runs
