"""IO managers, called as Dagster calls them, on a local disk and on a real S3 server."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from dagster import (
    AssetKey,
    InputContext,
    MultiPartitionKey,
    MultiPartitionsDefinition,
    OutputContext,
    StaticPartitionsDefinition,
    build_input_context,
    build_output_context,
)

from cygno_assets.storage.io_managers import (
    FigureIOManager,
    FileIOManager,
    JsonIOManager,
    RawImageIOManager,
    TableIOManager,
    TensorIOManager,
)
from cygno_assets.storage.locations import read_whole, write_whole
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from upath import UPath

KEY = AssetKey("asset")
IMAGE = REAL_IMAGES[0].read_bytes()
EVENT = REAL_IMAGES[0].stem


def output_context(partition: str = EVENT) -> OutputContext:
    return build_output_context(asset_key=KEY, partition_key=partition)


def input_context(partition: str = EVENT) -> InputContext:
    return build_input_context(asset_key=KEY, partition_key=partition)


def test_an_image_goes_through_byte_for_byte(root: UPath) -> None:
    images = RawImageIOManager(root)

    images.handle_output(output_context(), IMAGE)

    assert images.load_input(input_context()) == IMAGE
    assert images.stored(KEY, EVENT) == IMAGE
    assert read_whole(root / "asset" / f"{EVENT}.jpg") == IMAGE


def test_what_is_kept_is_what_dagster_loads(root: UPath) -> None:
    images = RawImageIOManager(root)
    assert images.stored(KEY, EVENT) is None

    images.keep(KEY, EVENT, IMAGE)

    assert images.load_input(input_context()) == IMAGE
    assert images.path(KEY, EVENT) == root / "asset" / f"{EVENT}.jpg"


@pytest.mark.parametrize(
    "manager",
    [RawImageIOManager, TensorIOManager, TableIOManager, JsonIOManager, FigureIOManager],
)
def test_what_is_not_stored_cannot_be_loaded(root: UPath, manager: type[FileIOManager]) -> None:
    with pytest.raises(FileNotFoundError):
        manager(root).load_input(input_context("cygno-nowhere"))
    assert manager(root).stored(KEY, "cygno-nowhere") is None


def test_a_table_goes_through_with_its_types_and_attributes(root: UPath) -> None:
    tables = TableIOManager(root)
    table = pd.DataFrame({"path": ["a", "ü"], "energy_kev": [0.5, 30.0]}).astype({"path": "str"})
    table.attrs["made_from"] = "these"

    tables.handle_output(output_context(), table)

    loaded = tables.load_input(input_context())
    pd.testing.assert_frame_equal(loaded, table)
    assert loaded.attrs == tables.stored(KEY, EVENT).attrs == {"made_from": "these"}
    data = read_whole(root / "asset" / f"{EVENT}.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(data)), table)


def test_json_goes_through(root: UPath) -> None:
    values = JsonIOManager(root)
    value = {"images": 3, "counts": [0, 2**60], "energy": 0.5, "none": None, "text": "µ"}

    values.handle_output(output_context(), value)

    assert values.load_input(input_context()) == values.stored(KEY, EVENT) == value


def test_a_figure_goes_through_byte_for_byte(root: UPath) -> None:
    figures = FigureIOManager(root)
    figures.handle_output(output_context(), IMAGE)
    assert figures.load_input(input_context()) == figures.stored(KEY, EVENT) == IMAGE
    assert read_whole(root / "asset" / f"{EVENT}.png") == IMAGE


@pytest.mark.parametrize("manager", [TensorIOManager, TableIOManager, JsonIOManager])
@pytest.mark.parametrize("left", [b"", b"{", b"PAR1PAR1", b"\x93NUMPY\x01\x00v\x00"])
def test_a_damaged_file_is_a_value_error_and_not_stored(
    root: UPath, manager: type[FileIOManager], left: bytes
) -> None:
    write_whole(manager(root).path(KEY, EVENT), left)
    assert manager(root).stored(KEY, EVENT) is None
    with pytest.raises(ValueError, match=r"."):
        manager(root).load_input(input_context())


def test_a_partition_of_two_dimensions_is_a_file_in_a_folder(root: UPath) -> None:
    values = JsonIOManager(root)
    key = MultiPartitionKey({"recoil": "NR", "energy": "0.5keV"})
    cells = MultiPartitionsDefinition(
        {
            "recoil": StaticPartitionsDefinition(["NR"]),
            "energy": StaticPartitionsDefinition(["0.5keV"]),
        }
    )
    output = build_output_context(asset_key=KEY, partition_key=key, asset_partitions_def=cells)

    values.handle_output(output, {"images": 1})

    assert values.path(KEY, key) == root / "asset" / "0.5keV" / "NR.json"
    assert values.stored(KEY, key) == values.stored(KEY, "0.5keV|NR") == {"images": 1}


def test_a_tensor_goes_through_to_the_bit(root: UPath) -> None:
    tensors = TensorIOManager(root)
    tensor = np.random.default_rng(1).random((128, 128), np.float32)

    tensors.handle_output(output_context(), tensor)

    loaded = tensors.load_input(input_context())
    assert (loaded.dtype, loaded.shape) == (np.float32, (128, 128))
    assert loaded.tobytes() == tensor.tobytes()
    file = io.BytesIO(read_whole(root / "asset" / f"{EVENT}.npy"))
    np.testing.assert_array_equal(np.load(file, allow_pickle=False), tensor)


def test_a_tensor_is_replaced(root: UPath) -> None:
    tensors = TensorIOManager(root)

    for value in (1.0, 2.0):
        tensors.handle_output(output_context(), np.full((2, 2), value, np.float32))

    assert tensors.load_input(input_context()).tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_pickles_are_refused_both_ways(root: UPath) -> None:
    tensors = TensorIOManager(root)
    objects = np.array([{"any": "object"}], dtype=object)

    with pytest.raises(ValueError, match="allow_pickle=False"):
        tensors.handle_output(output_context(), objects)
    with pytest.raises(FileNotFoundError):
        read_whole(root / "asset" / f"{EVENT}.npy")

    file = io.BytesIO()
    np.save(file, objects, allow_pickle=True)
    write_whole(root / "asset" / f"{EVENT}.npy", file.getvalue())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        tensors.load_input(input_context())
