"""When the training set is made: who looks for a new archive, what it sets off, and the cron.

Here belongs when; what is then done is assets/training.py.
"""

import json
import time
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationConditionSensorDefinition,
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    map_asset_specs,
    sensor,
)

from cygno_assets.assets.training import offered_version
from cygno_assets.names import (
    TRAINING_ARCHIVE,
    TRAINING_ASSETS,
    TRAINING_CELLS,
    UNLABELLED_PATHS,
)
from cygno_assets.records.history import unfinished_runs
from cygno_assets.settings import SettingsError, environment_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cygno_assets.settings import Settings

ARCHIVE_SENSOR = "new_training_archive"
AUTOMATION_SENSOR = "training_automation"
ARCHIVE_TAG = "cygno/training_archive"

# A version that could not be fetched is asked for again, but not all the time: it may be large.
_ASK_AGAIN_S = 86_400.0
_EVALUATE_EVERY_S = 5


def automated(
    assets: "Sequence[AssetsDefinition]", settings: "Settings"
) -> "list[AssetsDefinition]":
    """These assets of the training set, each with the condition on which it is made.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    conditions = {
        **dict.fromkeys(TRAINING_CELLS, on_change() | on_cron(settings)),
        UNLABELLED_PATHS: on_change(),
    }

    def with_condition(spec: AssetSpec) -> AssetSpec:
        if spec.key == TRAINING_ARCHIVE:
            return spec  # the sensor below asks for it
        condition = conditions.get(spec.key, after_all_inputs())
        return spec.replace_attributes(automation_condition=condition)

    return list(map_asset_specs(with_condition, assets))


def on_cron(settings: "Settings") -> AutomationCondition[Any]:
    """All partitions at each tick of the cron; together they become one backfill.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    try:
        tick = AutomationCondition.cron_tick_passed(settings.training_backfill_cron)
    except Exception as error:  # noqa: BLE001 – Dagster's CheckError, which has no public name
        raise SettingsError(
            f"{environment_name('training_backfill_cron')}: "
            f"{settings.training_backfill_cron!r} is no cron line such as '0 4 * * 1' ({error})"
        ) from None
    # Kept until it is answered: a cell that runs at that moment is not left out.
    return tick.since(AutomationCondition.newly_requested()) & ~AutomationCondition.in_progress()


def on_change() -> AutomationCondition[Any]:
    """What is made from the archive: at once when it is another one, or the code is.

    Only a request answers a change. A materialization does not: it may be of a run that had read
    the archive before, and one request too many decodes nothing.
    """
    archive = AssetSelection.assets(TRAINING_ARCHIVE)
    another = AutomationCondition.any_deps_match(AutomationCondition.data_version_changed())
    changed = (
        AutomationCondition.missing().newly_true()
        | another.allow(archive)
        | AutomationCondition.code_version_changed()
    ).since(AutomationCondition.newly_requested())
    # Tensors are made with their ground truth, in one run, unless that was made alone. (Dagster's
    # `executed_with_root_target` would tell, but not of partitions.)
    left_behind = another.ignore(archive).since(
        AutomationCondition.newly_requested() | AutomationCondition.newly_updated()
    )
    return (
        (changed | left_behind)
        & ~AutomationCondition.any_deps_missing()
        & ~AutomationCondition.in_progress()
    )


def after_all_inputs() -> AutomationCondition[Any]:
    """For totals, figures and the dataset: once, when their cells have come to rest.

    What is made from something that is requested now is requested with it, and made after it in
    the same run: so the dataset is never made from the splits of before.
    """
    cells = AssetSelection.assets(*TRAINING_CELLS)
    archive = AssetSelection.assets(TRAINING_ARCHIVE)
    is_requested = AutomationCondition.will_be_requested()
    outdated = AutomationCondition.code_version_changed().since(AutomationCondition.newly_updated())
    # In a run that makes both, what is made from it has been made too.
    updated = AutomationCondition.newly_updated() & ~AutomationCondition.executed_with_root_target()
    # Of a cell made between a request and the next evaluation only the time tells that it came
    # after; and Dagster knows times of plain updates alone, not of an "and" or "or" of them.
    made = AutomationCondition.any_deps_match(AutomationCondition.newly_updated()).allow(cells)
    changed = (
        AutomationCondition.newly_missing()
        # A new archive alone changes nothing here: its cells will.
        | AutomationCondition.any_deps_match(updated).ignore(archive | cells)
        | AutomationCondition.code_version_changed()
    )
    due = (
        made.since(AutomationCondition.newly_requested())
        | changed.since(AutomationCondition.newly_requested())
        | AutomationCondition.any_deps_match(is_requested).ignore(archive | cells)
    )
    return (
        due
        # Before the first archive the grid is empty, so that no cell is missing.
        & ~AutomationCondition.asset_matches(TRAINING_ARCHIVE, AutomationCondition.missing())
        & ~AutomationCondition.any_deps_missing()
        & ~AutomationCondition.any_deps_in_progress()
        # Cells of other code, such as tensors of another window, are not there yet.
        & ~AutomationCondition.any_deps_match(outdated).allow(cells)
        & ~AutomationCondition.in_progress()
    )


def build_automation_sensor() -> AutomationConditionSensorDefinition:
    """Evaluates the conditions; several cells requested at once become a backfill."""
    return AutomationConditionSensorDefinition(
        AUTOMATION_SENSOR,
        target=AssetSelection.assets(*TRAINING_ASSETS),
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=_EVALUATE_EVERY_S,
        emit_backfills=True,
        description="Backfills all cells of the training set on the cron of "
        f"{environment_name('training_backfill_cron')} and when the archive is another one; "
        "totals and figures follow when all cells are done.",
    )


def build_archive_sensor(settings: "Settings") -> SensorDefinition:
    """The sensor that looks for a new archive, for these settings."""

    @sensor(
        name=ARCHIVE_SENSOR,
        target=AssetSelection.assets(TRAINING_ARCHIVE),
        minimum_interval_seconds=settings.training_archive_check_s,
        default_status=DefaultSensorStatus.RUNNING,
        description="Asks the training set's server, every "
        f"{settings.training_archive_check_s} s, whether its archive is another one than the last "
        "time (ETag, or time and size), and requests `training_archive` if so.",
    )
    def new_training_archive(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        from cygno_assets.training.fetch import FetchError

        try:
            version = offered_version(settings)
        except FetchError as error:
            return SkipReason(f"cannot look: {error}")
        except FileNotFoundError as error:
            return SkipReason(f"there is no file {error.filename!r} yet")
        asked = json.loads(context.cursor) if context.cursor else {}
        if version == asked.get("version"):
            made = context.instance.get_latest_materialization_event(TRAINING_ARCHIVE)
            if made is not None and made.timestamp >= asked["time"]:
                return SkipReason(f"unchanged: {version}")
            if time.time() < asked["time"] + _ASK_AGAIN_S:
                return SkipReason(f"requested already: {version}")
        if any(ARCHIVE_TAG in run.tags for run in unfinished_runs(context.instance)):
            return SkipReason("the last one is still being fetched")
        return SensorResult(
            run_requests=[RunRequest(tags={ARCHIVE_TAG: "true"})],
            cursor=json.dumps({"version": version, "time": time.time()}),
        )

    return new_training_archive
