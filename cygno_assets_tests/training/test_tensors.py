"""Tensors of training images are what a live image's tensor would be."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cygno_assets.physics.images import ImageError, clipped_shares, decode_image, preprocess
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.storage.tensor_table import TensorTable
from cygno_assets.training import tensors as tensors_module
from cygno_assets.training.archive import Archive
from cygno_assets.training.survey import labelled, survey
from cygno_assets.training.tables import TENSOR_COLUMNS, ground_truth_rows
from cygno_assets.training.tensors import make_tensors, tensors_digest
from cygno_assets_tests.training.archives import cell, png, write_archive
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_PIXELS = 10**6
SPEC = PreprocessSpec()


def made(path: Path, members: Mapping[str, bytes], spec: PreprocessSpec = SPEC) -> TensorTable:
    write_archive(path, members)
    with Archive(path) as archive:
        labels = labelled(archive.members)[0]
        rows = ground_truth_rows(survey(archive, labels, max_pixels=MAX_PIXELS).images)
        parts = list(make_tensors(archive, rows, spec, max_pixels=MAX_PIXELS))
    return TensorTable(
        pd.concat([part.rows for part in parts], ignore_index=True),
        np.concatenate([part.tensors for part in parts]),
    )


@pytest.mark.parametrize("spec", [SPEC, PreprocessSpec(40, 60.5, 130)], ids=["default", "other"])
def test_a_tensor_is_the_live_ones_to_the_last_bit(tmp_path: Path, spec: PreprocessSpec) -> None:
    members = {
        **cell("NR/6_keV", *range(20)),
        **{f"x/ER/0.5_keV/{file.name}": file.read_bytes() for file in REAL_IMAGES},
    }
    found = made(tmp_path / "set.zip", members, spec)
    assert list(found.rows["path"]) == list(members)
    assert list(found.rows.columns) == [column.name for column in TENSOR_COLUMNS]
    for row, tensor in zip(found.rows.itertuples(index=False), found.tensors, strict=True):
        image = decode_image(members[row.path], max_pixels=MAX_PIXELS)
        live = preprocess(image, spec)
        assert tensor.dtype == live.dtype == np.float32
        assert tensor.tobytes() == live.tobytes()
        assert row.tensor_sha256 == hashlib.sha256(live.tobytes()).hexdigest()
        assert row.pixel_sha256 == hashlib.sha256(image.tobytes()).hexdigest()
        assert (row.clipped_low_share, row.clipped_high_share) == clipped_shares(image, spec)
        assert row.spec_hash == spec.hash


def test_an_empty_cell_has_no_tensors(tmp_path: Path) -> None:
    found = made(tmp_path / "set.zip", {})
    assert (len(found.rows), found.tensors.shape) == (0, (0, 128, 128))


def test_images_smaller_than_the_crop_are_refused_by_name(tmp_path: Path) -> None:
    small = {f"NR/6_keV/small-{n}.png": png(np.full((127, 300), n, np.uint8)) for n in range(20)}
    with pytest.raises(ImageError) as refused:
        made(tmp_path / "set.zip", {**cell("NR/6_keV", 1), **small})
    assert str(refused.value).startswith(
        "20 of 21 images refused: NR/6_keV/small-0.png: image of 300 × 127 pixels is smaller than"
    )
    assert str(refused.value).endswith("; and 10 more")


def test_where_the_light_is_and_what_is_saturated_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = np.rint(rng.normal(100, 4, (576, 576))).astype(np.uint8)
    pixels[10:30, 10:30] = 255
    [row] = made(tmp_path / "set.zip", {"NR/6_keV/a.png": png(pixels)}).rows.itertuples()
    assert (row.bright_inside, row.bright_at_edge, row.saturated_px) == (0, 0, 400)
    assert row.bright_outside > 0


def test_the_digest_is_of_images_specification_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tensors_digest("a", SPEC)
    assert tensors_digest("a", PreprocessSpec()) == first
    others = {tensors_digest("b", SPEC), tensors_digest("a", PreprocessSpec(window_low=60))}
    monkeypatch.setattr(tensors_module, "CODE_VERSION", "another")
    others.add(tensors_digest("a", SPEC))
    assert len({first, *others}) == 4


def test_an_image_that_pillow_keeps_in_pieces_is_digested_as_well(tmp_path: Path) -> None:
    """Above 16 MB, Pillow's block of memory."""
    pixels = np.random.default_rng(1).integers(0, 256, (4200, 4200), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    path = tmp_path / "set.zip"
    write_archive(path, {"NR/6_keV/large.png": file.getvalue()})
    with Archive(path) as archive:
        [image] = survey(archive, labelled(archive.members)[0], max_pixels=10**8).images
    assert image.pixel_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
