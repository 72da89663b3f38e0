"""Figures: that they show what they are given. How they look, a person must judge."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from cygno_assets.physics.figures import (
    Panel,
    columns_figure,
    comparison_figure,
    event_figure,
    events_figure,
    histogram_figure,
    image_figure,
    over_time_figure,
    population_figure,
    quantity_figure,
    recoils_figure,
    small_copy,
)
from cygno_assets.physics.histogram import PixelHistogram, pixel_counts
from cygno_assets.physics.images import decode_image
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets_tests.wire import REAL_IMAGES

SPEC = PreprocessSpec()
RECORDED = decode_image(REAL_IMAGES[0].read_bytes(), max_pixels=10**6)
HISTOGRAM = PixelHistogram(1, pixel_counts(RECORDED))


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_histogram_is_drawn_with_the_window_where_it_is() -> None:
    drawn = pixels_of(histogram_figure(HISTOGRAM, SPEC, "one image"))
    assert drawn.shape == (360, 640, 3)
    other = pixels_of(histogram_figure(HISTOGRAM, PreprocessSpec(window_low=60), "one image"))
    # A wider window, more that is tinted blue.
    tinted = [np.sum((p[..., 2] > 240) & (p[..., 0] < 235)) for p in (drawn, other)]
    assert tinted[1] > 1.4 * tinted[0] > 0


def test_of_no_images_the_histogram_is_empty_and_no_error() -> None:
    drawn = pixels_of(histogram_figure(PixelHistogram.total([]), SPEC, "empty"))
    assert drawn.shape == (360, 640, 3)


def test_each_recoil_type_has_its_colour_in_the_population() -> None:
    both = pixels_of(population_figure({("nuclear", 6.0): 100, ("electronic", 0.5): 100}))
    none = pixels_of(population_figure({("nuclear", 6.0): 100}))
    assert np.sum(is_pink(both)) > 2 * np.sum(is_pink(none))
    assert np.sum(is_blue(none)) > 1000
    assert pixels_of(population_figure({})).shape == (240, 640, 3)


def test_events_are_drawn_in_the_hour_they_were_acquired_in() -> None:
    morning = pixels_of(events_figure([1.5] * 10, [2.5] * 10, "a day"))
    assert morning.shape == (240, 640, 3)
    assert is_blue(morning)[:, :320].any()
    assert is_pink(morning)[:, :320].any()
    evening = pixels_of(events_figure([22.0], [], "a day"))
    assert is_blue(evening)[:, 320:].any()
    assert not is_blue(evening)[:, :320].any()
    assert pixels_of(events_figure([], [], "no events")).shape == (240, 640, 3)


def test_an_event_is_drawn_with_crop_and_brightest_spot() -> None:
    pixels = np.full((576, 576), 100, np.uint8)
    pixels[80:120, 400:440] = 200  # above and right of the crop
    drawn = pixels_of(event_figure(pixels, np.zeros((128, 128), np.float32), SPEC, "event"))
    assert drawn.shape == (460, 1400, 3)
    row, column = np.argwhere(is_pink(drawn)).mean(axis=0)
    crop_row, crop_column = np.argwhere(is_blue(drawn[:, :450])).mean(axis=0)
    assert row < crop_row - 50
    assert column > crop_column + 50
    small = np.full((5, 5), 100, np.uint8)
    assert pixels_of(event_figure(small, None, SPEC, "no tensor")).shape == (460, 1400, 3)


def test_an_image_is_drawn_with_its_brightest_spot_brightest() -> None:
    pixels = np.full((576, 576), 100, np.uint8)
    pixels[100:120, 400:420] = 200  # above and right of the middle
    drawn = pixels_of(image_figure(pixels, "spot"))
    white = np.argwhere((drawn[60:430, 60:440] == 255).all(axis=2)) + 60
    assert white.size
    row, column = white.mean(axis=0)
    assert row < 200
    assert column > 300


def test_nuclear_recoils_are_blue_and_above_and_electron_recoils_pink_and_below() -> None:
    tensor = np.full((128, 128), 0.5, np.float32)
    drawn = pixels_of(
        recoils_figure(
            {"electronic": [("3 keV", tensor)] * 5, "nuclear": [("6 keV", tensor)] * 5}, SPEC
        )
    )
    half = len(drawn) // 2
    assert np.sum(is_blue(drawn[:half])) > 18_000
    assert np.sum(is_pink(drawn[half:])) > 18_000
    assert np.sum(is_pink(drawn[:half])) == np.sum(is_blue(drawn[half:])) == 0


@pytest.mark.parametrize("nuclear", [0, 2])
def test_fewer_recoils_leave_room_and_no_error(nuclear: int) -> None:
    tensor = np.zeros((128, 128), np.float32)
    drawn = recoils_figure({"nuclear": [("1 keV", tensor)] * nuclear, "electronic": []}, SPEC)
    assert pixels_of(drawn).shape == (340, 680, 3)


def test_a_quantity_outside_its_limits_is_on_shaded_ground() -> None:
    minutes = np.linspace(-60, 0, 300)

    def shaded(value: float) -> float:
        values = np.linspace(value - 0.1, value + 0.1, 300)
        drawn = pixels_of(quantity_figure(minutes, values, (99.4, 100.4), "mean, ADU", "pedestal"))
        assert drawn.shape == (240, 480, 3)
        pale = (drawn[..., 0] > 245) & (drawn[..., 1] < 240) & (drawn[..., 1] > 180)
        return float(pale.mean())

    assert shaded(99.9) > 0.05
    assert shaded(107.9) > 2 * shaded(99.9)  # most of the axis is beyond the limit


def test_two_histograms_are_drawn_where_they_are() -> None:
    counts = HISTOGRAM.counts

    def pink_column(shift: int) -> float:
        training = np.roll(counts, shift).astype(float)
        drawn = pixels_of(comparison_figure(counts, training, "two"))
        assert drawn.shape == (240, 480, 3)
        assert np.sum(is_blue(drawn)) > 300
        return float(np.argwhere(is_pink(drawn))[:, 1].mean())

    assert pink_column(-10) < pink_column(0) < pink_column(10)


def test_a_hot_column_stands_out() -> None:
    def height(hottest: list[int]) -> int:
        drawn = pixels_of(columns_figure(np.array(hottest), 576, "columns"))
        assert drawn.shape == (240, 480, 3)
        return int((drawn.sum(axis=2) < 500)[40:180, 60:].any(axis=1).sum())

    assert height([300] * 40)
    assert height(list(range(40)))


def test_a_small_copy_looks_the_same_and_is_small() -> None:
    for picture, limit in (
        (histogram_figure(HISTOGRAM, SPEC, "one image"), 12_000),
        (image_figure(np.asarray(RECORDED), "one image"), 90_000),
    ):
        media_type, copy = small_copy(picture)
        assert Image.MIME[Image.open(io.BytesIO(copy)).format or ""] == media_type
        assert len(copy) < limit
        assert np.abs(pixels_of(copy) - pixels_of(picture)).mean() < 6


def is_blue(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return (blue > red + 60) & (blue > green + 30)


def is_pink(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return (red > green + 60) & (red >= blue)


def test_values_over_time_leave_a_gap_where_they_are_not_known() -> None:
    hours = [-2.0, -1.0, 0.0]
    whole = [Panel("events", {"announced": [1.0, 2.0, 1.0]}), Panel("s", {"p50": [1, 2, 3]}, True)]
    gap = [Panel("events", {"announced": [1.0, math.nan, 1.0]}), whole[1]]
    none = {"p50": [math.nan] * 3}
    nothing = [Panel("events", none), Panel("s", none, is_log=True)]
    drawn = [pixels_of(over_time_figure(hours, panels, "t")) for panels in (whole, gap, nothing)]
    assert {picture.shape for picture in drawn} == {(330, 720, 3)}
    inked = [np.sum(is_blue(picture)) for picture in drawn]
    assert inked[0] > inked[1] > inked[2]
