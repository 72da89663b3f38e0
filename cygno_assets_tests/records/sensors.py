"""What Dagster keeps of a sensor, put there without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

if TYPE_CHECKING:
    from dagster import DagsterInstance


def remembers(
    instance: DagsterInstance,
    sensor: str,
    status: InstigatorStatus = InstigatorStatus.RUNNING,
    **cursor: object,
) -> None:
    """Has a sensor's cursor be this."""
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="x"))
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "r"), sensor)
    state = InstigatorState(
        origin,
        InstigatorType.SENSOR,
        status,
        SensorInstigatorData(cursor=json.dumps(cursor)),
    )
    known = instance.get_instigator_state(state.instigator_origin_id, state.selector_id)
    (instance.add_instigator_state if known is None else instance.update_instigator_state)(state)
