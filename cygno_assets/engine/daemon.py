"""Dagster's daemon, quicker for many small runs: `python -m …engine.daemon run -w workspace.yaml`.

The one place where Dagster's own code is changed, in two points. Started as `dagster-daemon`, all
is the same but slower.

Its sensor loop comes round every 5 s, of which an event waits half on average, and its backfill
loop every 30 s, twice in each backfill; no setting shortens them. How often a sensor is evaluated
its own `minimum_interval_seconds` still decides.

For each run that a sensor requests, the daemon asks the code server for the plan of its steps. Of
one state of the code, a job and a configuration, the answer is always the same.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._daemon import controller, sensor
from dagster._daemon.cli import main
from dagster._serdes import serialize_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dagster import DagsterInstance
    from dagster._core.execution.plan.state import KnownExecutionState
    from dagster._core.remote_representation.external import RemoteExecutionPlan, RemoteJob

SENSOR_LOOP_S = 1
BACKFILL_LOOP_S = 5
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


if __name__ == "__main__":
    shorten_loops()
    remember_execution_plans()
    main()
