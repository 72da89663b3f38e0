"""What Dagster knows of runs: which there are, what failed and why, how far the training set is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from dagster import (
    DagsterEventType,
    DagsterRunStatus,
    RunsFilter,
    RunStatusChangeRecordsFilter,
)

from cygno_assets.names import (
    ATTEMPT_TAG,
    FINAL_TAG,
    KIND_TAG,
    LIVE_JOB,
    LIVE_TAG,
    MAX_ATTEMPTS,
    PARTITION_TAG,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
    SEQUENCE_TAG,
    TRAINING_ARCHIVE,
    TRAINING_ASSETS,
    TRAINING_CELLS,
)
from cygno_assets.partitions import training_cells

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from dagster import DagsterInstance, DagsterRun, EventRecordsResult

_WILL_RETRY_TAG = "dagster/will_retry"
_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.MANAGED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_PAGE = 1000
RETRIED_WITHIN = timedelta(minutes=2)
"""So soon after a process died Dagster runs again what it executed, or not at all."""


def unfinished_runs(instance: DagsterInstance) -> list[DagsterRun]:
    """All runs that have not ended: few, however many there have been.

    Asked for by status alone: a tag beside it and the database would go through all runs that
    ever had the tag.
    """
    return list(instance.get_runs(RunsFilter(statuses=_UNFINISHED)))


def about_to_be_retried(instance: DagsterInstance) -> list[DagsterRun]:
    """Runs whose process died just now, until the run that Dagster has follow them has ended."""
    died = instance.get_runs(
        RunsFilter(tags={_WILL_RETRY_TAG: "true"}, updated_after=datetime.now(UTC) - RETRIED_WITHIN)
    )
    followers = runs_by_id(instance, [f for run in died if (f := _follower_of(run))])
    ended = {run_id for run_id, run in followers.items() if run.is_finished}
    return [run for run in died if _follower_of(run) not in ended]


def newest_runs(instance: DagsterInstance, events: Collection[str]) -> dict[str, DagsterRun]:
    """The newest run of each of these events, as far as any is known."""
    runs = instance.get_runs(RunsFilter(tags={PARTITION_TAG: list(events)})) if events else []
    return {run.tags[PARTITION_TAG]: run for run in reversed(list(runs))}


def events_of(runs: Iterable[DagsterRun]) -> set[str]:
    """The events, or other partitions, that these runs make."""
    return {run.tags[PARTITION_TAG] for run in runs if PARTITION_TAG in run.tags}


def runs_by_id(instance: DagsterInstance, run_ids: Sequence[str]) -> dict[str, DagsterRun]:
    """These runs, as far as they are still known."""
    runs = instance.get_runs(RunsFilter(run_ids=list(run_ids))) if run_ids else []
    return {run.run_id: run for run in runs}


def attempt_of(run: DagsterRun) -> int:
    """The how-manieth attempt at its event a run is; the first run's is 0."""
    return int(run.tags.get(ATTEMPT_TAG, "0"))


def sequence_of(run: DagsterRun) -> int:
    """The stream sequence of the announcement that a run was requested for; 0 if none is known."""
    return int(run.tags.get(SEQUENCE_TAG) or 0)


def makes_event(run: DagsterRun) -> bool:
    """Whether a run makes an event, be it a sensor's or a person's."""
    return (
        LIVE_TAG in run.tags
        or run.job_name == LIVE_JOB
        or bool({RAW_IMAGE, PREPROCESSED_TENSOR} & set(run.asset_selection or ()))
    )


def retried_by_dagster(run: DagsterRun) -> bool:
    """Whether Dagster runs it again by itself, because its process died."""
    return run.tags.get(_WILL_RETRY_TAG) == "true"


def was_retried(run: DagsterRun) -> bool:
    """Whether Dagster has run it again."""
    return _follower_of(run) is not None


def _follower_of(run: DagsterRun) -> str | None:
    return run.tags.get("dagster/auto_retry_run_id")


def may_pass(run: DagsterRun) -> bool:
    """Whether the sensor `failed_events` makes a live run's event again after it has failed."""
    return (
        run.status == DagsterRunStatus.FAILURE
        and LIVE_TAG in run.tags
        and FINAL_TAG not in run.tags
        and attempt_of(run) < MAX_ATTEMPTS
    )


def failed_for_good(run: DagsterRun) -> bool:
    """Whether nothing runs again by itself what a failed or canceled run was to make."""
    return not retried_by_dagster(run) and not may_pass(run)


def newest_failure(instance: DagsterInstance) -> int:
    """The place in Dagster's event log of the newest failure of a run; 0 if there is none."""
    page = instance.fetch_run_status_changes(DagsterEventType.RUN_FAILURE, limit=1)
    return page.records[0].storage_id if page.records else 0


def failures_after(
    instance: DagsterInstance, storage_id: int, limit: int, *, since: float | None = None
) -> EventRecordsResult:
    """Failures of runs after a place in Dagster's event log, the oldest first.

    Args:
        instance: Dagster's.
        storage_id: the place.
        limit: how many at the most.
        since: in seconds since 1970; earlier ones are left out.
    """
    return instance.fetch_run_status_changes(
        RunStatusChangeRecordsFilter(
            DagsterEventType.RUN_FAILURE, after_timestamp=since, after_storage_id=storage_id
        ),
        limit=limit,
        ascending=True,
    )


def failure_kind(run: DagsterRun) -> str:
    """What a run failed on, in a word that stays the same; if it did not say, how it ended."""
    return run.tags.get(FINAL_TAG) or run.tags.get(KIND_TAG) or run.status.value.lower()


def failed_events(instance: DagsterInstance, events: Collection[str]) -> dict[str, str]:
    """Which of these events have a failed or canceled run that nothing runs again, and why.

    Whether such an event is materialized or running all the same, the caller knows.
    """
    wanted = sorted(events)
    return {
        run.tags[PARTITION_TAG]: reason_of(instance, run)
        for first in range(0, len(wanted), _PAGE)  # a database takes no list of any length
        for run in reversed(  # so that the newest run's reason stays
            instance.get_runs(
                RunsFilter(
                    tags={PARTITION_TAG: wanted[first : first + _PAGE]},
                    statuses=[DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED],
                )
            )
        )
        if failed_for_good(run)
    }


def training_state(
    instance: DagsterInstance, archive_since: datetime
) -> tuple[list[str], int, int]:
    """How far the training set is.

    Args:
        instance: Dagster's.
        archive_since: an archive fetched before counts as missing.

    Returns:
        The assets that are not materialized, of those with partitions wholly; how many cells are;
        and how many cells there are.
    """
    cells = set(training_cells.get_partition_keys(dynamic_partitions_store=instance))
    missing = [
        key.to_user_string()
        for key in TRAINING_ASSETS
        if key not in TRAINING_CELLS and instance.get_latest_materialization_event(key) is None
    ]
    archive = instance.get_latest_materialization_event(TRAINING_ARCHIVE)
    if archive is not None and archive.timestamp < archive_since.timestamp():
        missing.append(TRAINING_ARCHIVE.to_user_string())
    done = cells.copy()
    for key in TRAINING_CELLS:
        materialized = instance.get_materialized_partitions(key)
        if not cells or not cells <= materialized:
            missing.append(key.to_user_string())
        done &= materialized
    return missing, len(done), len(cells)


def failed_training_runs(instance: DagsterInstance, since: datetime) -> list[str]:
    """Why runs of the training set that were created since then failed, the newest first."""
    runs = instance.get_runs(
        RunsFilter(
            statuses=[DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED], created_after=since
        ),
        limit=_PAGE,
    )
    return [
        reason_of(instance, run)
        for run in runs
        if not retried_by_dagster(run) and set(TRAINING_ASSETS) & set(run.asset_selection or ())
    ]


def reason_of(instance: DagsterInstance, run: DagsterRun) -> str:
    """Why a run failed, in the words that its page shows."""
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        if event is None:
            continue
        failure = event.step_failure_data
        if failure.user_failure_data is not None and failure.user_failure_data.description:
            return str(failure.user_failure_data.description)
        if failure.error is not None:
            cause = failure.error.cause or failure.error
            return cause.message.strip()
    return f"its run {run.run_id} ended as {run.status.value}"
