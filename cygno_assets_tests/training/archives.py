"""Small archives in the training set's layout, of real and simulated images, and hostile ones."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cygno_assets.daq.simulator.camera import simulate_image
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROOT = "data/export/train"
SYMBOLIC_LINK = 0o120777 << 16
_REAL = REAL_IMAGES[0].read_bytes()


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


# --- hostile ones, as bytes


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = 0) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def named(name: str) -> bytes:
    """An archive with a member of this name, whatever zipfile would make of it."""
    placeholder = "x" * len(name.encode())
    return zipped((placeholder, b"1")).replace(placeholder.encode(), name.encode())


def link() -> bytes:
    info = zipfile.ZipInfo("NR/6_keV/a.png")
    info.external_attr = SYMBOLIC_LINK
    return zipped((info, b"/etc/passwd"))


def with_directory_field(offset: int, value: int, size: str = "<H") -> bytes:
    """A good archive with one field of its directory's first entry changed."""
    data = bytearray(zipped(("a.png", _REAL)))
    struct.pack_into(size, data, data.index(b"PK\x01\x02") + offset, value)
    return bytes(data)


def overlapping() -> bytes:
    """Two entries of the directory that share the same bytes, as in an overlapping zip bomb."""
    data = bytearray(zipped(("a.png", _REAL), ("b.png", _REAL)))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 1)
    cut = data.index(b"PK\x03\x04", 1)  # drop the second member's own bytes
    del data[cut:first]
    first, second = cut, second - (first - cut)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    end = data.index(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 16, first)
    return bytes(data)


def many_members(count: int, *, claimed: int | None = None, zip64: bool = False) -> bytes:
    """An archive whose directory has so many entries, the shortest there are, and claims others."""
    claimed = count if claimed is None else claimed
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *[20] * 2, *[0] * 14) + b"x"
    entry = entry[:28] + struct.pack("<H", 1) + entry[30:]
    directory = entry * count
    if not zip64:
        end = (claimed, claimed, len(directory), 0, 0)
        return directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *end)
    end64 = struct.pack(
        *("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, claimed, claimed, len(directory), 0)
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return directory + end64 + locator + end
