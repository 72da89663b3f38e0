"""Small archives of real and simulated images, in the training set's layout."""

from __future__ import annotations

import functools
import io
import zipfile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cygno_assets.daq.simulator.camera import simulate_image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROOT = "data/export/train"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@functools.cache
def simulated_png(seed: int) -> bytes:
    """A simulated image; another one for each seed."""
    rng = np.random.default_rng(seed)
    return png(simulate_image(rng, "nuclear" if seed % 2 else "electronic", 1.0 + seed % 30))


def write_archive(path: Path, members: Mapping[str, bytes]) -> None:
    """Replaces the archive at once, as a server or `mv` does."""
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    partial.replace(path)


def cell(folder: str, *seeds: int) -> dict[str, bytes]:
    """Members of one cell, `NR/6_keV`: an image for each seed."""
    return {f"{ROOT}/{folder}/cygno-{seed:04d}.png": simulated_png(seed) for seed in seeds}
