"""How far two pixel histograms are apart, and what the DAQ's noise makes of one.

Here belongs the measure; which distance is too large is checks/live_window.py's, and how that
limit was found, benchmarks/live_vs_training.py's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cygno_assets.physics.histogram import BINS

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECORDED_NOISE_ADU = 3.9
"""RMS of the noise, in ADU, by which a recorded image differs from the simulation's PNG.

The DAQ adds noise of RMS 5.1 ADU, and its JPEG takes a part of all noise away again: 3.9 is what
remains, as the quadratic difference of the standard deviations of 5.28 and 3.54 ADU, measured on
the simulated detector (`python -m benchmarks.live_vs_training`)."""


def wasserstein_adu(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The Wasserstein-1 distance of two histograms: how far, on average, pixels must be moved.

    It is a metric, in ADU: a pedestal shifted by 2 ADU is a distance of 2.

    Args:
        one: counts of the values 0 … 255, of shape (256,), in any unit.
        other: likewise.

    Raises:
        ValueError: another shape, or nothing was counted.
    """
    return float(np.abs(np.cumsum(_shares(one)) - np.cumsum(_shares(other))).sum())


def with_noise(counts: NDArray[Any], rms_adu: float) -> NDArray[np.float64]:
    """What Gaussian noise makes of a histogram.

    Args:
        counts: of the values 0 … 255, of shape (256,).
        rms_adu: of the noise, in ADU; 0 changes nothing.

    Returns:
        float64 of shape (256,), of the same sum: the expected counts. What would leave the range
        is in the first or the last bin, as in an 8-bit image.

    Raises:
        ValueError: another shape, or an RMS below 0.
    """
    if counts.shape != (BINS,):
        raise ValueError(f"counts of shape {counts.shape}: must be ({BINS},)")
    if not 0 <= rms_adu < math.inf:
        raise ValueError(f"rms_adu = {rms_adu!r}: must not be below 0")
    if rms_adu == 0:
        return counts.astype(np.float64)
    reach = BINS - 1
    with np.errstate(over="ignore"):  # of noise too small to move any pixel
        edges = (np.arange(-reach, reach + 2) - 0.5) / (rms_adu * math.sqrt(2))
    below = np.array([(1 + math.erf(edge)) / 2 for edge in edges])
    below[0], below[-1] = 0, 1
    spread = np.convolve(counts.astype(np.float64), np.diff(below))  # of values −255 … 510
    noisy: NDArray[np.float64] = spread[reach : reach + BINS].copy()
    noisy[0] += spread[:reach].sum()
    noisy[-1] += spread[reach + BINS :].sum()
    return noisy


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    if counts.shape != (BINS,):
        raise ValueError(f"counts of shape {counts.shape}: must be ({BINS},)")
    total = counts.sum()
    if not total > 0:
        raise ValueError("nothing was counted, so it is at no distance from anything")
    return np.asarray(counts / total, np.float64)
