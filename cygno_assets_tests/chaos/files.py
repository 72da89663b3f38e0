"""What is on the disk: whether files are whole, and whether any tells a secret."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cygno_assets.daq.announcement import md5_in
from cygno_assets.daq.download import content_md5
from cygno_assets.physics.images import decode_image, preprocess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Set

    from upath import UPath

    from cygno_assets.physics.spec import PreprocessSpec

_IMAGES, _TENSORS = "raw_image", "preprocessed_tensor"
_MAX_PIXELS = 1_000_000
_PIECE_BYTES = 16 * 1024**2


def write_folders(data: Path) -> list[Path]:
    """Where the files of events are written."""
    return [data / _IMAGES, data / _TENSORS]


def damaged(data: Path | UPath, events: Iterable[str], spec: PreprocessSpec) -> list[str]:
    """What is wrong with the files of events that have a tensor: each must have both, and right.

    Args:
        data: folder of all that is stored, or a place in a bucket.
        events: that are materialized.
        spec: that their tensors are made by.
    """
    found = []
    for event in events:
        image, tensor = _files(data, event)
        if not image.is_file():
            found.append(f"{image} is not there")
        elif wrong := _wrong_image(image):
            found.append(wrong)
        if not tensor.is_file():
            found.append(f"{tensor} is not there")
        elif wrong := _wrong_tensor(tensor, image, spec):
            found.append(wrong)
    return found


def half_files(data: Path, spec: PreprocessSpec, since: float) -> list[str]:
    """Files that are whole by their name and are not; to be asked before anything repairs them.

    Args:
        data: folder of all that is stored.
        spec: that tensors are made by.
        since: only files written after this time, in seconds since 1970.
    """
    wrong = [
        *(_wrong_image(file) for file in _written(data / _IMAGES, ".jpg", since)),
        *(
            _wrong_tensor(file, _files(data, file.stem)[0], spec)
            for file in _written(data / _TENSORS, ".npy", since)
        ),
    ]
    return [*filter(None, wrong)]


def secrets_in(home: Path, secrets: Mapping[str, str], skip: Iterable[str]) -> list[str]:
    """Files that hold what must not be found in them.

    Args:
        home: folder to search.
        secrets: by what they are called.
        skip: patterns of files and folders, below `home`, that may hold them.
    """
    skipped = {path for pattern in skip for path in home.glob(pattern)}
    return [
        f"{file.relative_to(home)} holds {name}"
        for file in sorted(_below(home, skipped))
        for name, secret in secrets.items()
        if _holds(file, secret.encode())
    ]


def _below(home: Path, skipped: Set[Path]) -> Iterator[Path]:
    """Files; by os.walk, for folders that go meanwhile are no matter to it."""
    for folder, folders, names in os.walk(home):
        here = Path(folder)
        folders[:] = [name for name in folders if here / name not in skipped]
        yield from (here / name for name in names if here / name not in skipped)


def _holds(file: Path, secret: bytes) -> bool:
    end = b""
    with suppress(FileNotFoundError), file.open("rb") as content:
        while piece := content.read(_PIECE_BYTES):
            if secret in end + piece:
                return True
            end = piece[-len(secret) :]
    return False


def _files(data: Path | UPath, event: str) -> tuple[Path | UPath, Path | UPath]:
    return data / _IMAGES / f"{event}.jpg", data / _TENSORS / f"{event}.npy"


def _written(folder: Path, suffix: str, since: float) -> Iterator[Path]:
    """Of whole names: the others begin with a dot."""
    for file in folder.glob(f"[!.]*{suffix}"):
        if file.stat().st_mtime >= since:
            yield file


def _wrong_image(file: Path | UPath) -> str | None:
    if content_md5(file.read_bytes()) == md5_in(file.stem):
        return None
    return f"{file} is not the image of its name"


def _wrong_tensor(file: Path | UPath, image: Path | UPath, spec: PreprocessSpec) -> str | None:
    try:
        tensor = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError):
        return f"{file} is no array"
    if not image.is_file() or _wrong_image(image):
        return f"{file} has no image to be made of"
    made = preprocess(decode_image(image.read_bytes(), max_pixels=_MAX_PIXELS), spec)
    if tensor.dtype == made.dtype and np.array_equal(tensor, made):
        return None
    return f"{file} is not its image's tensor"
