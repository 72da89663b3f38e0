"""Checks of the training set's tables: that nothing was dropped in silence."""

from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetIn,
    asset_check,
)

from cygno_assets.assets.training import (
    GROUND_TRUTH_TABLE,
    TRAINING_ARCHIVE,
    UNLABELLED_PATHS,
    archive_limits,
    open_archive,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cygno_assets.settings import Settings

_PATHS_SHOWN = 100


def build_training_checks(settings: "Settings") -> list[AssetChecksDefinition]:
    """The checks of the training set, for these settings."""
    limits = archive_limits(settings)

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
        with open_archive(training_archive, limits) as archive:
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

    return [every_path_has_a_label, every_file_is_accounted_for]


def _shown(paths: "Iterable[str]") -> str:
    return "\n".join(sorted(paths)[:_PATHS_SHOWN]) or "none"
