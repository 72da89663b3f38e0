"""The column pattern of an image: noise of the columns' read-out, and columns that are hot.

Here belongs what one image tells; what a window of events tells is checks/live_window.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ColumnPattern:
    """How an image's columns differ.

    Attributes:
        sd_adu: standard deviation of the columns' means, in ADU. Of the school's images it is
            0.71; white noise of their pixels alone would give 0.22 (docs/physics.md).
        hottest: the column with the largest mean, counted from 0.
        excess_adu: how far that mean is above the median of all columns' means, in ADU.
    """

    sd_adu: float
    hottest: int
    excess_adu: float


def column_pattern(pixels: NDArray[np.uint8]) -> ColumnPattern:
    """Compares the means of an image's columns.

    Args:
        pixels: (rows, columns), at least one of each, in ADU.
    """
    # Sums in uint32, row by row as they lie in memory; the mean of uint8 would go by float64.
    means = pixels.sum(axis=0, dtype=np.uint32) / pixels.shape[0]
    hottest = int(means.argmax())
    return ColumnPattern(
        sd_adu=float(means.std()),
        hottest=hottest,
        excess_adu=float(means[hottest] - np.median(means)),
    )
