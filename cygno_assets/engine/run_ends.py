"""How a run ends whose process is gone: it fails, unless all that it was to do had been done.

A process may die, or lose its database, after the last step and before the run's success is stored.
Failed, such a run would stay so: Dagster retries a run from the steps that failed, and finds none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import DagsterEvent, DagsterEventType, DagsterRunStatus
from dagster._core.execution.stats import StepEventStatus
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

GONE = "The process that executed it is gone."
_ENDED_WELL = {StepEventStatus.SUCCESS, StepEventStatus.SKIPPED}


def health_without_process(instance: DagsterInstance, run: DagsterRun) -> CheckRunHealthResult:
    """The health of a started run that no process executes; ends it if all of it is done.

    Dagster's monitoring fails a run of this health, but looks once more whether it has ended.

    Args:
        instance: Dagster's.
        run: as it was before it was looked for; it may have ended since.
    """
    now = instance.get_run_by_id(run.run_id)
    if now is not None:
        _end_if_all_is_done(instance, now, GONE)
    return CheckRunHealthResult(WorkerStatus.NOT_FOUND, GONE)


def end_run(instance: DagsterInstance, run: DagsterRun, reason: str) -> None:
    """Ends a run that no process executes any more.

    Args:
        instance: Dagster's.
        run: it, not finished.
        reason: why it has not ended by itself, a sentence.
    """
    if not _end_if_all_is_done(instance, run, reason):
        instance.report_run_failed(run, reason)


def _end_if_all_is_done(instance: DagsterInstance, run: DagsterRun, reason: str) -> bool:
    """Ends it as a success, if all of its steps have succeeded; returns whether that is so."""
    if run.status != DagsterRunStatus.STARTED or run.execution_plan_snapshot_id is None:
        return False
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    ended_well = {
        step.step_key
        for step in instance.get_run_step_stats(run.run_id)
        if step.status in _ENDED_WELL
    }
    if not ended_well.issuperset(plan.step_keys_to_execute):
        return False
    instance.report_dagster_event(
        DagsterEvent(
            event_type_value=DagsterEventType.RUN_SUCCESS.value,
            job_name=run.job_name,
            message=f"{reason} All of its steps had succeeded.",
        ),
        run_id=run.run_id,
    )
    return True
