"""Dagster's daemon, quicker for many small runs: `python -m …engine.daemon run -w workspace.yaml`.

The one place where Dagster's own code is changed, in three points. Started as `dagster-daemon`, all
is the same but slower, in the third point by minutes.

Its sensor loop comes round every 5 s, of which an event waits half on average, and its backfill
loop every 30 s, twice in each backfill; no setting shortens them. How often a sensor is evaluated
its own `minimum_interval_seconds` still decides.

For each run that a sensor requests, the daemon asks the code server for the plan of its steps. Of
one state of the code, a job and a configuration, the answer is always the same.

A run is created, and then queued. If the database is away for that moment, or what creates it ends,
nothing queues it any more. Dagster fails it after dagster.yaml's `start_timeout_seconds`, half an
hour, which runs that wait for a worker need; its event waits as long.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from dagster import DagsterRunStatus, RunsFilter
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._daemon import controller, sensor
from dagster._daemon.cli import main
from dagster._daemon.daemon import MonitoringDaemon
from dagster._daemon.utils import DaemonErrorCapture
from dagster._serdes import serialize_value

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection, Mapping, Sequence

    from dagster import DagsterInstance
    from dagster._core.execution.plan.state import KnownExecutionState
    from dagster._core.remote_representation.external import RemoteExecutionPlan, RemoteJob
    from dagster._core.workspace.context import IWorkspaceProcessContext
    from dagster._daemon.daemon import DaemonIterator

SENSOR_LOOP_S = 1
BACKFILL_LOOP_S = 5
UNQUEUED_S = 15.0
"""From a run's creation to its queueing are milliseconds. After an outage sensors, and what follows
runs that died, come back to theirs within seconds."""
_PLANS = "_plans_by_job_and_configuration"
_PLANS_KEPT = 1000


def shorten_loops() -> None:
    """Has Dagster look more often which sensors are due, and how far backfills are."""
    sensor.MIN_INTERVAL_LOOP_TIME = SENSOR_LOOP_S
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = BACKFILL_LOOP_S


def remember_execution_plans() -> None:
    """Has each code location, which Dagster makes anew when code is reloaded, keep its plans."""
    ask = GrpcServerCodeLocation.get_execution_plan

    @functools.wraps(ask)
    def get_execution_plan(
        location: GrpcServerCodeLocation,
        remote_job: RemoteJob,
        run_config: Mapping[str, Any],
        step_keys_to_execute: Sequence[str] | None,
        known_state: KnownExecutionState | None,
        instance: DagsterInstance | None = None,
    ) -> RemoteExecutionPlan:
        arguments = (remote_job, run_config, step_keys_to_execute, known_state, instance)
        if step_keys_to_execute is not None or known_state is not None:
            return ask(location, *arguments)
        plans: dict[object, RemoteExecutionPlan] = vars(location).setdefault(_PLANS, {})
        # The id is a digest of the job with what is selected of it.
        key = (remote_job.identifying_job_snapshot_id, serialize_value(dict(run_config)))
        if key not in plans:
            if len(plans) >= _PLANS_KEPT:
                plans.clear()
            plans[key] = ask(location, *arguments)
        return plans[key]

    GrpcServerCodeLocation.get_execution_plan = get_execution_plan  # type: ignore[method-assign,assignment]  # Dagster's own


def queue_forgotten_runs() -> None:
    """Has Dagster's monitoring of runs queue those that were created, and left."""
    look = MonitoringDaemon.run_iteration
    seen = _Left()

    @functools.wraps(look)
    def run_iteration(
        monitoring: MonitoringDaemon, workspace_process_context: IWorkspaceProcessContext[Any]
    ) -> DaemonIterator:
        yield from _queue_forgotten_runs(workspace_process_context, monitoring._logger, seen)
        yield from look(monitoring, workspace_process_context)

    MonitoringDaemon.run_iteration = run_iteration  # type: ignore[method-assign,assignment]  # Dagster's own


class _Left:
    """Which runs are left, and for how long this process has seen them so without a break.

    Not since their creation: after an outage of the database, or while all of us stood still, that
    is long ago, and what has created them is about to go on.
    """

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._looked = 0.0

    def for_long(self, left: Collection[str]) -> list[str]:
        """Those of them that have been left for UNQUEUED_S."""
        now = time.monotonic()
        if now - self._looked > UNQUEUED_S:
            self._first.clear()
        self._looked = now
        self._first = {run_id: self._first.get(run_id, now) for run_id in left}
        return [run_id for run_id, first in self._first.items() if now - first >= UNQUEUED_S]


def _queue_forgotten_runs(
    context: IWorkspaceProcessContext[Any], logger: logging.Logger, seen: _Left
) -> DaemonIterator:
    left = [
        run.run_id
        for run in context.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.NOT_STARTED]))
        if run.remote_job_origin is not None  # else its own process executes it
    ]
    for run_id in seen.for_long(left):
        try:
            logger.warning("Run %s was created and not queued; it is queued now", run_id)
            context.instance.submit_run(run_id, context.create_request_context())
        except Exception:  # noqa: BLE001 – whatever of storage or code, said as Dagster does
            yield DaemonErrorCapture.process_exception(
                sys.exc_info(), logger=logger, log_message=f"Run {run_id} cannot be queued"
            )


if __name__ == "__main__":
    shorten_loops()
    remember_execution_plans()
    queue_forgotten_runs()
    main()
