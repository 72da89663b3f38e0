"""What a training image is: from its path in the archive to its label, by the school's rule.

Only the path tells; nothing here opens a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

RecoilType = Literal["nuclear", "electronic"]

RECOIL_TYPES: dict[str, RecoilType] = {"NR": "nuclear", "ER": "electronic"}
"""Recoil type by its folder's name, as the school has them."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class UnlabelledPathError(ValueError):
    """This path fits no rule; the text says which part does not."""


@dataclass(frozen=True)
class Label:
    """What a training image shows.

    Attributes:
        recoil_type: of the particle that made the track.
        energy_kev: of the recoil, in keV; decimals allowed.
    """

    recoil_type: RecoilType
    energy_kev: float


def label_of(path: str) -> Label:
    """The label of a training image.

    Args:
        path: in the archive: `…/{NR,ER}/<energy>_keV/<name>.png`.

    Raises:
        UnlabelledPathError: it fits no rule.
    """
    parts = PurePosixPath(path)
    if parts.suffix.lower() not in IMAGE_SUFFIXES:
        raise UnlabelledPathError(f"suffix {parts.suffix!r} is no image's")
    recoil, energy = parts.parent.parent.name, parts.parent.name
    if recoil not in RECOIL_TYPES:
        raise UnlabelledPathError(f"folder {recoil!r} is neither NR nor ER")
    number, _, unit = energy.partition("_")
    if unit != "keV":
        raise UnlabelledPathError(f"folder {energy!r} is not <energy>_keV")
    try:
        energy_kev = float(number)
    except ValueError:
        raise UnlabelledPathError(f"energy {number!r} is no number") from None
    if not (math.isfinite(energy_kev) and energy_kev > 0):
        raise UnlabelledPathError(f"energy {number!r} is not above 0")
    return Label(RECOIL_TYPES[recoil], energy_kev)


def energy_key(energy_kev: float) -> str:
    """An energy as partition keys have it: `6keV`, `0.5keV`; equal energies, equal keys."""
    return f"{energy_kev:.12g}keV"
