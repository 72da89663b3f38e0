"""Which images a model is trained on and which it is judged by; decided by content, not by order.

Here belong the rules; the tables they are applied to are training/'s.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitSpec:
    """How a training set is divided.

    Attributes:
        seed: another one divides it otherwise.
        validation_share: expected share of the images that are `validation`, in [0, 1).
        test_share: expected share of the images that are `test`, in [0, 1).
        energy_fold_edges_kev: where one energy fold ends and the next begins, in keV, ascending;
            an edge itself belongs to the upper one. By default each fold of the school's set has
            an energy of nuclear and one of electron recoils: 1 and 3, 6 and 10, 20 and 30 keV.
        version: of the rule itself; raised when the same numbers would divide otherwise.

    Raises:
        ValueError: shares below 0, or nothing left to train on; edges that are none, not above 0,
            not finite or not ascending.
    """

    seed: int = 0
    validation_share: float = 0.15
    test_share: float = 0.15
    energy_fold_edges_kev: tuple[float, ...] = (5.0, 15.0)
    version: int = 2

    def __post_init__(self) -> None:
        if not (
            self.validation_share >= 0
            and self.test_share >= 0
            and self.validation_share + self.test_share < 1
        ):
            raise ValueError(
                f"validation_share ({self.validation_share}) and test_share ({self.test_share}) "
                "must be at least 0, and together below 1"
            )
        check_edges(self.energy_fold_edges_kev)

    @cached_property
    def rule(self) -> Mapping[str, Any]:
        """The rule as plain values; 5 and 5.0 are the same edge here, and so are shares."""
        return asdict(self) | {
            "validation_share": float(self.validation_share),
            "test_share": float(self.test_share),
            "energy_fold_edges_kev": [float(edge) for edge in self.energy_fold_edges_kev],
        }

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that stand for exactly this rule."""
        text = json.dumps(self.rule, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def energy_folds(self) -> Sequence[str]:
        """Names of the folds, energies ascending: `below 5 keV`, `5 to 15 keV`, `from 15 keV`."""
        edges = [str(float(edge)).removesuffix(".0") for edge in self.energy_fold_edges_kev]
        between = [f"{low} to {high} keV" for low, high in pairwise(edges)]
        return [f"below {edges[0]} keV", *between, f"from {edges[-1]} keV"]


def check_edges(edges_kev: Sequence[float]) -> None:
    """Refuses what are no edges of energy folds.

    Args:
        edges_kev: in keV.

    Raises:
        ValueError: names them.
    """
    if not (
        edges_kev
        and all(0 < edge < math.inf for edge in edges_kev)
        and all(low < high for low, high in pairwise(edges_kev))
    ):
        raise ValueError(
            f"edges of energy folds {tuple(edges_kev)}: must be at least one, in keV, above 0 and "
            "finite, each above the one before"
        )


def lot(pixel_sha256: str, spec: SplitSpec) -> float:
    """An image's number, as if drawn by lot, from its pixels and the seed alone.

    Args:
        pixel_sha256: of the decoded pixels, hexadecimal.
        spec: of which the seed is used.

    Returns:
        A multiple of 2⁻⁴⁸ in [0, 1): the first 48 bits of the sha256 of seed and digest, which is
        as good as uniform.
    """
    digest = hashlib.sha256(f"{spec.seed}:{pixel_sha256}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def split_of(pixel_sha256: str, spec: SplitSpec) -> Split:
    """An image's split: by its pixels and the seed alone.

    So each recoil × energy cell is divided by its own images, adding images moves none, and the
    same pixels, wherever they occur, are in one split.

    Args:
        pixel_sha256: of the decoded pixels, hexadecimal.
        spec: seed and shares.
    """
    drawn = lot(pixel_sha256, spec)
    if drawn < spec.test_share:
        return "test"
    return "validation" if drawn < spec.test_share + spec.validation_share else "train"


def energy_fold_of(energy_kev: float, spec: SplitSpec) -> str:
    """The fold that an image is left out with, by its energy alone.

    Leave-energy-out: each fold is judged by a model that has not seen its energies. Where the
    energy gives the label away, a single energy would be images of one recoil type, and so a fold
    is a range of energies; its edges are fixed, so that adding images moves none.

    Args:
        energy_kev: in keV.
        spec: with the edges.

    Returns:
        One of `spec.energy_folds`.
    """
    return spec.energy_folds[bisect(spec.energy_fold_edges_kev, energy_kev)]
