"""Where the light of an image is: whether its track lies inside the central crop.

Made to audit images, not to reconstruct tracks: it says which squares of 8 × 8 pixels are bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cygno_assets.physics.images import crop_corner

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_PX = 8
"""Side of the squares that are averaged: about the width of a spot, so noise averages out and
light does not. On simulated images every track from 3 keV up is found, and none where none is
(docs/training-a-model.md)."""
BRIGHT_SD = 6.0
"""How far above the others a square is bright, in standard deviations of the squares' means."""
FULL_SCALE_ADU = 255
"""A pixel of this value may have been brighter: the largest that 8 bits hold."""
_SD_OF_MAD = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation: 1 / Φ⁻¹(3/4)
(P. J. Rousseeuw and C. Croux, J. Am. Stat. Assoc. 88 (1993) 1273)."""
_LEAST_SD_ADU = 12**-0.5 / BLOCK_PX
"""Standard deviation of a square's mean by rounding alone, which is 1/√12 of a pixel's step, 1 ADU:
the squares of a flat image differ by less, and are no more exact than that."""


@dataclass(frozen=True)
class Track:
    """Where an image is bright.

    Attributes:
        inside: bright squares inside the crop.
        at_edge: those of them that touch the crop's edge.
        outside: bright squares outside the crop.
        saturated_px: pixels of FULL_SCALE_ADU, anywhere in the image.
    """

    inside: int
    at_edge: int
    outside: int
    saturated_px: int


@dataclass(frozen=True)
class Spot:
    """The brightest square of BLOCK_PX × BLOCK_PX pixels.

    Attributes:
        row: of its first pixel.
        column: of its first pixel.
        adu: mean of its pixels, in ADU.
    """

    row: int
    column: int
    adu: float


def brightest_spot(pixels: NDArray[np.uint8]) -> Spot | None:
    """The brightest square, counted from the image's corner; the first, if there are several.

    Args:
        pixels: (rows, columns), in ADU.

    Returns:
        None if the image is smaller than a square.
    """
    means = _means(pixels)
    if means.size == 0:
        return None
    row, column = divmod(int(means.argmax()), means.shape[1])
    return Spot(row * BLOCK_PX, column * BLOCK_PX, float(means[row, column]))


def find_track(pixels: NDArray[np.uint8], half_width: int) -> Track:
    """Finds the squares that stand out from an image's noise.

    A square is bright if its mean is more than BRIGHT_SD robust standard deviations (of the
    median absolute deviation, and no less than rounding's) above the median of all squares.
    Squares are counted from the crop's corner, so none lies across its edge unless the crop's side
    is no multiple of BLOCK_PX; then those that do count as inside and at the edge.

    Args:
        pixels: (rows, columns), in ADU; rows and columns at least 2 × half_width.
        half_width: of the central crop, in pixels.

    Raises:
        ImageError: the image is smaller than the crop.
    """
    first_row, first_column = crop_corner(pixels.shape, half_width)
    top, left = first_row % BLOCK_PX, first_column % BLOCK_PX
    means = _means(pixels[top:, left:])
    if means.size == 0:  # smaller than one square
        return Track(0, 0, 0, int(np.count_nonzero(pixels == FULL_SCALE_ADU)))
    median = np.median(means)
    sd = max(_SD_OF_MAD * np.median(np.abs(means - median)), _LEAST_SD_ADU)
    bright = means > median + BRIGHT_SD * sd
    side = -(-2 * half_width // BLOCK_PX)
    row, column = first_row // BLOCK_PX, first_column // BLOCK_PX
    crop = bright[row : row + side, column : column + side]
    inside = int(np.count_nonzero(crop))
    return Track(
        inside=inside,
        at_edge=inside - int(np.count_nonzero(crop[1:-1, 1:-1])),
        outside=int(np.count_nonzero(bright)) - inside,
        saturated_px=int(np.count_nonzero(pixels == FULL_SCALE_ADU)),
    )


def _means(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of whole squares, from the first corner on; what does not fill one is left out."""
    rows, columns = (length // BLOCK_PX for length in pixels.shape)
    whole = pixels[: rows * BLOCK_PX, : columns * BLOCK_PX]
    # Rows first, for they lie together in memory: five times as fast as both at once.
    sums = whole.reshape(rows, BLOCK_PX, columns * BLOCK_PX).sum(axis=1, dtype=np.uint16)
    means: NDArray[np.float64] = sums.reshape(rows, columns, BLOCK_PX).mean(axis=2) / BLOCK_PX
    return means
