"""Counting pixels: exact, mergeable histograms of 8-bit images. No plots: those are figures.py."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from PIL.Image import Image

BINS = 256
"""One bin for each value 0 … 255, with edges −0.5 … 255.5."""


def pixel_counts(image: Image) -> NDArray[np.int64]:
    """Counts how often each value occurs.

    Args:
        image: 8-bit, mode L.

    Returns:
        int64 of shape (256,): counts of the values 0 … 255. Counts of several images add up to
        those of all of them.

    Raises:
        ValueError: the image is not mode L.
    """
    if image.mode != "L":
        raise ValueError(f"pixels are counted in 8-bit mode L, not mode {image.mode}")
    # Pillow counts in C: three to six times as fast as numpy.histogram, and exact.
    return np.asarray(image.histogram(), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PixelHistogram:
    """Counts of any number of images; sums are exact, in whatever order they are made.

    Attributes:
        images: how many were counted.
        counts: int64 of shape (256,): how often the values 0 … 255 occur in all of them.

    Raises:
        ValueError: counts of another shape or dtype, or anything below zero.
    """

    images: int
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.counts.shape != (BINS,) or self.counts.dtype != np.int64:
            raise ValueError(
                f"counts are {self.counts.dtype} of shape {self.counts.shape}; they must be int64 "
                f"of shape ({BINS},)"
            )
        if self.images < 0 or self.counts.min() < 0:
            raise ValueError("neither images nor counts can be below zero")

    @classmethod
    def total(cls, parts: Iterable[PixelHistogram]) -> Self:
        """The histogram of all images of these histograms; of none, nothing."""
        images, counts = 0, np.zeros(BINS, dtype=np.int64)
        for part in parts:
            images += part.images
            counts = counts + part.counts
        return cls(images, counts)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` made.

        Raises:
            ValueError: it is not that.
        """
        try:
            counts = np.array([int(count) for count in value["counts"]], dtype=np.int64)
            return cls(int(value["images"]), counts)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no pixel histogram: {error!r}") from None

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.counts.sum())

    @property
    def digest(self) -> str:
        """sha256, hexadecimal, of the counts: equal histograms, equal digests."""
        return hashlib.sha256(f"{self.images}:{counts_to_text(self.counts)}".encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, for a file that any program reads."""
        return {
            "images": self.images,
            "pixels": self.pixels,
            "first_bin_edge_adu": -0.5,
            "last_bin_edge_adu": BINS - 0.5,
            "counts": self.counts.tolist(),
        }


def counts_to_text(counts: NDArray[np.int64]) -> str:
    """Counts as one short line: the smallest value that occurs, and the counts from there on.

    `58: 1 0 3` is one pixel of 58 ADU and three of 60.
    """
    present = np.flatnonzero(counts)
    if present.size == 0:
        return ""
    first, last = int(present[0]), int(present[-1])
    return f"{first}: " + " ".join(str(count) for count in counts[first : last + 1])


def counts_from_text(text: str) -> NDArray[np.int64]:
    """The counts that `counts_to_text` wrote.

    Returns:
        int64 of shape (256,).

    Raises:
        ValueError: the text is no such line.
    """
    counts = np.zeros(BINS, dtype=np.int64)
    if not text:
        return counts
    try:
        start, _, numbers = text.partition(": ")
        first, known = int(start), [int(number) for number in numbers.split(" ")]
    except ValueError:
        raise ValueError(f"{text[:60]!r} is no line of pixel counts") from None
    if not (first >= 0 and first + len(known) <= BINS and min(known) >= 0):
        raise ValueError(f"{text[:60]!r} counts values outside 0 … 255, or less than nothing")
    counts[first : first + len(known)] = known
    return counts


def mean_and_sd(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation (of the population), in ADU, of the pixels counted.

    Raises:
        ValueError: nothing was counted.
    """
    total = int(counts.sum())
    if total == 0:
        raise ValueError("no pixels were counted, so they have no mean")
    # In Python's unbounded integers: exact for any number of images.
    pairs = [(value, int(count)) for value, count in enumerate(counts)]
    first = sum(value * count for value, count in pairs)
    second = sum(value * value * count for value, count in pairs)
    variance = (second * total - first * first) / total**2
    return first / total, variance**0.5


def range_of(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Smallest and largest value that occurs, in ADU.

    Raises:
        ValueError: nothing was counted.
    """
    present = np.flatnonzero(counts)
    if present.size == 0:
        raise ValueError("no pixels were counted, so they have no range")
    return int(present[0]), int(present[-1])


def quantile(counts: NDArray[np.int64], share: float) -> int:
    """The smallest value, in ADU, that at least this share of the pixels do not exceed.

    Args:
        counts: int64 of shape (256,).
        share: in [0, 1].

    Raises:
        ValueError: nothing was counted, or the share is none.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: must be between 0 and 1")
    low, high = range_of(counts)
    below = np.cumsum(counts)
    # Integers, for a share of 10^10 pixels must not be off by one for rounding.
    wanted = max(ceil(Fraction(share) * int(below[-1])), 1)
    return min(max(int(np.searchsorted(below, wanted)), low), high)


def shares_outside(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    """How much of what was counted a window clips.

    Args:
        counts: int64 of shape (256,): pixels of each value.
        low: ADU that becomes 0.
        high: ADU that becomes 1.

    Returns:
        Shares of the pixels below low, and above high, each in [0, 1].

    Raises:
        ValueError: nothing was counted.
    """
    total = int(counts.sum())
    if total == 0:
        raise ValueError("no pixels were counted, so a window clips no share of them")
    values = np.arange(BINS)
    return int(counts[values < low].sum()) / total, int(counts[values > high].sum()) / total
