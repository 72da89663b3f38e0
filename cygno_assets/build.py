"""`build_defs`: the one place where everything is put together, for tests, CLI and UI alike."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from dagster import (
    BetaWarning,
    Definitions,
    ExecutorDefinition,
    in_process_executor,
    with_source_code_references,
)

from cygno_assets.assets.catalog import build_event_catalog
from cygno_assets.assets.health import build_pipeline_health
from cygno_assets.assets.live import build_live_assets
from cygno_assets.assets.training import build_training_assets
from cygno_assets.assets.training_dataset import build_training_dataset
from cygno_assets.assets.training_figures import build_training_figures
from cygno_assets.automation.catalog import build_catalog_sensor, build_event_tensors_schedule
from cygno_assets.automation.freshness import with_freshness
from cygno_assets.automation.jobs import catalog_day_job, event_tensors_job, live_event_job
from cygno_assets.automation.notifications import build_notifications_sensor
from cygno_assets.automation.pruning import build_prune_schedule
from cygno_assets.automation.retries import build_failed_events_sensor
from cygno_assets.automation.schedules import (
    build_health_schedule,
    build_live_checks_schedule,
    build_reconciliation_schedule,
)
from cygno_assets.automation.sensors import build_daq_events_sensor
from cygno_assets.automation.training import (
    automated,
    build_archive_sensor,
    build_automation_sensor,
)
from cygno_assets.checks.live import build_live_checks
from cygno_assets.checks.live_window import build_live_window_checks
from cygno_assets.checks.training import build_training_checks
from cygno_assets.daq.inbox import Inbox
from cygno_assets.settings import load_settings
from cygno_assets.storage.io_managers import (
    FigureIOManager,
    JsonIOManager,
    RawImageIOManager,
    TableIOManager,
    TensorIOManager,
    TensorTableIOManager,
)
from cygno_assets.storage.locations import data_root

if TYPE_CHECKING:
    from cygno_assets.settings import Settings


def build_defs(
    settings: Settings | None = None, *, executor: ExecutorDefinition = in_process_executor
) -> Definitions:
    """Everything that Dagster knows of this project.

    Args:
        settings: instead of those in the environment.
        executor: of all runs. A run is one event and takes a fraction of a second: a process per
            step would not pay.

    Raises:
        SettingsError: a setting is wrong.
    """
    settings = load_settings() if settings is None else settings
    root = data_root(settings)
    with warnings.catch_warnings():
        # References to code are a beta of Dagster's; only the web UI shows them.
        warnings.simplefilter("ignore", BetaWarning)
        training = [
            *build_training_assets(settings),
            *build_training_figures(settings),
            *build_training_dataset(settings),
        ]
        every = [
            *build_live_assets(settings),
            *build_event_catalog(settings),
            *automated(training, settings),
            build_pipeline_health(settings),
        ]
        assets = with_source_code_references(with_freshness(every, settings))
    return Definitions(
        assets=assets,
        asset_checks=[
            *build_live_checks(settings),
            *build_live_window_checks(settings),
            *build_training_checks(settings),
        ],
        jobs=[live_event_job, catalog_day_job, event_tensors_job],
        sensors=[
            build_daq_events_sensor(settings),
            build_failed_events_sensor(settings),
            build_catalog_sensor(settings),
            build_notifications_sensor(settings),
            build_archive_sensor(settings),
            build_automation_sensor(),
        ],
        schedules=[
            build_reconciliation_schedule(settings),
            build_live_checks_schedule(settings),
            build_health_schedule(),
            build_event_tensors_schedule(),
            build_prune_schedule(settings),
        ],
        resources={
            "inbox": Inbox(settings.resolve_inbox_url),
            "raw_image_io_manager": RawImageIOManager(root),
            "tensor_io_manager": TensorIOManager(root),
            "tensor_table_io_manager": TensorTableIOManager(root),
            "table_io_manager": TableIOManager(root),
            "json_io_manager": JsonIOManager(root),
            "figure_io_manager": FigureIOManager(root),
        },
        executor=executor,
    )
