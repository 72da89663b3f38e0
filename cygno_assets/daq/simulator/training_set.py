"""A training set to work with: a seeded archive with the layout and population of the school's.

Belongs here: which images there are, and their zip. Does not: what an image looks like (camera.py).
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cygno_assets.daq.simulator.camera import simulate_image
from cygno_assets.physics.ground_truth import RECOIL_TYPES, RecoilType

ROOT = "data/export/train"
POPULATION: dict[tuple[RecoilType, float], int] = {
    ("nuclear", 1.0): 100,
    ("nuclear", 3.0): 2,
    ("nuclear", 6.0): 100,
    ("nuclear", 10.0): 2,
    ("nuclear", 20.0): 100,
    ("nuclear", 30.0): 2,
    ("electronic", 1.0): 2,
    ("electronic", 3.0): 100,
    ("electronic", 6.0): 2,
    ("electronic", 10.0): 100,
    ("electronic", 20.0): 2,
    ("electronic", 30.0): 100,
}
"""Images by recoil type and energy in keV: 612, as the school's. There, too, the energy gives the
label away, but for a few that cross over."""

_FOLDERS = {recoil_type: folder for folder, recoil_type in RECOIL_TYPES.items()}
_WRITTEN = (2024, 11, 27, 0, 0, 0)
"""Time stamp of every member: the same seed makes the same archive, byte for byte."""


def write_training_set(path: Path, seed: int, *, copies: int = 1) -> Iterator[str]:
    """Writes the archive, and yields each member's path when it is written.

    The file has its name only when it is whole.

    Args:
        path: of the zip; replaced if it is there.
        seed: decides every image; another image's is not touched by it.
        copies: so many times the population, all images different.

    Raises:
        ValueError: copies below 1, or the file's folder does not exist.
    """
    if copies < 1:
        raise ValueError(f"copies = {copies}: must be at least 1")
    if not path.parent.is_dir():
        raise ValueError(f"path = {str(path)!r}: its folder does not exist")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for member, image in _images(seed, copies):
                # PNG is compressed already.
                archive.writestr(zipfile.ZipInfo(member, _WRITTEN), image)
                yield member
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def member_count(copies: int = 1) -> int:
    """How many images `write_training_set` writes."""
    return copies * sum(POPULATION.values())


def _images(seed: int, copies: int) -> Iterator[tuple[str, bytes]]:
    cells = [cell for cell, count in POPULATION.items() for _ in range(copies * count)]
    for number, ((recoil_type, energy_kev), sequence) in enumerate(
        zip(cells, np.random.SeedSequence(seed).spawn(len(cells)), strict=True)
    ):
        image = simulate_image(np.random.default_rng(sequence), recoil_type, energy_kev)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        folder = f"{ROOT}/{_FOLDERS[recoil_type]}/{energy_kev:g}_keV"
        yield f"{folder}/cygno-{number:04d}.png", file.getvalue()
