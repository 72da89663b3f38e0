"""The training dataset: what someone who trains a model loads.

Two files of the same rows in the same order: a Parquet table, which any program opens, and all
its tensors as one .npy that is mapped into memory. The table names its array, and is written
last, so whoever reads in between sees the dataset that was there before.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cygno_assets.physics.splits import SPLITS
from cygno_assets.storage.locations import local_path, read_whole, whole_file
from cygno_assets.storage.objects import opened
from cygno_assets.storage.tables import row_dicts, table_of
from cygno_assets.storage.tensor_table import (
    ROWS_AT_ONCE,
    TensorTable,
    read_rows,
    read_tensor_table,
    write_tensor_tables,
)
from cygno_assets.training.splits import splits_hash
from cygno_assets.training.tables import DATASET_COLUMNS, MANIFEST_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray
    from upath import UPath

    from cygno_assets.physics.splits import Split

NAME = "training_dataset"
_TABLE = f"{NAME}.parquet"
_PATHS_SHOWN = 5
_ATTRS = ("spec_hash", "splits_hash", "split_rule", "tensors_file")
"""What a dataset's table says of itself, whoever reads it; and `archive_sha256`."""
_KEPT_S = 3600.0  # more than any writing takes


class DatasetError(ValueError):
    """Tensors, or files, that do not make one dataset; the text says which and why."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Tensors and what they show.

    Attributes:
        tensors: float32 of shape (images, side, side), in [0, 1], read-only. A memory map as long
            as it is the whole dataset or one split; a copy of a choice of rows.
        rows: a row for each tensor, with DATASET_COLUMNS.
        spec_hash: of the specification that all tensors were made by.
        splits_hash: of the manifest `training_splits`.
    """

    tensors: NDArray[np.float32]
    rows: pd.DataFrame
    spec_hash: str
    splits_hash: str

    def __len__(self) -> int:
        """Images."""
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 of shape (images,): 1 for a nuclear recoil, 0 for an electron recoil."""
        return np.asarray(self.rows["recoil_type"] == "nuclear", np.int64)

    @property
    def energies_kev(self) -> NDArray[np.float64]:
        """float64 of shape (images,): energies in keV."""
        return np.asarray(self.rows["energy_kev"], np.float64)

    @property
    def energy_folds(self) -> Sequence[str]:
        """Names of the folds that have images, for `leave_energy_out`; energies ascending."""
        first = self.rows.sort_values("energy_kev")["energy_fold"]
        return list(dict.fromkeys(first))

    def split(self, split: Split) -> TrainingSet:
        """The images of one split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split = {split!r}: must be one of {', '.join(SPLITS)}")
        return self.where(np.asarray(self.rows["split"] == split))

    def leave_energy_out(self, fold: str) -> tuple[TrainingSet, TrainingSet]:
        """The images to train on, and those of the fold's energies to test on.

        Args:
            fold: one of `energy_folds`.

        Raises:
            ValueError: no image is in this fold, or all are, which leaves none to train on.
        """
        folds = self.energy_folds
        if fold not in folds:
            raise ValueError(
                f"fold = {fold!r}: nothing to test on; images are in {', '.join(folds) or 'none'}"
            )
        if len(folds) == 1:
            raise ValueError(f"fold = {fold!r}: all images are in it, nothing is left to train on")
        left_out = np.asarray(self.rows["energy_fold"] == fold)
        return self.where(~left_out), self.where(left_out)

    def where(self, chosen: NDArray[np.bool_]) -> TrainingSet:
        """The images chosen by a mask.

        Args:
            chosen: bool of shape (images,).

        Returns:
            Their tensors, a view if they lie together and else a copy, and their rows, numbered
            from 0.

        Raises:
            IndexError: the mask has another length.
        """
        if len(chosen) != len(self.rows):
            raise IndexError(f"a mask of {len(chosen)} values for {len(self.rows)} images")
        places = np.flatnonzero(chosen)
        together = places.size and places[-1] - places[0] + 1 == places.size
        tensors = self.tensors[places[0] : places[-1] + 1] if together else self.tensors[places]
        tensors.flags.writeable = False
        return replace(self, tensors=tensors, rows=self.rows[chosen].reset_index(drop=True))


def write_dataset(
    root: UPath,
    manifest: Mapping[str, Any],
    cells: Iterable[TensorTable],
    spec_hash: str,
    side: int,
    *,
    archive_sha256: str | None = None,
) -> pd.DataFrame:
    """Puts cells together in the manifest's order: one, or a part of it, is in memory at a time.

    Args:
        root: folder or bucket prefix of the dataset's files.
        manifest: of `make_manifest`.
        cells: tensors of all images in it, in any order and any parts.
        spec_hash: of the specification that all must have been made by.
        side: of the tensors, in pixels.
        archive_sha256: of the archive that they were made from, if it is known; for the table's
            `attrs`.

    Returns:
        The table, without its tensors.

    Raises:
        DatasetError: tensors of another specification or side, of images that are not in the
            manifest, or not of all that are; or the manifest is not what its hash says.
    """
    images = manifest["images"]
    if not images:
        raise DatasetError("the training set has no images")
    if (found_hash := splits_hash(manifest["rule"], images)) != manifest["hash"]:
        raise DatasetError(
            f"training_splits has the hash {manifest['hash']}, but what it says now has "
            f"{found_hash}; materialize it again"
        )
    places = {image["path"]: place for place, image in enumerate(images)}
    found: list[tuple[Any, ...] | None] = [None] * len(images)
    table, before = root / _TABLE, _named(root)
    array = root / f"{NAME}-{manifest['hash']}-{spec_hash}.npy"
    # The inner one is there first.
    with whole_file(table) as parquet, whole_file(array) as file:
        shape = (len(images), side, side)
        np.lib.format.open_memmap(file, "w+", np.float32, shape)
        # A disk that is full is told here, as an error; told by the map it would end the process.
        with file.open("r+b") as whole:
            os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
        for cell in cells:
            if cell.rows.empty:  # of whatever side
                continue
            if cell.tensors.shape[1:] != (side, side):
                raise DatasetError(
                    f"{cell.rows['path'].iloc[0]}: its tensor has the shape "
                    f"{cell.tensors.shape[1:]}, and those of this dataset have {(side, side)}; "
                    "materialize training_tensors again"
                )
            # Mapped for each cell anew: what a map has touched counts as this process's memory.
            tensors = np.load(file, mmap_mode="r+", allow_pickle=False)
            for row, tensor in zip(row_dicts(cell.rows), cell.tensors, strict=True):
                place = _place(row, places, images, spec_hash)
                found[place] = tuple(
                    (images[place] | row)[column.name] for column in DATASET_COLUMNS
                )
                tensors[place] = tensor
        missing = [path for path, place in places.items() if found[place] is None]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(images)} images have no tensor: {_shown(missing)}"
            )
        rows = table_of(DATASET_COLUMNS, [row for row in found if row is not None])
        rows.attrs = {
            "spec_hash": spec_hash,
            "splits_hash": manifest["hash"],
            "split_rule": manifest["rule"],
            "archive_sha256": archive_sha256,
            "tensors_file": array.name,
        }
        write_tensor_tables(
            (
                TensorTable(
                    rows.iloc[first : first + ROWS_AT_ONCE],
                    np.load(file, mmap_mode="r", allow_pickle=False)[first : first + ROWS_AT_ONCE],
                )
                for first in range(0, len(rows), ROWS_AT_ONCE)
            ),
            parquet,
        )
    # Whoever has just read the table before may still open its array; and one that is new may be
    # of somebody who writes at the same time.
    for other in root.glob(f"{NAME}-*.npy"):
        with suppress(FileNotFoundError):  # somebody else has deleted it
            old = other.stat().st_mtime < time.time() - _KEPT_S
            if old and other.name not in {array.name, before}:
                other.unlink()
    return rows


def read_dataset(root: UPath, split: Split | None = None, *, verify: bool = True) -> TrainingSet:
    """Opens the dataset; on this machine its tensors are mapped, elsewhere the table is fetched.

    Args:
        root: folder or bucket prefix of its files.
        split: only this one; None is all of it.
        verify: compare the tensors that are returned, one after the other, with `tensor_sha256`,
            and the table with `splits_hash`.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: the files do not belong together, or are of several specifications, or are
            not what their digests say.
        ValueError: a file is damaged, or there is no such split.
    """
    local = local_path(root / _TABLE)
    if local is None:
        file = _TABLE
        table = read_tensor_table(io.BytesIO(read_whole(root / _TABLE)))
        rows, tensors = _one_dataset(table.rows), table.tensors
        tensors.flags.writeable = False
    else:
        rows = _one_dataset(read_rows(local))
        file = rows.attrs["tensors_file"]
        tensors = _mapped(local.with_name(file), len(rows))
    whole = TrainingSet(tensors, rows, rows.attrs["spec_hash"], rows.attrs["splits_hash"])
    wanted = whole if split is None else whole.split(split)
    if verify:
        _verify_splits(rows)
        _verify_tensors(file, tensors, rows if split is None else rows[rows["split"] == split])
    return wanted


def read_dataset_rows(root: UPath) -> pd.DataFrame:
    """The dataset's table, without its tensors.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: it is another table, or of several specifications.
        ValueError: the file is damaged.
    """
    return _one_dataset(read_rows(opened(root / _TABLE)))


def _one_dataset(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, as they are.

    Raises:
        DatasetError: they are of no dataset, or of several.
    """
    lacking = [name for name in _ATTRS if name not in rows.attrs]
    lacking += [column.name for column in DATASET_COLUMNS if column.name not in rows]
    if lacking:
        raise DatasetError(f"{_TABLE}: no training dataset of this version: no {lacking[0]}")
    spec_hash = rows.attrs["spec_hash"]
    others = rows[rows["spec_hash"] != spec_hash]
    if len(others):
        raise DatasetError(
            f"{_TABLE}: its specification is {spec_hash}, but {len(others)} of {len(rows)} tensors "
            f"were made by {_shown(sorted(others['spec_hash'].unique()))}"
        )
    return rows


def _mapped(array: Path, images: int) -> NDArray[np.float32]:
    try:
        tensors: NDArray[np.float32] = np.load(array, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DatasetError(f"{array.name} is gone, which {_TABLE} names") from None
    except (ValueError, EOFError) as error:  # EOFError is numpy's, of an empty file
        raise DatasetError(f"{array.name}: damaged array: {error}") from None
    shape = tensors.shape
    if tensors.dtype != np.float32 or len(shape) != 3 or shape[1] != shape[2]:
        raise DatasetError(f"{array.name}: {tensors.dtype} of shape {shape}, no tensors")
    if shape[0] != images:
        raise DatasetError(f"{array.name}: {shape[0]} tensors, and {_TABLE} has {images} rows")
    return tensors


def _verify_splits(rows: pd.DataFrame) -> None:
    """Compares who is in which split with the hash of it all.

    Raises:
        DatasetError: it is not so.
    """
    images = row_dicts(rows[[column.name for column in MANIFEST_COLUMNS]])
    if splits_hash(rows.attrs["split_rule"], images) != rows.attrs["splits_hash"]:
        raise DatasetError(
            f"{_TABLE}: its rows are not those of splits {rows.attrs['splits_hash']}, which it "
            "names: changed since it was made"
        )


def _verify_tensors(file: str, tensors: NDArray[np.float32], rows: pd.DataFrame) -> None:
    """Compares tensors with their digests; a map's are read anew, one at a time.

    For what a map has touched counts as this process's memory.

    Args:
        file: they are in, for the error.
        tensors: of the whole dataset.
        rows: some of the dataset's, with their places as index.

    Raises:
        DatasetError: one is another than when the dataset was made.
    """
    for place, path, digest in zip(rows.index, rows["path"], rows["tensor_sha256"], strict=True):
        if hashlib.sha256(_bytes_of(tensors, place)).hexdigest() != digest:
            raise DatasetError(
                f"{file}: the tensor of {path} (row {place}) does not have the sha256 that "
                f"{_TABLE} has: damaged, or changed since it was made"
            )


def _bytes_of(tensors: NDArray[np.float32], place: int) -> Any:
    if not isinstance(tensors, np.memmap):
        return np.ascontiguousarray(tensors[place])
    side = tensors.shape[1]
    size = side * side * tensors.itemsize
    return np.fromfile(str(tensors.filename), np.uint8, size, offset=tensors.offset + place * size)


def _place(
    row: Mapping[str, Any],
    places: Mapping[str, int],
    images: Sequence[Mapping[str, Any]],
    spec_hash: str,
) -> int:
    """Where a tensor belongs.

    Raises:
        DatasetError: nowhere.
    """
    if row["spec_hash"] != spec_hash:
        raise DatasetError(
            f"{row['path']}: its tensor was made by specification {row['spec_hash']}, and tensors "
            f"of another one cannot be put into a dataset of {spec_hash}; materialize "
            "training_tensors again"
        )
    place = places.get(row["path"])
    if place is None or images[place]["pixel_sha256"] != row["pixel_sha256"]:
        raise DatasetError(
            f"{row['path']}: training_splits knows no such image; materialize ground_truth_table "
            "and training_splits again"
        )
    return place


def _named(root: UPath) -> str | None:
    """The array that the table of now names; None if there is no table."""
    try:
        return str(read_dataset_rows(root).attrs["tensors_file"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _shown(paths: Sequence[str]) -> str:
    more = len(paths) - _PATHS_SHOWN
    return ", ".join(paths[:_PATHS_SHOWN]) + (f" and {more} more" if more > 0 else "")
