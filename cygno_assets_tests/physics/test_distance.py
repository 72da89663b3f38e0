"""The distance of histograms, and noise on them, against what they must be."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cygno_assets.daq.simulator.camera import record_image, simulate_image
from cygno_assets.physics.distance import RECORDED_NOISE_ADU, wasserstein_adu, with_noise
from cygno_assets.physics.histogram import BINS, pixel_counts

histograms = arrays(np.int64, BINS, elements=st.integers(0, 1000)).filter(lambda c: c.sum() > 0)


def alone(value: int) -> np.ndarray:
    counts = np.zeros(BINS, np.int64)
    counts[value] = 7
    return counts


@given(histograms, histograms, histograms)
def test_it_is_a_metric(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    assert wasserstein_adu(a, a) == 0
    assert wasserstein_adu(a, b) == wasserstein_adu(b, a) >= 0
    assert (wasserstein_adu(a, b) < 1e-12) == np.allclose(a / a.sum(), b / b.sum(), atol=1e-12)
    assert wasserstein_adu(a, c) <= wasserstein_adu(a, b) + wasserstein_adu(b, c) + 1e-9


@given(histograms, histograms, st.integers(1, 50))
def test_how_much_was_counted_does_not_matter(a: np.ndarray, b: np.ndarray, times: int) -> None:
    assert wasserstein_adu(times * a, b) == pytest.approx(wasserstein_adu(a, b), abs=1e-9)


@given(st.integers(0, 255), st.integers(0, 255))
def test_it_is_how_far_pixels_must_be_moved(one: int, other: int) -> None:
    assert wasserstein_adu(alone(one), alone(other)) == abs(one - other)


@given(histograms, st.floats(0, 300))
def test_noise_loses_no_pixel(counts: np.ndarray, rms_adu: float) -> None:
    noisy = with_noise(counts, rms_adu)
    assert noisy.shape == (BINS,)
    assert noisy.min() >= 0
    assert noisy.sum() == pytest.approx(counts.sum())


def test_noise_is_as_wide_as_it_says() -> None:
    noisy, values = with_noise(alone(100), 5.1) / 7, np.arange(BINS)
    assert (noisy * values).sum() == pytest.approx(100)
    # Rounding to whole ADU adds a variance of 1/12.
    assert (noisy * (values - 100) ** 2).sum() == pytest.approx(5.1**2 + 1 / 12, rel=1e-6)
    assert np.array_equal(with_noise(alone(3), 0), alone(3))
    assert with_noise(alone(0), 5)[0] > 3.5  # what would be below 0 is 0


def test_noise_is_what_drawn_noise_makes() -> None:
    rng = np.random.default_rng(0)
    image = simulate_image(rng, "electronic", 20)
    drawn = np.clip(np.rint(image + rng.normal(0, 4, image.shape)), 0, 255).astype(int)
    before = np.bincount(image.ravel(), minlength=BINS)
    assert wasserstein_adu(
        np.bincount(drawn.ravel(), minlength=BINS), with_noise(before, 4)
    ) == pytest.approx(0, abs=0.03)


def test_recorded_images_are_training_images_with_the_measured_noise() -> None:
    rng = np.random.default_rng(1)
    training, live = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for _ in range(8):
        image = simulate_image(rng, "electronic", 10)
        training += pixel_counts(Image.fromarray(image))
        live += pixel_counts(Image.open(io.BytesIO(record_image(rng, image))))
    assert wasserstein_adu(live, with_noise(training, RECORDED_NOISE_ADU)) < 0.1
    assert wasserstein_adu(live, training) > 1


@pytest.mark.parametrize("counts", [np.zeros(BINS, int), np.ones(255, int)])
def test_what_is_no_histogram_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"nothing was counted|of shape"):
        wasserstein_adu(counts, alone(3))


@pytest.mark.parametrize("rms_adu", [-1.0, float("nan"), float("inf")])
def test_noise_that_does_not_exist_is_refused(rms_adu: float) -> None:
    with pytest.raises(ValueError, match="rms_adu = "):
        with_noise(alone(3), rms_adu)
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        with_noise(np.ones(3), 1)
