"""The training set's tables: their columns with units, and choosing rows by label. No Dagster."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cygno_assets.storage.tables import Column, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from cygno_assets.physics.ground_truth import RecoilType
    from cygno_assets.training.survey import SurveyedImage


_PATH = Column("path", "str", "path in the archive")
_RECOIL_TYPE = Column("recoil_type", "str", "`nuclear` or `electronic`, from the path")
_ENERGY = Column("energy_kev", "float64", "energy of the recoil in keV, from the path")
_PIXELS = Column("pixel_sha256", "str", "sha256 of the decoded pixels, row by row")

GROUND_TRUTH_COLUMNS = (
    _PATH,
    Column("file_name", "str", "last part of the path"),
    _RECOIL_TYPE,
    _ENERGY,
    Column("width_px", "int32", "width in pixels of about 0.6 mm"),
    Column("height_px", "int32", "height in pixels of about 0.6 mm"),
    _PIXELS,
)
UNLABELLED_COLUMNS = (
    _PATH,
    Column("reason", "str", "which rule it does not fit"),
)
TENSOR_COLUMNS = (
    _PATH,
    _RECOIL_TYPE,
    _ENERGY,
    _PIXELS,
    Column("tensor_sha256", "str", "sha256 of the tensor's float32 values, row by row"),
    Column("spec_hash", "str", "of the specification that the tensor was made by"),
    Column("clipped_low_share", "float64", "of the tensor's pixels below the window, in [0, 1]"),
    Column("clipped_high_share", "float64", "of the tensor's pixels above the window, in [0, 1]"),
    Column("bright_inside", "int32", "bright squares (8 × 8 pixels) inside the crop"),
    Column("bright_at_edge", "int32", "those of them that touch the crop's edge"),
    Column("bright_outside", "int32", "bright squares outside the crop"),
    Column("saturated_px", "int32", "pixels of 255 ADU in the whole image"),
)
_SPLIT = Column("split", "str", "`train`, `validation` or `test`, by lot from the pixels")
_ENERGY_FOLD = Column("energy_fold", "str", "range of energies to leave out together, to test on")
MANIFEST_COLUMNS = (_PATH, _PIXELS, _RECOIL_TYPE, _ENERGY, _SPLIT, _ENERGY_FOLD)
DATASET_COLUMNS = (*TENSOR_COLUMNS, _SPLIT, _ENERGY_FOLD)
OFFENDER_COLUMNS = (
    Column("alarm", "str", "which one it belongs to"),
    _PATH,
    _RECOIL_TYPE,
    _ENERGY,
    _SPLIT,
    Column("detail", "str", "what is wrong with it"),
)


def ground_truth_rows(images: Sequence[SurveyedImage]) -> pd.DataFrame:
    """One row for each image, in their order; of none, a table without rows."""
    return table_of(
        GROUND_TRUTH_COLUMNS,
        [
            (
                image.path,
                image.path.rpartition("/")[2],
                image.label.recoil_type,
                image.label.energy_kev,
                image.width,
                image.height,
                image.pixel_sha256,
            )
            for image in images
        ],
    )


def unlabelled_rows(reasons: Mapping[str, str]) -> pd.DataFrame:
    """One row for each path that fits no rule."""
    return table_of(UNLABELLED_COLUMNS, list(reasons.items()))


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all these ground truth tables, sorted by path."""
    import pandas as pd

    empty = ground_truth_rows([])
    rows = pd.concat([empty, *tables], ignore_index=True).sort_values("path", ignore_index=True)
    rows.attrs = {}  # of which part?
    return rows


def rows_digest(table: pd.DataFrame) -> str:
    """sha256, hexadecimal, of a ground truth table's paths and pixels, row by row."""
    digest = hashlib.sha256()
    for path, pixels in zip(table["path"], table["pixel_sha256"], strict=True):
        digest.update(f"{pixels} {path}\n".encode())
    return digest.hexdigest()


def population(table: pd.DataFrame) -> dict[tuple[RecoilType, float], int]:
    """Images by recoil type and energy in keV, of a ground truth table."""
    counted = table.groupby(["recoil_type", "energy_kev"]).size()
    return {key: int(count) for key, count in counted.items()}  # type: ignore[misc]  # pandas says Hashable


def pick(
    table: pd.DataFrame, count: int, seed: int, recoil_type: RecoilType | None = None
) -> pd.DataFrame:
    """Up to `count` rows of a ground truth table, drawn by label; in order of energy.

    Args:
        table: ground truth; the order of its rows does not matter.
        count: how many; all there are, if these are fewer.
        seed: same seed, same rows.
        recoil_type: only of this one; None draws from all.
    """
    chosen = table if recoil_type is None else table[table["recoil_type"] == recoil_type]
    drawn = chosen.sort_values("path").sample(min(count, len(chosen)), random_state=seed)
    return drawn.sort_values(["energy_kev", "path"], ignore_index=True)
