"""The schedules: what runs by the clock."""

from typing import TYPE_CHECKING

from dagster import (
    AssetSelection,
    DefaultScheduleStatus,
    JobDefinition,
    ScheduleDefinition,
    define_asset_job,
)

from cygno_assets.checks.live import RECONCILIATION_CHECKS
from cygno_assets.checks.live_window import LIVE_WINDOW_CHECKS
from cygno_assets.names import BACKGROUND, PIPELINE_HEALTH
from cygno_assets.settings import SettingsError, environment_name

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,  # what define_asset_job returns; it has no public name
    )

    from cygno_assets.settings import Settings


def on_cron(
    settings: "Settings",
    field: str,
    job: "JobDefinition | UnresolvedAssetJobDefinition",
    name: str,
    description: str,
) -> ScheduleDefinition:
    """A schedule, running by default, whose cron line is a setting.

    Args:
        settings: that have it.
        field: the setting's name.
        job: what runs.
        name: of the schedule.
        description: of it, for the web UI.

    Raises:
        SettingsError: the setting is no cron line.
    """
    cron = getattr(settings, field)
    try:
        return ScheduleDefinition(
            name=name,
            job=job,
            cron_schedule=cron,
            default_status=DefaultScheduleStatus.RUNNING,
            description=description,
        )
    except Exception as error:  # noqa: BLE001 – Dagster's, of several kinds
        raise SettingsError(
            f"{environment_name(field)}: {cron!r} is no cron line such as '*/15 * * * *' ({error})"
        ) from None


def build_reconciliation_schedule(settings: "Settings") -> ScheduleDefinition:
    """The schedule of the check that no event is lost, for these settings.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    job = define_asset_job(
        "reconciliation_check",
        selection=AssetSelection.checks(*RECONCILIATION_CHECKS),
        description="Compares what the inbox holds, what ran, what is materialized and what is "
        "stored.",
        tags=BACKGROUND,  # of a long history it takes seconds, which are live events'
    )
    return on_cron(
        settings, "reconciliation_cron", job, "reconciliation", "Looks whether any event was lost."
    )


def build_live_checks_schedule(settings: "Settings") -> ScheduleDefinition:
    """The schedule of the checks of a window of live events, for these settings.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    job = define_asset_job(
        "live_window_checks",
        selection=AssetSelection.checks(*LIVE_WINDOW_CHECKS),
        description="Judges the newest events: camera, pedestal, columns, pixels, clipping, "
        "specification, rate and silence.",
    )
    return on_cron(settings, "live_checks_cron", job, "live_checks", "Judges the newest events.")


def build_health_schedule() -> ScheduleDefinition:
    """The schedule of `pipeline_health`, which has a row for each hour."""
    return ScheduleDefinition(
        name="hourly_health",
        job=define_asset_job(
            "pipeline_health_job",
            selection=AssetSelection.assets(PIPELINE_HEALTH),
            description="Measures how well the live pipeline is.",
            tags=BACKGROUND,  # drawing takes a second
        ),
        cron_schedule="0 * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Measures how well the live pipeline is, at each full hour.",
    )
