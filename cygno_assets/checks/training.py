"""Checks of the training set: nothing was dropped in silence, and what its audit found."""

from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetIn,
    Failure,
    asset_check,
)

from cygno_assets.assets.training import open_archive
from cygno_assets.names import (
    DATASET_PIXEL_HISTOGRAM,
    GROUND_TRUTH_TABLE,
    TRAINING_ARCHIVE,
    TRAINING_AUDIT,
    UNLABELLED_PATHS,
)
from cygno_assets.training.audit import ALARMS, Alarm
from cygno_assets.training.survey import other_cells

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cygno_assets.settings import Settings

_PATHS_SHOWN = 100


def build_training_checks(settings: "Settings") -> list[AssetChecksDefinition]:
    """The checks of the training set, for these settings."""

    @asset_check(
        asset=UNLABELLED_PATHS,
        description="Every file of the archive is a training image by its path.",
    )
    def every_path_has_a_label(unlabelled_paths: Any) -> AssetCheckResult:
        return AssetCheckResult(
            passed=len(unlabelled_paths) == 0,
            severity=AssetCheckSeverity.WARN,
            description=f"{len(unlabelled_paths)} paths fit no rule",
            metadata={
                "unlabelled": len(unlabelled_paths),
                "paths": _shown(unlabelled_paths["path"]),
            },
        )

    @asset_check(
        asset=GROUND_TRUTH_TABLE,
        additional_ins={
            "unlabelled_paths": AssetIn(UNLABELLED_PATHS),
            "training_archive": AssetIn(TRAINING_ARCHIVE),
        },
        description="Each file of the archive is a row here or in `unlabelled_paths`, once, and "
        "no row is of a file that is not in the archive.",
    )
    def every_file_is_accounted_for(
        ground_truth_table: Any, unlabelled_paths: Any, training_archive: dict[str, Any]
    ) -> AssetCheckResult:
        with open_archive(training_archive, settings) as archive:
            members = sorted(archive.members)
        rows = sorted([*ground_truth_table["path"], *unlabelled_paths["path"]])
        return AssetCheckResult(
            passed=rows == members,
            severity=AssetCheckSeverity.ERROR,
            description=f"{len(members)} files in the archive: {len(ground_truth_table)} with "
            f"ground truth, {len(unlabelled_paths)} without a label",
            metadata={
                "in_neither_table": _shown(set(members) - set(rows)),
                "not_in_the_archive": _shown(set(rows) - set(members)),
            },
        )

    def of_this_archive(training_archive: dict[str, Any], made_from: Any) -> AssetCheckResult:
        with open_archive(training_archive, settings) as archive:
            others = other_cells(archive, made_from)
        return AssetCheckResult(
            passed=not others,
            severity=AssetCheckSeverity.ERROR,
            description=f"{len(others)} of {len(made_from)} cells were made from another archive",
            metadata={"cells": _shown(others)},
        )

    @asset_check(
        asset=GROUND_TRUTH_TABLE,
        additional_ins={"training_archive": AssetIn(TRAINING_ARCHIVE)},
        description="All cells in it were made from the archive as it is now.",
    )
    def its_rows_are_of_this_archive(
        ground_truth_table: Any, training_archive: dict[str, Any]
    ) -> AssetCheckResult:
        return of_this_archive(training_archive, ground_truth_table.attrs["made_from"])

    @asset_check(
        asset=DATASET_PIXEL_HISTOGRAM,
        additional_ins={"training_archive": AssetIn(TRAINING_ARCHIVE)},
        description="All cells in it were made from the archive as it is now.",
    )
    def its_counts_are_of_this_archive(
        dataset_pixel_histogram: dict[str, Any], training_archive: dict[str, Any]
    ) -> AssetCheckResult:
        return of_this_archive(training_archive, dataset_pixel_histogram["made_from"])

    return [
        *(_of_the_audit(alarm) for alarm in ALARMS),
        every_path_has_a_label,
        every_file_is_accounted_for,
        its_rows_are_of_this_archive,
        its_counts_are_of_this_archive,
    ]


def _of_the_audit(alarm: Alarm) -> AssetChecksDefinition:
    """What the audit found, as a check of its own."""

    @asset_check(asset=TRAINING_AUDIT, name=alarm.name, description=alarm.what)
    def check(training_audit: Any) -> AssetCheckResult:
        found = training_audit.attrs["alarms"].get(alarm.name)
        if found is None:
            raise Failure(
                f"the audit that is stored knows no alarm {alarm.name!r}: materialize "
                "training_audit again",
                allow_retries=False,
            )
        offenders = training_audit[training_audit["alarm"] == alarm.name]
        details = offenders["path"] + ": " + offenders["detail"]
        return AssetCheckResult(
            passed=found["passed"],
            severity=AssetCheckSeverity[alarm.severity],
            description=found["says"],
            metadata={"images": len(offenders), "which": _shown(details)},
        )

    return check


def _shown(paths: "Iterable[str]") -> str:
    return "\n".join(sorted(paths)[:_PATHS_SHOWN]) or "none"
