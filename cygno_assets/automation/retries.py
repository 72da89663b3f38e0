"""The sensor `failed_events`: makes events again whose failure may pass by itself.

Here belongs when. A run says itself if trying again is of no use (FINAL_TAG); all else passes: a
server or a disk that was away, a process that was killed. Short troubles never come here, for they
are retried inside the request and inside the run.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dagster import (
    DagsterInstance,
    DagsterRun,
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cygno_assets.automation.cursors import parsed
from cygno_assets.automation.jobs import live_event_job
from cygno_assets.names import (
    ATTEMPT_TAG,
    DOUBTS_TAG,
    FAILED_EVENTS,
    LIVE_TAG,
    PARTITION_TAG,
    PREPROCESSED_TENSOR,
    SEQUENCE_TAG,
)
from cygno_assets.records.cursors import passed_over
from cygno_assets.records.history import (
    RETRIED_WITHIN,
    attempt_of,
    events_of,
    failures_after,
    may_pass,
    newest_failure,
    retried_by_dagster,
    runs_by_id,
    sequence_of,
    unfinished_runs,
    was_retried,
)
from cygno_assets.records.made import newest_of
from cygno_assets.settings import Settings

_EVERY_S = 5
_FIRST_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 300.0
_FAILURES_AT_ONCE = 1000
_LONG_AGO_S = 3600.0
"""The first events of a new home may have failed before the first tick; older URLs are dead."""


@dataclass(frozen=True)
class Waiting:
    """An event that is to be made again.

    Attributes:
        run_id: of the run that failed.
        due: seconds since 1970 before which it is not, unless it is announced again.
        sequence: of its announcement in the inbox; 0 if that is not known.
        failed: seconds since 1970 at which the run did.
        requested: its run is; until the next tick, which is when that run is there for all to see.
    """

    run_id: str
    due: float
    sequence: int = 0
    failed: float = 0.0
    requested: bool = False


@dataclass
class Cursor:
    """What the sensor remembers.

    Attributes:
        storage_id: of the last failure read; None before the first tick.
        waiting: what is to be made again, by event.
    """

    storage_id: int | None = None
    waiting: dict[str, Waiting] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """Reads what Dagster keeps.

        Raises:
            ValueError: it is no cursor of this sensor.
        """

        def of(value: dict[str, Any]) -> "Cursor":
            waiting = {event: Waiting(**fields) for event, fields in value["waiting"].items()}
            return cls(value["storage_id"], waiting)

        return parsed(text, of) or cls()

    def dump(self) -> str:
        """As Dagster keeps it."""
        return json.dumps(asdict(self))

    def read_failures(self, instance: DagsterInstance) -> None:
        """Reads on in the runs that failed; on the first tick not in those of long ago."""
        if self.storage_id is None:
            since, self.storage_id = time.time() - _LONG_AGO_S, newest_failure(instance)
            failures = failures_after(instance, 0, _FAILURES_AT_ONCE, since=since).records
        else:
            failures = failures_after(instance, self.storage_id, _FAILURES_AT_ONCE).records
        if not failures:
            return
        self.storage_id = failures[-1].storage_id
        runs = runs_by_id(instance, [failure.run_id for failure in failures])
        for failure in failures:
            run = runs.get(failure.run_id)
            if run is not None and may_pass(run):
                pause = min(_FIRST_PAUSE_S * 2 ** attempt_of(run), _LONGEST_PAUSE_S)
                failed = failure.timestamp
                self.waiting[run.tags[PARTITION_TAG]] = Waiting(
                    run.run_id, failed + pause, sequence_of(run), failed
                )


def build_failed_events_sensor(settings: Settings) -> SensorDefinition:
    """The sensor, for these settings."""

    @sensor(
        name=FAILED_EVENTS,
        job=live_event_job,
        minimum_interval_seconds=_EVERY_S,
        default_status=DefaultSensorStatus.RUNNING,
        description="Makes events again whose run failed on something that may pass: after 10 s, "
        f"20 s, … at most {_LONGEST_PAUSE_S:g} s, until their URL has expired; or at once, if they "
        "are announced again. What is of no use to try again stays failed.",
    )
    def failed_events(context: SensorEvaluationContext) -> SensorResult:
        cursor = Cursor.parse(context.cursor)
        for event in [event for event, one in cursor.waiting.items() if one.requested]:
            del cursor.waiting[event]
        cursor.read_failures(context.instance)
        now = time.time()
        # Left to this sensor by the other, for two must not request one event.
        newest = passed_over(context.instance) if cursor.waiting else {}
        due = [
            event
            for event, waiting in cursor.waiting.items()
            if waiting.due <= now or newest.get(event, 0) > waiting.sequence
        ]
        if not due:
            return SensorResult(
                skip_reason=SkipReason(f"{len(cursor.waiting)} events wait to be made again"),
                cursor=cursor.dump(),
            )
        failed = runs_by_id(context.instance, [cursor.waiting[event].run_id for event in due])
        # In this order: what ends in between is found materialized.
        unfinished = unfinished_runs(context.instance)
        running = events_of(unfinished)
        done = newest_of(context.instance, PREPROCESSED_TENSOR, due)
        room = settings.max_unfinished_live_runs - sum(LIVE_TAG in run.tags for run in unfinished)
        requests: list[RunRequest] = []
        for event in due:
            waiting = cursor.waiting[event]
            run = failed.get(waiting.run_id)
            if (
                run is None  # pruned
                or was_retried(run)  # if that one fails, or the next, it is read here
                or event in done
                or event in running
            ):
                del cursor.waiting[event]
            # Only now: Dagster's tag comes after its failure.
            elif retried_by_dagster(run) and now < waiting.failed + RETRIED_WITHIN.total_seconds():
                continue
            elif len(requests) < room:
                cursor.waiting[event] = replace(waiting, requested=True)
                tags = _tags(run, newest.get(event, 0))
                requests.append(RunRequest(partition_key=event, tags=tags))
        return SensorResult(run_requests=requests, cursor=cursor.dump())

    return failed_events


def _tags(failed: DagsterRun, newest: int) -> dict[str, str]:
    """Tags of the run that follows a failed one; of a newer announcement, as if it were the first.

    Args:
        failed: the run.
        newest: sequence of the event's newest announcement that is known of.
    """
    if newest > sequence_of(failed):
        return {LIVE_TAG: "true", SEQUENCE_TAG: str(newest)}
    return {
        LIVE_TAG: "true",
        ATTEMPT_TAG: str(attempt_of(failed) + 1),
        SEQUENCE_TAG: failed.tags.get(SEQUENCE_TAG, ""),
        DOUBTS_TAG: failed.tags.get(DOUBTS_TAG, "0"),
    }
