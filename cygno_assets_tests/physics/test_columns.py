"""The column pattern, on images whose columns we know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cygno_assets.physics.columns import column_pattern
from cygno_assets_tests.wire import REAL_IMAGES


def test_a_hot_column_is_found_with_its_excess() -> None:
    pixels = np.full((20, 31), 100, np.uint8)
    pixels[:, 17] += 12
    pattern = column_pattern(pixels)
    assert (pattern.hottest, pattern.excess_adu) == (17, 12.0)
    assert pattern.sd_adu == pytest.approx(np.std([0] * 30 + [12]))


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_it_is_what_numpy_says_of_the_columns(pixels: np.ndarray) -> None:
    means = pixels.astype(float).mean(axis=0)
    pattern = column_pattern(pixels)
    assert pattern.sd_adu == pytest.approx(means.std(), abs=1e-9)
    assert means[pattern.hottest] == means.max()
    assert pattern.excess_adu == pytest.approx(means.max() - np.median(means))


@pytest.mark.parametrize("path", REAL_IMAGES, ids=lambda path: path.stem[:12])
def test_real_images_have_the_measured_pattern(path: str) -> None:
    pattern = column_pattern(np.asarray(Image.open(path)))
    assert pattern.sd_adu == pytest.approx(0.71, abs=0.05)
    assert pattern.excess_adu < 4
