"""Choosing a window from what was counted: the rule, and the windows that others chose.

Here belongs the choice; what a window does to an image is images.py, what it is part of spec.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cygno_assets.physics.histogram import range_of, shares_outside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KNOWN_WINDOWS: tuple[tuple[float, float], ...] = ((80, 110), (60, 130), (98, 105), (50, 200))
"""The windows of the school's material, in ADU."""

MAX_CLIPPED_SHARE = 0.001
"""Of the pixels, on either side: one in a thousand."""


@dataclass(frozen=True)
class Window:
    """A window, and what it clips.

    Attributes:
        low: ADU that becomes 0.
        high: ADU that becomes 1.
        clipped_low: share of the pixels below low, in [0, 1].
        clipped_high: share of the pixels above high, in [0, 1].
    """

    low: float
    high: float
    clipped_low: float
    clipped_high: float

    @classmethod
    def of(cls, counts: NDArray[np.int64], low: float, high: float) -> Window:
        """This window on these pixels.

        Raises:
            ValueError: nothing was counted.
        """
        return cls(low, high, *shares_outside(counts, low, high))


def suggest_window(
    counts: NDArray[np.int64], *, max_clipped_share: float = MAX_CLIPPED_SHARE
) -> Window:
    """The narrowest window of whole ADU that clips at most this share on either side.

    Narrow, so that the levels of the tensor go to the pixels there are; but tracks are the bright
    tail, and what is clipped is lost to a model, so the tail may only lose its thousandth part.

    Args:
        counts: int64 of shape (256,), of the whole dataset.
        max_clipped_share: in [0, 0.5).

    Returns:
        The window; at least 1 ADU wide.

    Raises:
        ValueError: nothing was counted, or the share is none.
    """
    if not 0 <= max_clipped_share < 0.5:
        raise ValueError(f"max_clipped_share = {max_clipped_share}: must be in [0, 0.5)")
    first, last = range_of(counts)
    low = max(
        value
        for value in range(first, last + 1)
        if shares_outside(counts, value, last)[0] <= max_clipped_share
    )
    high = min(
        value
        for value in range(first, last + 1)
        if shares_outside(counts, first, value)[1] <= max_clipped_share
    )
    # Where all pixels are alike there is nothing between low and high: make room for one ADU.
    return Window.of(counts, low, max(high, low + 1))
