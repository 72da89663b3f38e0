"""The schedules: what runs by the clock."""

from typing import TYPE_CHECKING

from dagster import (
    AssetSelection,
    AutomationConditionSensorDefinition,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ScheduleDefinition,
    define_asset_job,
)

from cygno_assets.checks.live import RECONCILIATION_CHECKS
from cygno_assets.checks.live_window import LIVE_WINDOW_CHECKS
from cygno_assets.names import PIPELINE_HEALTH
from cygno_assets.settings import SettingsError, environment_name

if TYPE_CHECKING:
    from cygno_assets.settings import Settings

_EVALUATE_EVERY_S = 10


def build_reconciliation_schedule(settings: "Settings") -> ScheduleDefinition:
    """The schedule of the check that no event is lost, for these settings.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    try:
        return ScheduleDefinition(
            name="reconciliation",
            job=define_asset_job(
                "reconciliation_check",
                selection=AssetSelection.checks(*RECONCILIATION_CHECKS),
                description="Compares what the inbox holds, what ran, what is materialized and "
                "what is stored.",
            ),
            cron_schedule=settings.reconciliation_cron,
            default_status=DefaultScheduleStatus.RUNNING,
            description="Looks whether any event was lost.",
        )
    except Exception as error:  # noqa: BLE001 – Dagster's, of several kinds
        raise SettingsError(
            f"{environment_name('reconciliation_cron')}: {settings.reconciliation_cron!r} is no "
            f"cron line such as '*/15 * * * *' ({error})"
        ) from None


def build_health_schedule() -> ScheduleDefinition:
    """The schedule of `pipeline_health`, which has a row for each hour."""
    return ScheduleDefinition(
        name="hourly_health",
        job=define_asset_job(
            "pipeline_health_job",
            selection=AssetSelection.assets(PIPELINE_HEALTH),
            description="Measures how well the live pipeline is.",
            # Drawing takes a second: by a process that no event waits for.
            tags={"dagster/priority": "-1"},
        ),
        cron_schedule="0 * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Measures how well the live pipeline is, at each full hour.",
    )


def build_live_checks_sensor() -> AutomationConditionSensorDefinition:
    """Requests the checks of a window of live events at each tick of their cron.

    Not a schedule: Dagster takes an asset's checks along in every run and backfill of it, unless
    they have a condition of their own; and a condition has a sensor that evaluates it.
    """
    return AutomationConditionSensorDefinition(
        "live_checks",
        target=AssetSelection.checks(*LIVE_WINDOW_CHECKS),
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=_EVALUATE_EVERY_S,
        description="Judges the newest events on the cron of "
        f"{environment_name('live_checks_cron')}: pedestal, columns, pixels, clipping, "
        "specification, rate and silence.",
    )
