"""Tables with tensors: what goes in comes out, by us, by pandas and by `datasets`."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cygno_assets.storage.tensor_table import (
    TensorTable,
    read_rows,
    read_tensor_table,
    write_tensor_table,
    write_tensor_tables,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


IO = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(images: int, side: int = 4, **attrs: object) -> TensorTable:
    tensors = np.random.default_rng(images).random((images, side, side), np.float32)
    rows = pd.DataFrame(
        {
            "path": pd.Series([f"{n}.png" for n in range(images)], dtype="str"),
            "energy_kev": np.arange(images, dtype=np.float64),
            "saturated_px": np.arange(images, dtype=np.int32),
        }
    )
    rows.attrs = attrs
    return TensorTable(rows, tensors)


def same(one: TensorTable, other: TensorTable) -> bool:
    pd.testing.assert_frame_equal(one.rows, other.rows)
    assert one.rows.attrs == other.rows.attrs
    assert one.tensors.dtype == other.tensors.dtype
    return np.array_equal(one.tensors, other.tensors, equal_nan=True)


@pytest.mark.parametrize("images", [0, 1, 99, 100, 101, 250])
def test_what_goes_in_comes_out(tmp_path: Path, images: int) -> None:
    before = table(images, spec_hash="abc", made_from={"6keV|NR": None})
    write_tensor_table(before, tmp_path / "t.parquet")
    assert same(read_tensor_table(tmp_path / "t.parquet"), before)
    pd.testing.assert_frame_equal(read_rows(tmp_path / "t.parquet"), before.rows)
    buffer = io.BytesIO()
    write_tensor_table(before, buffer)
    assert same(read_tensor_table(io.BytesIO(buffer.getvalue())), before)


@settings(IO, max_examples=50)
@given(
    tensors=st.tuples(st.integers(0, 5), st.integers(1, 9)).flatmap(
        lambda n: arrays(np.float32, (n[0], n[1], n[1]))
    )
)
def test_every_value_comes_out_to_the_last_bit(tmp_path: Path, tensors: np.ndarray) -> None:
    rows = pd.DataFrame({"n": np.arange(len(tensors), dtype=np.int32)})
    write_tensor_table(TensorTable(rows, tensors), tmp_path / "t.parquet")
    assert read_tensor_table(tmp_path / "t.parquet").tensors.tobytes() == tensors.tobytes()


def test_a_memory_map_is_written_as_well(tmp_path: Path) -> None:
    before = table(150)
    np.save(tmp_path / "t.npy", before.tensors)
    mapped = np.load(tmp_path / "t.npy", mmap_mode="r")
    write_tensor_table(TensorTable(before.rows, mapped), tmp_path / "t.parquet")
    assert same(read_tensor_table(tmp_path / "t.parquet"), before)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (table(3, 4, spec_hash="b"), "attrs of the first is {'spec_hash': 'a'}, of number 2"),
        (table(3, 5, spec_hash="a"), "side of the first is 4, of number 2 5"),
        (
            TensorTable(pd.DataFrame({"path": ["0.png"]}), np.zeros((1, 4, 4), np.float32)),
            "columns of the first is ",
        ),
    ],
    ids=["attrs", "side", "columns"],
)
def test_tables_that_are_not_alike_are_not_put_into_one_file(
    tmp_path: Path, other: TensorTable, says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        write_tensor_tables([table(2, 4, spec_hash="a"), other], tmp_path / "t.parquet")


def test_pandas_opens_it(tmp_path: Path) -> None:
    before = table(3, 128)
    write_tensor_table(before, tmp_path / "t.parquet")
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert list(frame.columns) == ["path", "energy_kev", "saturated_px", "tensor"]
    for tensor, expected in zip(frame["tensor"], before.tensors, strict=True):
        assert np.array_equal(np.stack(tensor), expected)


def test_datasets_opens_it_as_squares_and_we_do_where_datasets_is_loaded(tmp_path: Path) -> None:
    """In a process of its own: `datasets` registers its types with pyarrow for good."""
    before = table(3, 128)
    write_tensor_table(before, tmp_path / "t.parquet")
    np.save(tmp_path / "expected.npy", before.tensors)
    code = f"""
import numpy as np, pandas as pd
from datasets import load_dataset
from cygno_assets.storage.tensor_table import read_rows, read_tensor_table
file, expected = {str(tmp_path / "t.parquet")!r}, np.load({str(tmp_path / "expected.npy")!r})
found = load_dataset("parquet", data_files=file, split="train", cache_dir={str(tmp_path / "c")!r})
tensor = found.features["tensor"]
assert (tensor.shape, tensor.dtype) == ((128, 128), "float32"), tensor
values = found.with_format("numpy")["tensor"][:]
assert values.shape == (3, 128, 128), values.shape
assert values.dtype == np.float32 and np.array_equal(values, expected)
assert found["path"][:] == ["0.png", "1.png", "2.png"]
assert found.features["energy_kev"].dtype == "float64"
assert np.array_equal(read_tensor_table(file).tensors, expected)
assert np.array_equal(np.stack([np.stack(t) for t in pd.read_parquet(file)["tensor"]]), expected)
import os
os._exit(0)  # its native threads sometimes abort an orderly end: not what is tested here
"""
    environ = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("damage", [b"", b"PAR1", None, "other"])
def test_what_is_no_such_file_is_told(tmp_path: Path, damage: bytes | str | None) -> None:
    file = tmp_path / "t.parquet"
    write_tensor_table(table(3), file)
    if damage == "other":
        pd.DataFrame({"n": [1]}).to_parquet(file)
    else:
        file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    for read in (read_tensor_table, read_rows):
        with pytest.raises(ValueError, match=r"damaged table|no table of tensors"):
            read(file)
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "none.parquet")


@settings(IO, max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.9124199659373285, bit=1)
def test_a_file_with_a_flipped_bit_is_told_or_is_the_same(
    tmp_path: Path, place: float, bit: int
) -> None:
    told_or_the_same(tmp_path / "t.parquet", lambda size: int(place * size), bit)


@settings(IO, max_examples=200)
@given(place=st.integers(1, 2000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_footer_is_told_or_changes_nothing(
    tmp_path: Path, place: int, bit: int
) -> None:
    """There are the columns' names and the `attrs`; Parquet has no sum of it."""
    told_or_the_same(tmp_path / "t.parquet", lambda size: size - place, bit)


def told_or_the_same(file: Path, place: Callable[[int], int], bit: int) -> None:
    before = table(8, 16, spec_hash="abc", made_from={"6keV|NR": "def"})
    write_tensor_table(before, file)
    data = bytearray(file.read_bytes())
    data[place(len(data))] ^= 1 << bit
    file.write_bytes(data)
    try:
        found = read_tensor_table(file)
    except ValueError:
        return
    # What is left are headers that are not needed.
    assert same(found, before)


@pytest.mark.parametrize(
    "tensors",
    [np.zeros((2, 4, 4), np.float32), np.zeros((3, 4, 5), np.float32), np.zeros((3, 4, 4))],
    ids=["fewer", "not square", "float64"],
)
def test_rows_and_tensors_must_fit(tensors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tensors"):
        TensorTable(pd.DataFrame({"n": [1, 2, 3]}), tensors)
