"""The training dataset's two files, on a local disk and on a real S3 server."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cygno_assets.physics.splits import SPLITS, SplitSpec
from cygno_assets.settings import load_settings
from cygno_assets.storage.locations import data_root, read_whole
from cygno_assets.storage.tables import table_of
from cygno_assets.storage.tensor_table import TensorTable, read_tensor_table, write_tensor_table
from cygno_assets.training.dataset import (
    NAME,
    DatasetError,
    TrainingSet,
    read_dataset,
    read_dataset_rows,
    write_dataset,
)
from cygno_assets.training.splits import make_manifest, splits_hash
from cygno_assets.training.tables import (
    DATASET_COLUMNS,
    GROUND_TRUTH_COLUMNS,
    TENSOR_COLUMNS,
)
from cygno_assets_tests.storage.conftest import s3_settings

if TYPE_CHECKING:
    from pathlib import Path

    from upath import UPath

    from cygno_assets.daq.simulator.bucket import BucketSettings

SPEC, SIDE = "5bec00000000", 4
ENERGIES = {"nuclear": (1.0, 6.0), "electronic": (3.0, 10.0)}


def cells(images: int = 20, spec_hash: str = SPEC, first: int = 0) -> list[TensorTable]:
    """Four cells; each tensor has one value, which its path tells."""
    made = []
    for kind, energies in ENERGIES.items():
        for energy in energies:
            rows, tensors = [], []
            for n in range(first, first + images):
                path = f"{kind}/{energy:g}/{n}"
                digest = hashlib.sha256(path.encode()).hexdigest()
                tensor = np.full((SIDE, SIDE), value(path), np.float32)
                sha256 = hashlib.sha256(tensor).hexdigest()
                rows.append((path, kind, energy, digest, sha256, spec_hash, 0.0, 0.5, 4, 0, 0, 0))
                tensors.append(tensor)
            made.append(TensorTable(table_of(TENSOR_COLUMNS, rows), np.stack(tensors)))
    return made


def value(path: str) -> float:
    return int(hashlib.sha256(path.encode()).hexdigest()[:6], 16) / 2**24


def manifest_of(tables: list[TensorTable], spec: SplitSpec | None = None) -> dict:
    rows = pd.concat([table.rows for table in tables])
    truth = [
        (row.path, row.path, row.recoil_type, row.energy_kev, 576, 576, row.pixel_sha256)
        for row in rows.itertuples()
    ]
    return make_manifest(table_of(GROUND_TRUTH_COLUMNS, truth), spec or SplitSpec(0, 0.2, 0.2))


@pytest.fixture(params=["local", "S3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, store_bucket: BucketSettings) -> UPath:
    if request.param == "local":
        return data_root(load_settings({"home": tmp_path}))
    return data_root(s3_settings(store_bucket)) / tmp_path.name


def written(root: UPath, images: int = 20, seed: int = 0) -> TrainingSet:
    tables = cells(images)
    spec = SplitSpec(seed, 0.2, 0.2)
    write_dataset(root, manifest_of(tables, spec), tables, SPEC, SIDE)
    return read_dataset(root)


def test_tensors_rows_and_table_are_in_one_order_which_is_the_manifests(root: UPath) -> None:
    tables = cells()
    manifest = manifest_of(tables)
    rows = write_dataset(root, manifest, reversed(tables), SPEC, SIDE)
    found = read_dataset(root)
    assert len(found) == 80
    assert (found.spec_hash, found.splits_hash) == (SPEC, manifest["hash"])
    pd.testing.assert_frame_equal(found.rows, rows)
    pd.testing.assert_frame_equal(read_dataset_rows(root), rows)
    assert list(found.rows.columns) == [column.name for column in DATASET_COLUMNS]
    assert list(found.rows["path"]) == [image["path"] for image in manifest["images"]]
    assert list(found.rows["split"]) == [image["split"] for image in manifest["images"]]
    assert found.tensors[:, 0, 0].tolist() == [
        np.float32(value(path)) for path in found.rows["path"]
    ]
    table = read_tensor_table(io.BytesIO(read_whole(root / f"{NAME}.parquet")))
    assert np.array_equal(table.tensors, found.tensors)


def test_labels_energies_splits_and_folds_choose_by_row(root: UPath) -> None:
    found = written(root)
    assert set(found.labels[found.rows["recoil_type"] == "nuclear"]) == {1}
    assert found.labels.sum() == 40
    assert sorted(set(found.energies_kev)) == [1.0, 3.0, 6.0, 10.0]
    parts = [found.split(split) for split in SPLITS]
    assert sum(len(part) for part in parts) == len(found)
    for split, part in zip(SPLITS, parts, strict=True):
        assert set(part.rows["split"]) == {split}
        assert part.tensors[:, 0, 0].tolist() == [
            np.float32(value(path)) for path in part.rows["path"]
        ]
    assert found.energy_folds == ["below 5 keV", "5 to 15 keV"]
    train, test = found.leave_energy_out("5 to 15 keV")
    assert set(train.energies_kev) == {1.0, 3.0}
    assert set(test.energies_kev) == {6.0, 10.0}
    assert len(train.tensors) == len(train) == len(test) == 40
    with pytest.raises(ValueError, match="split = 'dev': must be one of train, validation, test"):
        found.split("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fold = '7 keV': nothing to test on; images are in bel"):
        found.leave_energy_out("7 keV")
    with pytest.raises(ValueError, match="fold = '5 to 15 keV': all images are in it, nothing is"):
        test.leave_energy_out("5 to 15 keV")
    with pytest.raises(IndexError, match=f"a mask of 3 values for {len(found)} images"):
        found.where(np.ones(3, bool))
    nothing = found.where(np.zeros(len(found), bool))
    with pytest.raises(ValueError, match=r"fold = '5 to 15 keV': nothing to test on; .* in none"):
        nothing.leave_energy_out("5 to 15 keV")


def test_locally_tensors_are_mapped_and_nobody_can_write_into_them(tmp_path: Path) -> None:
    found = written(data_root(load_settings({"home": tmp_path})))
    assert isinstance(found.tensors, np.memmap)
    train = found.split("train")
    assert np.shares_memory(train.tensors, found.tensors)
    for tensors in (found.tensors, train.tensors, found.leave_energy_out("below 5 keV")[0].tensors):
        with pytest.raises(ValueError, match="read-only"):
            tensors[0] = 1


def test_a_table_of_pandas_is_the_same(tmp_path: Path) -> None:
    found = written(data_root(load_settings({"home": tmp_path})))
    frame = pd.read_parquet(tmp_path / "data" / f"{NAME}.parquet")
    assert list(frame["path"]) == list(found.rows["path"])
    assert np.array_equal(np.stack([np.stack(t) for t in frame["tensor"]]), found.tensors)


def test_whoever_reads_while_it_is_written_again_sees_the_one_before(root: UPath) -> None:
    before = written(root)
    tables = cells(first=100)
    seen: list[str] = []

    def slowly():
        for cell in tables:
            seen.append(read_dataset(root).splits_hash)
            yield cell

    manifest = manifest_of(tables)
    write_dataset(root, manifest, slowly(), SPEC, SIDE)
    assert seen == [before.splits_hash] * 4
    assert read_dataset(root).splits_hash == manifest["hash"]
    # What was read before may still be looked at, until it is written once more.
    assert before.tensors[0, 0, 0] == np.float32(value(before.rows["path"][0]))
    assert len(list(root.glob("*.npy"))) == 2


def test_arrays_that_nobody_can_be_reading_any_more_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_root(load_settings({"home": tmp_path}))
    for seed in range(3):
        written(root, seed=seed)
    # Somebody may be writing them at this moment.
    assert len(list(root.glob("*.npy"))) == 3
    for array in (tmp_path / "data").glob("*.npy"):
        os.utime(array, (0, 0))
    found = written(root, seed=3)
    assert len(list(root.glob("*.npy"))) == 2  # the new one, and the one before
    assert read_dataset(root).splits_hash == found.splits_hash


def test_tensors_of_two_specifications_are_no_dataset(root: UPath) -> None:
    before = written(root)
    mixed = [*cells()[:3], cells(spec_hash="0ther0000000")[3]]
    with pytest.raises(
        DatasetError,
        match=r"electronic/10/0: its tensor was made by specification 0ther0000000, and tensors of "
        r"another one cannot be put into a dataset of 5bec00000000",
    ):
        write_dataset(root, manifest_of(mixed), mixed, SPEC, SIDE)
    assert read_dataset(root).splits_hash == before.splits_hash
    assert not [path for path in root.iterdir() if ".partial" in path.name]


def test_images_that_the_manifest_does_not_know_are_refused(root: UPath) -> None:
    tables = cells()
    with pytest.raises(DatasetError, match="training_splits knows no such image"):
        write_dataset(root, manifest_of(tables[:3]), tables, SPEC, SIDE)
    manifest = manifest_of(tables)
    manifest["images"][0]["pixel_sha256"] = "0" * 64  # the same path, other pixels
    manifest["hash"] = splits_hash(manifest["rule"], manifest["images"])
    with pytest.raises(DatasetError, match="training_splits knows no such image"):
        write_dataset(root, manifest, tables, SPEC, SIDE)


def test_images_without_a_tensor_are_named(root: UPath) -> None:
    tables = cells()
    with pytest.raises(DatasetError, match=r"20 of 80 images have no tensor: .* and 15 more"):
        write_dataset(root, manifest_of(tables), tables[:3], SPEC, SIDE)
    with pytest.raises(DatasetError, match="the training set has no images"):
        write_dataset(root, {"hash": "0", "images": []}, [], SPEC, SIDE)
    with pytest.raises(FileNotFoundError):
        read_dataset(root)


def test_an_array_that_does_not_fit_its_table_is_told(tmp_path: Path) -> None:
    root = data_root(load_settings({"home": tmp_path}))
    found = written(root)
    [array] = (tmp_path / "data").glob("*.npy")
    whole = array.read_bytes()
    array.unlink()  # `found` has it mapped
    np.save(array, found.tensors[:-1])
    with pytest.raises(DatasetError, match=rf"{array.name}: 79 tensors, and .* has 80 rows"):
        read_dataset(root)
    for left, why in (
        (whole[:-100], "damaged array"),
        (b"", "damaged array"),
        (None, "is gone"),
        (np.zeros((80, SIDE, SIDE)), rf"float64 of shape \(80, {SIDE}, {SIDE}\), no tensors"),
        (np.zeros((80, SIDE, 5), np.float32), "float32 of shape .*, no tensors"),
        (np.zeros((80, SIDE), np.float32), "float32 of shape .*, no tensors"),
        (np.zeros((80, 3, 3), np.float32), "the tensor of .* does not have the sha256"),
    ):
        array.unlink(missing_ok=True)
        if isinstance(left, bytes):
            array.write_bytes(left)
        elif left is not None:
            np.save(array, left)
        with pytest.raises(DatasetError, match=rf"{array.name}.*{why}"):
            read_dataset(root)


def test_a_tensor_with_a_flipped_bit_is_told_by_whoever_reads_it(tmp_path: Path) -> None:
    root = data_root(load_settings({"home": tmp_path}))
    found = written(root)
    [array] = (tmp_path / "data").glob("*.npy")
    data = bytearray(array.read_bytes())
    data[-1] ^= 1  # in the last row
    array.unlink()  # `found` has it mapped
    array.write_bytes(data)
    last = found.rows.iloc[-1]
    for split in (None, last["split"]):
        with pytest.raises(
            DatasetError,
            match=rf"{array.name}: the tensor of {last['path']} \(row 79\) does not have the sha",
        ):
            read_dataset(root, split)
        assert not np.array_equal(read_dataset(root, split, verify=False).tensors[-1], last)
    others = read_dataset(root, "train")
    assert np.array_equal(others.tensors, found.split("train").tensors)


def test_in_a_bucket_a_flipped_bit_of_a_tensor_is_told(store_bucket: BucketSettings) -> None:
    root = data_root(s3_settings(store_bucket)) / "flipped"
    written(root)
    file = root / f"{NAME}.parquet"
    table = read_tensor_table(io.BytesIO(read_whole(file)))
    tensors = table.tensors.copy()
    tensors.view(np.uint32)[7, 0, 0] ^= 1
    forged = io.BytesIO()
    write_tensor_table(TensorTable(table.rows, tensors), forged)  # the pages' own sums are right
    file.write_bytes(forged.getvalue())
    with pytest.raises(DatasetError, match=rf"{NAME}.parquet: the tensor of .* \(row 7\) does not"):
        read_dataset(root)
    assert np.array_equal(read_dataset(root, verify=False).tensors, tensors)


def test_a_manifest_that_is_not_what_its_hash_says_is_refused(root: UPath) -> None:
    tables = cells()
    manifest = manifest_of(tables)
    moved = next(image for image in manifest["images"] if image["split"] == "test")
    moved["split"] = "train"
    with pytest.raises(
        DatasetError, match=f"training_splits has the hash {manifest['hash']}, but what it says now"
    ):
        write_dataset(root, manifest, tables, SPEC, SIDE)
    manifest = manifest_of(tables)
    manifest["rule"]["seed"] = 1
    with pytest.raises(DatasetError, match="training_splits has the hash"):
        write_dataset(root, manifest, tables, SPEC, SIDE)


def test_an_image_that_was_moved_to_another_split_by_hand_is_told(tmp_path: Path) -> None:
    root = data_root(load_settings({"home": tmp_path}))
    found = written(root)
    rows = found.rows.copy()
    rows.attrs = found.rows.attrs
    rows.loc[rows["split"] == "test", "split"] = "train"
    write_tensor_table(TensorTable(rows, found.tensors), tmp_path / "data" / f"{NAME}.parquet")
    with pytest.raises(DatasetError, match=f"its rows are not those of splits {found.splits_hash}"):
        read_dataset(root)
    assert len(read_dataset(root, "train", verify=False)) > len(found.split("train"))


def test_a_table_put_together_by_hand_of_two_specifications_is_refused(tmp_path: Path) -> None:
    """As `pyarrow.concat_tables` makes it: it keeps the metadata of the first."""
    files = []
    for spec_hash in (SPEC, "0ther0000000"):
        root = data_root(load_settings({"home": tmp_path / spec_hash}))
        tables = cells(spec_hash=spec_hash)
        write_dataset(root, manifest_of(tables), tables, spec_hash, SIDE)
        files.append(tmp_path / spec_hash / "data" / f"{NAME}.parquet")
    both = pa.concat_tables([pq.read_table(file) for file in files])
    pq.write_table(both, files[0])
    root = data_root(load_settings({"home": tmp_path / SPEC}))
    for read in (read_dataset, read_dataset_rows):
        with pytest.raises(
            DatasetError,
            match=f"its specification is {SPEC}, but 80 of 160 tensors were made by 0ther0000000",
        ):
            read(root)
    # Nor the rows of the other alone.
    pq.write_table(both.slice(80), files[0])
    with pytest.raises(DatasetError, match="but 80 of 80 tensors"):
        read_dataset(root)


@pytest.mark.parametrize("lacking", ["tensors_file", "splits_hash", "split_rule", "spec_hash"])
def test_a_table_of_tensors_that_is_no_dataset_is_told(tmp_path: Path, lacking: str) -> None:
    root = data_root(load_settings({"home": tmp_path}))
    found = written(root)
    rows = found.rows.copy()
    rows.attrs = {name: value for name, value in found.rows.attrs.items() if name != lacking}
    file = tmp_path / "data" / f"{NAME}.parquet"
    write_tensor_table(TensorTable(rows, found.tensors), file)
    for read in (read_dataset, read_dataset_rows):
        with pytest.raises(DatasetError, match=f"no training dataset .*: no {lacking}"):
            read(root)
    rows.attrs = found.rows.attrs
    write_tensor_table(TensorTable(rows.drop(columns="energy_fold"), found.tensors), file)
    with pytest.raises(DatasetError, match="no energy_fold"):
        read_dataset(root)


@pytest.mark.parametrize("side", [1, 3])
def test_tensors_of_another_side_are_refused(root: UPath, side: int) -> None:
    """Of side 1, numpy would fill a whole tensor with the one value."""
    tables = cells()
    small = TensorTable(tables[3].rows, tables[3].tensors[:, :side, :side])
    with pytest.raises(
        DatasetError, match=rf"electronic/10/0: its tensor has the shape \({side}, {side}\), and"
    ):
        write_dataset(root, manifest_of(tables), [*tables[:3], small], SPEC, SIDE)


def test_a_cell_without_images_may_be_of_another_side(root: UPath) -> None:
    """It is made anew with the others, but nobody need wait for it."""
    tables = cells()
    empty = TensorTable(tables[0].rows.iloc[:0], np.empty((0, 1, 1), np.float32))
    write_dataset(root, manifest_of(tables), [*tables, empty], SPEC, SIDE)
    assert len(read_dataset(root)) == 80


def test_the_archive_is_named(root: UPath) -> None:
    tables = cells()
    write_dataset(root, manifest_of(tables), tables, SPEC, SIDE, archive_sha256="abc")
    assert read_dataset_rows(root).attrs["archive_sha256"] == "abc"


def test_one_cell_at_a_time_is_in_memory(tmp_path: Path) -> None:
    import gc
    import weakref

    given: list[weakref.ref] = []
    alive: list[int] = []

    def one_by_one():
        for number in range(4):
            gc.collect()
            alive.append(sum(ref() is not None for ref in given))
            table = cells()[number]
            # Of the arrays too: a table that is gone may have left its tensors with somebody.
            given.extend(weakref.ref(part) for part in (table, table.rows, table.tensors))
            yield table
            del table

    root = data_root(load_settings({"home": tmp_path}))
    write_dataset(root, manifest_of(cells()), one_by_one(), SPEC, SIDE)
    # That of the loop, which is let go as it takes the next.
    assert alive == [0, 3, 3, 3]
