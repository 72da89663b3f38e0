"""Decoding, cropping, windowing and thumbnails, on the school's real images and on broken ones."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from cygno_assets.physics.images import (
    ImageError,
    clipped_shares,
    crop_centre,
    decode_image,
    open_image,
    preprocess,
    thumbnail_jpeg,
    window,
)
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_PIXELS = 25_000_000
REAL = REAL_IMAGES[0].read_bytes()
real_images = pytest.mark.parametrize("path", REAL_IMAGES, ids=lambda path: path.stem)


def decode(data: bytes) -> Image.Image:
    return decode_image(data, max_pixels=MAX_PIXELS)


def encoded(mode: str, format_: str, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format_)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG's header with its right checksum, and no pixel after it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + checksum + b"\0\0\0\0IDAT"


def jpeg_claiming(width: int, height: int) -> bytes:
    """A real JPEG with other dimensions in its frame header (SOF0)."""
    at = REAL.index(b"\xff\xc0") + 5
    return REAL[:at] + struct.pack(">HH", height, width) + REAL[at + 4 :]


def test_there_are_four_real_images() -> None:
    assert len(REAL_IMAGES) == 4


# --- decoding


@real_images
def test_a_real_image_is_decoded_as_pillow_decodes_it(path: Path) -> None:
    image = decode(path.read_bytes())

    assert (image.mode, image.size) == ("L", (576, 576))
    with Image.open(path) as reference:
        assert image.tobytes() == reference.tobytes()


def test_a_png_is_decoded_exactly() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")

    np.testing.assert_array_equal(np.asarray(decode(file.getvalue())), pixels)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "not a JPEG or PNG image: 0 bytes", id="empty"),
        pytest.param(b"<html>", "not a JPEG or PNG image: 6 bytes, beginning", id="HTML"),
        pytest.param(encoded("L", "GIF"), "not a JPEG or PNG image", id="GIF"),
        pytest.param(encoded("L", "TIFF"), "not a JPEG or PNG image", id="TIFF"),
        pytest.param(encoded("L", "BMP"), "not a JPEG or PNG image", id="BMP"),
        pytest.param(encoded("RGB", "WEBP"), "not a JPEG or PNG image", id="WebP"),
        pytest.param(REAL[: len(REAL) // 2], "cannot be decoded", id="half a JPEG"),
        pytest.param(REAL[:100], "image", id="a JPEG's first 100 bytes"),
        pytest.param(png_claiming(8, 8), "cannot be decoded", id="a PNG without pixels"),
        pytest.param(encoded("RGB", "JPEG"), "mode RGB;", id="RGB JPEG"),
        pytest.param(encoded("CMYK", "JPEG"), "mode CMYK;", id="CMYK JPEG"),
        pytest.param(encoded("RGB", "PNG"), "mode RGB;", id="RGB"),
        pytest.param(encoded("RGBA", "PNG"), "mode RGBA;", id="RGBA"),
        pytest.param(encoded("LA", "PNG"), "mode LA;", id="grey with transparency"),
        pytest.param(encoded("I;16", "PNG"), "mode I;16;", id="16 bits"),
        pytest.param(encoded("1", "PNG"), "mode 1;", id="1 bit"),
        pytest.param(encoded("P", "PNG"), "mode P;", id="palette"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)

    assert reason in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("claiming", [png_claiming, jpeg_claiming])
@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 12_000), (5_001, 5_000)], ids=str)
def test_huge_dimensions_are_refused_by_the_header_alone(
    claiming: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    # None of these files holds so many pixels: decoding would fail for another reason.
    with pytest.raises(ImageError, match="image too large"):
        decode(claiming(*size))


def test_the_largest_size_allowed_is_allowed() -> None:
    assert open_image(REAL, max_pixels=576 * 576).size == (576, 576)
    with pytest.raises(ImageError, match="576 × 576 is 331776 pixels, more than the 331775"):
        open_image(REAL, max_pixels=576 * 576 - 1)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(0, len(REAL) - 1))
def test_a_truncated_image_is_refused_or_lacks_no_pixel(length: int) -> None:
    try:
        image = decode(REAL[:length])
    except ImageError:
        return
    assert image.tobytes() == decode(REAL).tobytes()


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", png_claiming(8, 8)]))
def test_arbitrary_bytes_are_never_an_image(data: bytes, beginning: bytes) -> None:
    with pytest.raises(ImageError):
        decode(beginning + data)


@settings(deadline=None)
@given(
    # Most of what can go wrong is in the first kilobyte: the header.
    at=st.integers(0, 999) | st.integers(0, len(REAL) - 1),
    put=st.binary(min_size=1, max_size=8),
    cut=st.integers(0, 8),
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_image_is_refused_or_decoded_whole(at: int, put: bytes, cut: int) -> None:
    try:
        image = decode(REAL[:at] + put + REAL[at + cut :])
    except ImageError:
        return
    assert image.mode == "L"
    assert len(image.tobytes()) == image.width * image.height


# --- cropping


@settings(deadline=None)
@given(half_width=st.integers(1, 6), more_rows=st.integers(0, 9), more_columns=st.integers(0, 9))
def test_the_crop_is_the_schools(half_width: int, more_rows: int, more_columns: int) -> None:
    rows, columns = 2 * half_width + more_rows, 2 * half_width + more_columns
    pixels = np.random.default_rng(rows * columns).integers(0, 256, (rows, columns), np.uint8)
    r0, c0 = rows // 2, columns // 2
    expected = [
        [pixels[row, column] for column in range(c0 - half_width, c0 + half_width)]
        for row in range(r0 - half_width, r0 + half_width)
    ]

    np.testing.assert_array_equal(crop_centre(pixels, half_width), expected)


@pytest.mark.parametrize("shape", [(127, 128), (128, 127), (1, 1000)], ids=str)
def test_an_image_smaller_than_the_crop_is_refused(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.zeros(shape, np.uint8))

    for use in (preprocess, clipped_shares):
        with pytest.raises(ImageError, match=f"{shape[1]} × {shape[0]} pixels is smaller .* 128"):
            use(image, PreprocessSpec())


# --- windowing

ALL_VALUES = np.arange(256, dtype=np.uint8)
adu = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(adu, adu)
def test_windowing_is_the_formula_for_any_window(low: float, high: float) -> None:
    assume(low < high)
    width = Fraction(high) - Fraction(low)
    expected = [float(min(max((int(x) - Fraction(low)) / width, 0), 1)) for x in ALL_VALUES]

    windowed = window(ALL_VALUES, low, high)

    assert windowed.dtype == np.float32
    np.testing.assert_allclose(windowed, expected, rtol=0, atol=1e-6)


def test_windowing_by_hand() -> None:
    pixels = np.array([[0, 79, 80], [95, 110, 255]], np.uint8)

    np.testing.assert_array_equal(window(pixels, 80, 110), [[0, 0, 0], [0.5, 1, 1]])


# --- tensors


@real_images
def test_the_tensor_of_a_real_image(path: Path) -> None:
    image = decode(path.read_bytes())
    square = np.asarray(image)[224:352, 224:352].astype(float)

    tensor = preprocess(image, PreprocessSpec())

    assert (tensor.shape, tensor.dtype) == ((128, 128), np.float32)
    assert tensor.flags.c_contiguous
    assert (tensor.min(), tensor.max()) == (0, 1)
    np.testing.assert_allclose(tensor, np.clip((square - 80) / 30, 0, 1), rtol=0, atol=1e-6)


@real_images
def test_the_shares_clipped_of_a_real_image(path: Path) -> None:
    image = decode(path.read_bytes())
    square = np.asarray(image)[224:352, 224:352]

    low, high = clipped_shares(image, PreprocessSpec())

    assert low == np.count_nonzero(square < 80) / 128**2
    assert high == np.count_nonzero(square > 110) / 128**2
    # As the school's live images were measured: 0.03 % low, 2.5 to 4.4 % high.
    assert 0.0001 <= low <= 0.0006
    assert 0.025 <= high <= 0.044


def test_another_process_makes_the_same_tensor_to_the_bit() -> None:
    code = (
        "import sys, hashlib\n"
        "from cygno_assets.physics.images import decode_image, preprocess\n"
        "from cygno_assets.physics.spec import PreprocessSpec\n"
        "image = decode_image(sys.stdin.buffer.read(), max_pixels=10**6)\n"
        "print(hashlib.sha256(preprocess(image, PreprocessSpec())).hexdigest())\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], input=REAL, capture_output=True, check=True
    )

    here = hashlib.sha256(preprocess(decode(REAL), PreprocessSpec())).hexdigest()
    assert there.stdout.decode().strip() == here


def test_the_specification_decides_the_tensor() -> None:
    image = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))

    tensor = preprocess(image, PreprocessSpec(half_width=1, window_low=0, window_high=100))

    np.testing.assert_allclose(tensor, [[0.44, 0.45], [0.54, 0.55]], atol=1e-7)


# --- thumbnails


def noise(side: int, *, binary: bool = False) -> np.ndarray:
    tensor = np.random.default_rng(side).random((side, side), np.float32)
    return np.rint(tensor) if binary else tensor


@pytest.mark.parametrize("side", [2, 31, 128, 130, 600])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda side: np.zeros((side, side), np.float32), id="black"),
        pytest.param(lambda side: np.ones((side, side), np.float32), id="white"),
        pytest.param(noise, id="noise"),
        pytest.param(lambda side: noise(side, binary=True), id="black and white noise"),
    ],
)
def test_a_thumbnail_of_anything_is_small_and_opens(
    make: Callable[[int], np.ndarray], side: int
) -> None:
    data = thumbnail_jpeg(make(side))

    assert len(data) <= 3_000
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (256, 256))


@settings(deadline=None, max_examples=20)
@given(
    row=st.integers(8, 119), column=st.integers(8, 119), max_bytes=st.sampled_from([1_000, 3_000])
)
def test_the_brightest_spot_is_where_the_tensor_has_it(
    row: int, column: int, max_bytes: int
) -> None:
    rows, columns = np.mgrid[:128, :128]
    blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 4.0**2))
    tensor = (0.3 * noise(128) + 0.7 * blob).astype(np.float32)

    with Image.open(io.BytesIO(thumbnail_jpeg(tensor, max_bytes=max_bytes))) as image:
        pixels = np.asarray(image)

    scale = 128 / pixels.shape[0]
    spot = (np.argwhere(pixels == pixels.max()).mean(axis=0) + 0.5) * scale
    np.testing.assert_allclose(spot, (row, column), atol=6)


@real_images
def test_the_thumbnail_of_a_real_tensor_shows_it(path: Path) -> None:
    tensor = preprocess(decode(path.read_bytes()), PreprocessSpec())

    data = thumbnail_jpeg(tensor)

    assert len(data) <= 3_000
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BOX)) / 255
    coarse = tensor.reshape(32, 4, 32, 4).mean(axis=(1, 3))
    assert np.abs(pixels - coarse).mean() < 0.03


def test_a_thumbnail_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no thumbnail fits into 10 bytes"):
        thumbnail_jpeg(noise(128), max_bytes=10)
