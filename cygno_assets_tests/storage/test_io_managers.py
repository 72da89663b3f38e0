"""IO managers, called as Dagster calls them, on a local disk and on a real S3 server."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dagster import AssetKey, InputContext, OutputContext, build_input_context, build_output_context

from cygno_assets.storage.io_managers import RawImageIOManager, TensorIOManager
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


@pytest.mark.parametrize("manager", [RawImageIOManager, TensorIOManager])
def test_what_is_not_stored_cannot_be_loaded(
    root: UPath, manager: type[RawImageIOManager | TensorIOManager]
) -> None:
    with pytest.raises(FileNotFoundError):
        manager(root).load_input(input_context("cygno-nowhere"))


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
