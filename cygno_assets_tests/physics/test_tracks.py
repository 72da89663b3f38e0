"""Where an image's light is, told on simulated images with a spot where we put it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cygno_assets.daq.simulator.camera import simulate_image
from cygno_assets.physics.images import ImageError
from cygno_assets.physics.tracks import Spot, Track, brightest_spot, find_track
from cygno_assets_tests.wire import REAL_IMAGES

HALF = 64
FIRST, LAST = 288 - HALF, 288 + HALF - 1
"""Rows and columns of the crop of an image of side 576."""


def noise(side: int = 576, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.rint(rng.normal(100, 4, (side, side))).astype(np.uint8)


def with_spot(row: int, column: int, size: int = 6) -> np.ndarray:
    pixels = noise()
    pixels[row : row + size, column : column + size] += 40
    return pixels


def test_noise_is_no_track() -> None:
    for seed in range(20):
        assert find_track(noise(seed=seed), HALF) == Track(0, 0, 0, 0)


def test_an_image_that_is_flat_shows_no_track() -> None:
    """But for a pixel, which is no light: rounding alone does as much."""
    pixels = np.full((576, 576), 100, np.uint8)
    for row, column in ((288, 288), (10, 10), (FIRST, FIRST)):
        pixels[row, column] = 101
    assert find_track(pixels, HALF) == Track(0, 0, 0, 0)
    pixels[288:294, 288:294] = 110
    assert find_track(pixels, HALF).inside


@pytest.mark.parametrize(
    ("row", "column", "inside", "at_edge", "outside"),
    [
        (285, 285, True, False, False),
        (FIRST, 285, True, True, False),
        (LAST - 5, 285, True, True, False),
        (285, FIRST, True, True, False),
        (285, LAST - 5, True, True, False),
        (FIRST - 3, 285, True, True, True),  # across the edge
        (FIRST - 6, 285, False, False, True),
        (LAST + 1, 285, False, False, True),
        (285, LAST + 1, False, False, True),
        (40, 40, False, False, True),
    ],
)
def test_a_spot_is_told_where_it_is(
    row: int, column: int, inside: bool, at_edge: bool, outside: bool
) -> None:
    track = find_track(with_spot(row, column), HALF)
    assert (track.inside > 0, track.at_edge > 0, track.outside > 0) == (inside, at_edge, outside)
    assert track.at_edge <= track.inside


def test_saturated_pixels_are_counted_wherever_they_are() -> None:
    pixels = noise()
    pixels[0, 0] = pixels[575, 575] = pixels[288, 288] = 255
    assert find_track(pixels, HALF).saturated_px == 3


def test_simulated_recoils_from_3_kev_up_are_found_and_lie_inside() -> None:
    for recoil_type in ("nuclear", "electronic"):
        for energy in (3.0, 6.0, 10.0):
            for seed in range(5):
                track = find_track(
                    simulate_image(np.random.default_rng(seed), recoil_type, energy), HALF
                )
                assert track.inside
                assert not track.outside


def test_some_electrons_of_30_kev_leave_the_crop() -> None:
    tracks = [
        find_track(simulate_image(np.random.default_rng(seed), "electronic", 30.0), HALF)
        for seed in range(20)
    ]
    assert 0 < sum(track.outside > 0 for track in tracks) < len(tracks)


@pytest.mark.parametrize("file", REAL_IMAGES, ids=lambda file: file.stem[:12])
def test_real_images_show_a_track_inside_the_crop(file) -> None:
    track = find_track(np.asarray(Image.open(file)), HALF)
    assert track.inside
    assert (track.outside, track.saturated_px) == (0, 0)


@given(st.integers(2, 90), st.integers(2, 90), st.integers(1, 45))
def test_any_size_will_do_that_holds_the_crop(rows: int, columns: int, half: int) -> None:
    pixels = np.zeros((rows, columns), np.uint8)
    if min(rows, columns) < 2 * half:
        with pytest.raises(ImageError, match="smaller than the central square"):
            find_track(pixels, half)
    else:
        assert find_track(pixels, half) == Track(0, 0, 0, 0)


@given(
    st.integers(0, 9), st.integers(0, 13), st.integers(1, 7), st.integers(0, 7), st.integers(0, 7)
)
def test_the_brightest_square_is_where_the_light_is(
    row: int, column: int, above: int, more_rows: int, more_columns: int
) -> None:
    pixels = np.full((80 + more_rows, 112 + more_columns), 100, np.uint8)
    pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += above
    assert brightest_spot(pixels) == Spot(8 * row, 8 * column, 100.0 + above)


def test_an_image_smaller_than_a_square_has_none() -> None:
    assert brightest_spot(np.zeros((7, 100), np.uint8)) is None
