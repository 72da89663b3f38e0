"""Histograms against counting by hand, numpy and exact fractions."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cygno_assets.physics.histogram import (
    BINS,
    PixelHistogram,
    counts_from_text,
    counts_to_text,
    mean_and_sd,
    pixel_counts,
    quantile,
    range_of,
    shares_outside,
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


counts_ = arrays(np.int64, 256, elements=st.integers(0, 10**12), fill=st.just(0))
some_counts = counts_.filter(lambda counts: counts.any())


def histogram_of(*images: np.ndarray) -> PixelHistogram:
    return PixelHistogram.total(
        PixelHistogram(1, pixel_counts(Image.fromarray(pixels))) for pixels in images
    )


@settings(deadline=None)
@given(st.lists(pixels_, max_size=6), st.randoms(use_true_random=False))
def test_merged_in_any_order_and_grouping_it_is_what_counting_by_hand_gives(
    images: list[np.ndarray], random: object
) -> None:
    expected = [0] * 256
    for pixels in images:
        for value in pixels.ravel():
            expected[value] += 1
    parts = [histogram_of(pixels) for pixels in images]
    while len(parts) > 1:  # merges two of them, whichever
        random.shuffle(parts)  # type: ignore[attr-defined]
        parts = [PixelHistogram.total(parts[:2]), *parts[2:]]

    total = PixelHistogram.total(parts)

    assert total.counts.tolist() == expected
    assert (total.images, total.pixels) == (len(images), sum(image.size for image in images))
    assert total.digest == histogram_of(*images).digest


def test_of_no_images_there_is_nothing() -> None:
    nothing = PixelHistogram.total([])
    assert (nothing.images, nothing.pixels, nothing.counts.shape) == (0, 0, (256,))


@given(counts_, st.integers(0, 10**9))
def test_a_histogram_goes_through_json(counts: np.ndarray, images: int) -> None:
    histogram = PixelHistogram(images, counts)
    written = json.loads(json.dumps(histogram.to_json()))
    again = PixelHistogram.from_json(written)
    assert (again.images, again.counts.tolist()) == (images, counts.tolist())
    assert again.digest == histogram.digest
    assert (written["first_bin_edge_adu"], written["last_bin_edge_adu"]) == (-0.5, 255.5)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"images": 1},
        {"images": 1, "counts": [1, 2]},
        {"images": 1, "counts": [-1] * 256},
        {"images": -1, "counts": [0] * 256},
        {"images": 1, "counts": None},
        {"images": 1, "counts": ["a"] * 256},
        {"images": 1, "counts": [2**64] * 256},
    ],
)
def test_what_is_no_histogram_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        PixelHistogram.from_json(value)


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.uint64])
def test_counts_are_integers_that_hold_any_dataset(dtype: type) -> None:
    with pytest.raises(ValueError, match="must be int64 of shape"):
        PixelHistogram(1, np.zeros(256, dtype))


@settings(deadline=None)
@given(pixels_, st.fractions(0, 1))
def test_a_quantile_is_the_first_value_with_enough_below_it(
    pixels: np.ndarray, share: Fraction
) -> None:
    found = quantile(pixel_counts(Image.fromarray(pixels)), share)  # type: ignore[arg-type]
    at_most = Fraction(int((pixels <= found).sum()), pixels.size)
    fewer = Fraction(int((pixels < found).sum()), pixels.size)
    assert found in pixels
    assert at_most >= share
    assert fewer < share or found == pixels.min()


@given(some_counts, st.integers(-3, 260), st.integers(-3, 260))
def test_shares_outside_a_window_are_those_of_the_pixels(
    counts: np.ndarray, low: int, high: int
) -> None:
    total = sum(counts.tolist())
    below, above = shares_outside(counts, low, high)
    assert below == sum(counts.tolist()[: max(low, 0)]) / total
    assert above == sum(counts.tolist()[max(high + 1, 0) :]) / total


@pytest.mark.parametrize("ask", [lambda c: quantile(c, 0.5), lambda c: shares_outside(c, 0, 1)])
def test_of_nothing_there_are_no_shares(ask: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ValueError, match="no pixels were counted"):
        ask(NOTHING)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    with pytest.raises(ValueError, match="share = "):
        quantile(np.ones(256, np.int64), share)
