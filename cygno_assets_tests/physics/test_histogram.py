"""Histograms against counting by hand, numpy and exact fractions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cygno_assets.physics.histogram import (
    BINS,
    counts_from_text,
    counts_to_text,
    mean_and_sd,
    pixel_counts,
    range_of,
)
from cygno_assets.physics.images import decode_image
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable

pixels_ = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))
NOTHING = np.zeros(256, np.int64)


@settings(deadline=None)
@given(pixels_)
def test_each_value_is_counted(pixels: np.ndarray) -> None:
    expected = [0] * 256
    for value in pixels.ravel():
        expected[value] += 1

    counts = pixel_counts(Image.fromarray(pixels))

    assert counts.tolist() == expected
    assert (counts.shape, counts.dtype) == ((BINS,), np.int64)


def test_neighbouring_values_at_the_top_are_told_apart() -> None:
    # The school's linspace(0, 255, 256) makes 255 bins, the last for 254 and 255.
    counts = pixel_counts(Image.fromarray(np.array([[254, 255, 255]], np.uint8)))

    assert counts[254:].tolist() == [1, 2]


@settings(deadline=None)
@given(st.lists(pixels_, min_size=1, max_size=4))
def test_counts_of_images_add_up(images: list[np.ndarray]) -> None:
    summed = sum(pixel_counts(Image.fromarray(pixels)) for pixels in images)
    together = np.concatenate([pixels.ravel() for pixels in images])[np.newaxis]

    np.testing.assert_array_equal(summed, pixel_counts(Image.fromarray(together)))


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "F", "RGB", "RGBA", "LA"])
def test_only_8_bit_grey_is_counted(mode: str) -> None:
    with pytest.raises(ValueError, match=f"not mode {mode}$"):
        pixel_counts(Image.new(mode, (4, 4)))


@settings(deadline=None)
@given(pixels_)
def test_mean_sd_and_range_are_numpys(pixels: np.ndarray) -> None:
    counts = pixel_counts(Image.fromarray(pixels))

    assert mean_and_sd(counts) == pytest.approx((pixels.mean(), pixels.std()), abs=1e-9)
    assert range_of(counts) == (pixels.min(), pixels.max())


def test_mean_and_sd_of_more_pixels_than_floats_can_count() -> None:
    counts = NOTHING.copy()
    counts[[99, 101]] = 2**61

    assert mean_and_sd(counts) == (100.0, 1.0)


@pytest.mark.parametrize("summary", [mean_and_sd, range_of])
def test_nothing_counted_has_no_summary(summary: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ValueError, match="no pixels were counted"):
        summary(NOTHING)


@pytest.mark.parametrize(
    ("stem", "mean", "sd", "smallest", "largest"),
    [
        # From the table beside the images.
        ("cygno-13760faab087a72f66db310d167afb97", 99.92, 5.34, 64, 153),
        ("cygno-72b2ce75ca60a3bb20f3aa4fb5712c9e", 99.97, 5.35, 58, 152),
        ("cygno-8a5dd63738189018c7fad9a7ce5eee71", 99.86, 5.28, 67, 132),
        ("cygno-9c618f52e4bdeea5171f109449923a14", 99.89, 5.29, 68, 132),
    ],
)
def test_real_images(stem: str, mean: float, sd: float, smallest: int, largest: int) -> None:
    path = next(path for path in REAL_IMAGES if path.stem == stem)
    counts = pixel_counts(decode_image(path.read_bytes(), max_pixels=10**6))

    assert counts.sum() == 576 * 576
    assert mean_and_sd(counts) == pytest.approx((mean, sd), abs=0.0051)
    assert range_of(counts) == (smallest, largest)


@given(
    st.lists(st.integers(0, 10**12), min_size=BINS, max_size=BINS)
    | st.dictionaries(st.integers(0, 255), st.integers(0, 10**6)).map(
        lambda few: [few.get(value, 0) for value in range(BINS)]
    )
)
def test_counts_come_back_from_their_text(counts: list[int]) -> None:
    array = np.array(counts, dtype=np.int64)
    text = counts_to_text(array)
    assert "\n" not in text
    np.testing.assert_array_equal(counts_from_text(text), array)


@pytest.mark.parametrize("text", ["x", "3", "250: 1 1 1 1 1 1 1", "-1: 2", "5: 1 -1", "5: 1  2"])
def test_text_that_is_no_counts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="counts"):
        counts_from_text(text)
