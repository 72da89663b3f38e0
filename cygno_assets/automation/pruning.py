"""The job `prune` and its schedule: when Dagster's history is cut to what the settings keep.

Here belongs when; what goes is records/pruning.py's.
"""

import time
from typing import TYPE_CHECKING

from dagster import OpExecutionContext, ScheduleDefinition, job, op

from cygno_assets.automation.schedules import on_cron
from cygno_assets.names import BACKGROUND
from cygno_assets.records.pruning import keep_by, plan, prune
from cygno_assets.storage.locations import data_root

if TYPE_CHECKING:
    from cygno_assets.settings import Settings


def build_prune_schedule(settings: "Settings") -> ScheduleDefinition:
    """The schedule with its job; `cygno-assets prune --dry-run` says what it would do.

    Raises:
        SettingsError: the cron setting is no cron line.
    """

    @op(
        description="Takes runs and partition keys out of Dagster's database, of events only that "
        "`event_catalog` holds; and raw images, if a setting says so."
    )
    def prune_history(context: OpExecutionContext) -> None:
        root = data_root(settings)
        planned = plan(context.instance, root, keep_by(settings, time.time()))
        context.log.info(str(planned))
        prune(context.instance, root, planned, context.log.info)
        context.add_output_metadata(planned.counts())

    @job(name="prune", tags=BACKGROUND, description="Bounds Dagster's history.")
    def prune_job() -> None:
        prune_history()

    return on_cron(settings, "prune_cron", prune_job, "prune", "Bounds Dagster's history.")
