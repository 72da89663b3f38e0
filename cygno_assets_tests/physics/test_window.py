"""The suggested window against trying all of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cygno_assets.physics.histogram import pixel_counts
from cygno_assets.physics.images import clipped_shares, decode_image
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.physics.window import KNOWN_WINDOWS, Window, suggest_window
from cygno_assets_tests.wire import REAL_IMAGES

# Few values, so that all windows can be tried.
counts_ = arrays(np.int64, 256, elements=st.just(0), fill=st.just(0)).flatmap(
    lambda zeros: st.lists(st.integers(0, 50), min_size=12, max_size=12).map(
        lambda few: np.concatenate([few, zeros[12:]])
    )
)


@settings(deadline=None, max_examples=50)
@given(counts_.filter(lambda counts: counts.any()), st.floats(0, 0.49))
def test_no_narrower_window_clips_as_little(counts: np.ndarray, share: float) -> None:
    found = suggest_window(counts, max_clipped_share=share)
    assert max(found.clipped_low, found.clipped_high) <= share
    assert found.low < found.high
    narrower = [
        (low, high)
        for low, high in product(range(13), range(14))
        if low < high < low + found.high - found.low
        and max(Window.of(counts, low, high).clipped_low, 0) <= share
        and Window.of(counts, low, high).clipped_high <= share
        and counts[low : high + 1].any()
    ]
    assert not narrower


def test_of_a_normal_pedestal_it_is_three_standard_deviations() -> None:
    values = np.random.default_rng(1).normal(100, 5, 1_000_000).round().astype(np.uint8)
    found = suggest_window(np.bincount(values, minlength=256))
    # The thousandth part of a normal distribution is beyond 3.09 standard deviations.
    assert found.low == pytest.approx(100 - 3.09 * 5, abs=1)
    assert found.high == pytest.approx(100 + 3.09 * 5, abs=1)


def test_of_one_value_it_is_one_adu_wide() -> None:
    counts = np.zeros(256, np.int64)
    counts[255] = 7
    assert suggest_window(counts) == Window(255, 256, 0, 0)


def test_the_share_is_checked_and_so_is_that_there_are_pixels() -> None:
    with pytest.raises(ValueError, match=r"max_clipped_share = 0\.5"):
        suggest_window(np.ones(256, np.int64), max_clipped_share=0.5)
    with pytest.raises(ValueError, match="no pixels were counted"):
        suggest_window(np.zeros(256, np.int64))


@pytest.mark.parametrize(("low", "high"), KNOWN_WINDOWS)
def test_shares_of_a_histogram_are_those_of_the_image(low: float, high: float) -> None:
    image = decode_image(REAL_IMAGES[0].read_bytes(), max_pixels=10**6)
    whole = PreprocessSpec(half_width=288, window_low=low, window_high=high)
    window = Window.of(pixel_counts(image), low, high)
    assert (window.clipped_low, window.clipped_high) == clipped_shares(image, whole)
