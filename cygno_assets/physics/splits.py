"""Which images a model is trained on and which it is judged by; decided by content, not by order.

Here belong the rules; the tables they are applied to are training/'s.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cygno_assets.physics.ground_truth import RecoilType

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

MIN_SHARE_OF_EACH_TYPE = 0.1
"""Of the images of an energy fold: with fewer, its score would be that of one recoil type."""


@dataclass(frozen=True)
class SplitSpec:
    """How a training set is divided.

    Attributes:
        seed: another one divides it otherwise.
        validation_share: expected share of the images that are `validation`, in [0, 1).
        test_share: expected share of the images that are `test`, in [0, 1).
        version: of the rule itself; raised when the same numbers would divide otherwise.

    Raises:
        ValueError: shares below 0, or nothing left to train on.
    """

    seed: int = 0
    validation_share: float = 0.15
    test_share: float = 0.15
    version: int = 1

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

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that stand for exactly this rule."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def lot(pixel_sha256: str, spec: SplitSpec) -> float:
    """An image's number in [0, 1), as if drawn by lot, from its pixels and the seed alone."""
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


@dataclass(frozen=True)
class EnergyFold:
    """Energies that are left out together.

    Attributes:
        energies_kev: ascending.
        images: with these energies, by recoil type.
    """

    energies_kev: tuple[float, ...]
    images: Mapping[RecoilType, int]

    @property
    def name(self) -> str:
        """Its energies: `1+3 keV`."""
        return "+".join(f"{energy:.12g}" for energy in self.energies_kev) + " keV"


def energy_folds(population: Mapping[tuple[RecoilType, float], int]) -> Sequence[EnergyFold]:
    """Leave-energy-out: each fold is judged by a model that has not seen its energies.

    Where the energy gives the label away, a single energy left out would be images of one recoil
    type. So neighbouring energies are put together, from the lowest up, until each type has at
    least MIN_SHARE_OF_EACH_TYPE of the fold's images; what is left over belongs to the last fold.
    Where each energy has both types, each is a fold of its own.

    Args:
        population: images by recoil type and energy in keV.

    Returns:
        The folds, energies ascending; every energy is in exactly one. A set of one recoil type
        gives a single fold.
    """
    folds: list[EnergyFold] = []
    gathered = EnergyFold((), {"nuclear": 0, "electronic": 0})
    present = {energy for (_, energy), images in population.items() if images}
    for energy in sorted(present):
        gathered = EnergyFold(
            (*gathered.energies_kev, energy),
            {
                recoil_type: images + population.get((recoil_type, energy), 0)
                for recoil_type, images in gathered.images.items()
            },
        )
        counts = gathered.images.values()
        if min(counts) >= MIN_SHARE_OF_EACH_TYPE * sum(counts):
            folds.append(gathered)
            gathered = EnergyFold((), {"nuclear": 0, "electronic": 0})
    if not gathered.energies_kev:
        return folds
    last = folds.pop() if folds else EnergyFold((), {"nuclear": 0, "electronic": 0})
    together = {kind: last.images[kind] + images for kind, images in gathered.images.items()}
    return [*folds, EnergyFold(last.energies_kev + gathered.energies_kev, together)]
