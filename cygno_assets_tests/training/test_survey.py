"""One pass over training images, against doing it the slow way."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cygno_assets.physics.ground_truth import Label
from cygno_assets.physics.images import ImageError
from cygno_assets.training import decode as decode_module
from cygno_assets.training import survey as survey_module
from cygno_assets.training.archive import Archive, ArchiveError
from cygno_assets.training.survey import input_digest, labelled, survey
from cygno_assets_tests.training.archives import cell, png, simulated_png, write_archive
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from pathlib import Path

MAX_PIXELS = 10**6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.zip"


def test_each_image_is_described_and_counted(path: Path) -> None:
    members = {
        **cell("NR/6_keV", *range(70)),  # more than are looked at in one go
        **{f"x/ER/0.5_keV/{file.name}": file.read_bytes() for file in REAL_IMAGES},
    }
    write_archive(path, members)
    with Archive(path) as archive:
        labels, reasons = labelled(archive.members)
        found = survey(archive, labels, max_pixels=MAX_PIXELS)

    assert reasons == {}
    assert [image.path for image in found.images] == list(members)
    pixels = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in members.items()}
    for image in found.images:
        nuclear = "/NR/" in image.path
        expected = Label("nuclear", 6.0) if nuclear else Label("electronic", 0.5)
        assert image.label == expected
        assert (image.width, image.height) == (576, 576)
        assert image.pixel_sha256 == hashlib.sha256(pixels[image.path].tobytes()).hexdigest()
    together = np.concatenate([image.ravel() for image in pixels.values()])
    assert found.histogram.images == len(members)
    assert found.histogram.counts.tolist() == np.bincount(together, minlength=256).tolist()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), at_once=st.integers(1, 5))
def test_however_the_images_are_shared_out_the_result_is_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, at_once: int
) -> None:
    write_archive(path, cell("NR/6_keV", *range(8)))
    monkeypatch.setattr(decode_module, "_AT_ONCE", at_once)
    with Archive(path) as archive:
        members = list(archive.members)
        some = data.draw(st.lists(st.sampled_from(members), unique=True))
        parts = [survey(archive, labelled([member])[0], max_pixels=MAX_PIXELS) for member in some]
        found = survey(archive, labelled(some)[0], max_pixels=MAX_PIXELS)
    assert list(found.images) == [part.images[0] for part in parts]
    assert (
        found.histogram.counts.tolist()
        == sum((part.histogram.counts for part in parts), np.zeros(256, np.int64)).tolist()
    )


def test_images_of_another_kind_are_refused_by_name_all_of_them(path: Path) -> None:
    black = np.zeros((4, 4), np.uint8)
    bits = {depth: io.BytesIO() for depth in (1, 2, 4)}
    for depth, file in bits.items():
        Image.fromarray(black).convert("P").save(file, "PNG", bits=depth)
    grey = {depth: as_grey(file.getvalue()) for depth, file in bits.items()}
    assert Image.open(io.BytesIO(grey[4])).mode == "L"  # Pillow's word for it
    odd = {
        **{f"bits{depth}": data for depth, data in grey.items()},
        "colour": png(np.zeros((4, 4, 3), np.uint8)),
        "deep": png(black.astype(np.uint16)),
        "text": b"no image",
        "cut": simulated_png(1)[:5000],
    }
    write_archive(path, {f"NR/6_keV/{name}.png": data for name, data in odd.items()})
    with Archive(path) as archive, pytest.raises(ImageError) as refused:
        survey(archive, labelled(archive.members)[0], max_pixels=MAX_PIXELS)
    assert str(refused.value).startswith("7 of 7 images refused: ")
    for what in (
        "NR/6_keV/bits1.png: image is mode 1",
        "NR/6_keV/bits2.png: image has 2 bits a pixel",
        "NR/6_keV/bits4.png: image has 4 bits a pixel",
        "NR/6_keV/colour.png: image is mode RGB",
        "NR/6_keV/deep.png: image is mode I;16",
        "NR/6_keV/text.png: not a JPEG or PNG image",
        "NR/6_keV/cut.png: image cannot be decoded",
    ):
        assert what in str(refused.value)


def as_grey(palette_png: bytes) -> bytes:
    """A PNG of few bits, its colour type changed from palette to grey."""
    header = bytearray(palette_png[12:29])
    header[13] = 0
    checksum = struct.pack(">I", zlib.crc32(header))
    return palette_png[:12] + bytes(header) + checksum + palette_png[33:]


def test_of_many_refused_images_the_first_are_named(path: Path) -> None:
    write_archive(path, {f"NR/6_keV/{number:03}.png": b"" for number in range(40)})
    with Archive(path) as archive, pytest.raises(ImageError, match=r"40 of 40 .*; and 30 more$"):
        survey(archive, labelled(archive.members)[0], max_pixels=MAX_PIXELS)


def test_an_archive_damaged_after_it_was_checked_is_noticed(path: Path) -> None:
    write_archive(path, cell("NR/6_keV", 1, 2))
    with Archive(path) as archive:
        data = bytearray(path.read_bytes())
        data[50_000:50_010] = bytes(10)
        path.write_bytes(data)
        with pytest.raises(ArchiveError, match="damaged"):
            survey(archive, labelled(archive.members)[0], max_pixels=MAX_PIXELS)


def test_of_nothing_there_is_nothing(path: Path) -> None:
    write_archive(path, {})
    with Archive(path) as archive:
        found = survey(archive, {}, max_pixels=MAX_PIXELS)
        assert input_digest(archive, []) == input_digest(archive, [])
    assert (list(found.images), found.histogram.images) == ([], 0)


def test_the_input_digest_is_of_what_goes_in_and_of_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(members: dict[str, bytes], prefix: str = "") -> str:
        write_archive(path, members)
        with Archive(path) as archive:
            return input_digest(archive, [m for m in archive.members if prefix in m])

    cells = cell("NR/6_keV", 1, 2)
    first = digest(cells)
    assert digest(dict(reversed(cells.items()))) == first
    assert digest({**cells, **cell("ER/3_keV", 3)}, "NR") == first
    name = next(iter(cells))
    others = [
        {**cells, name: simulated_png(9)},
        {path.replace("6_keV", "6.0_keV"): data for path, data in cells.items()},
        cell("NR/6_keV", 1),
        cell("NR/6_keV", 1, 2, 3),
        {},
    ]
    assert len({first, *map(digest, others)}) == 6
    monkeypatch.setattr(survey_module, "CODE_VERSION", "another")
    assert digest(cells) != first
