"""One pass over training images: each is decoded once, for its ground truth and its pixel counts.

Here belongs the pass, and what it was made from (`input_digest`); not where the archive is from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cygno_assets.physics.ground_truth import (
    RECOIL_TYPES,
    Label,
    UnlabelledPathError,
    energy_key,
    label_of,
)
from cygno_assets.physics.histogram import PixelHistogram, pixel_counts
from cygno_assets.training.decode import decode_each

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from PIL.Image import Image

    from cygno_assets.training.archive import Archive

CODE_VERSION = "1"
"""Of the pass: raised when the same images would give another result."""

_FOLDERS = {recoil_type: folder for folder, recoil_type in RECOIL_TYPES.items()}


@dataclass(frozen=True)
class SurveyedImage:
    """The ground truth of one image.

    Attributes:
        path: in the archive.
        label: recoil type and energy, from the path.
        width: in pixels.
        height: in pixels.
        pixel_sha256: of the decoded pixels, row by row, hexadecimal.
    """

    path: str
    label: Label
    width: int
    height: int
    pixel_sha256: str


@dataclass(frozen=True)
class Survey:
    """What one pass found.

    Attributes:
        images: in the order asked for.
        histogram: of all of them.
    """

    images: Sequence[SurveyedImage]
    histogram: PixelHistogram


def labelled(paths: Iterable[str]) -> tuple[dict[str, Label], dict[str, str]]:
    """Sorts an archive's paths into those with a label and those without.

    Returns:
        Label by path, and the reason by path of those that fit no rule; each in the order given.
    """
    labels: dict[str, Label] = {}
    reasons: dict[str, str] = {}
    for path in paths:
        try:
            labels[path] = label_of(path)
        except UnlabelledPathError as error:
            reasons[path] = str(error)
    return labels, reasons


def cell_key(label: Label) -> str:
    """The cell of the recoil type × energy grid that a label belongs to: `6keV|NR`."""
    return f"{energy_key(label.energy_kev)}|{_FOLDERS[label.recoil_type]}"


def labels_by_cell(paths: Iterable[str]) -> dict[str, dict[str, Label]]:
    """Sorts an archive's paths into cells; a cell without images is not there."""
    cells: dict[str, dict[str, Label]] = {}
    for path, label in labelled(paths)[0].items():
        cells.setdefault(cell_key(label), {})[path] = label
    return cells


def other_cells(archive: Archive, made_from: Mapping[str, str | None]) -> list[str]:
    """Which cells were not made from this archive.

    Args:
        archive: as it is now.
        made_from: `input_digest` of each cell when it was made.
    """
    cells = labels_by_cell(archive.members)
    return [
        key
        for key, digest in made_from.items()
        if digest != input_digest(archive, cells.get(key, {}))
    ]


def input_digest(archive: Archive, members: Iterable[str]) -> str:
    """What a survey of these members is made from; reads no byte of them.

    Returns:
        sha256, hexadecimal, of their paths, the checksums in the archive's directory, and
        CODE_VERSION. Equal digests, equal surveys.
    """
    digest = hashlib.sha256(f"{CODE_VERSION}\n".encode())
    for member in sorted(members):
        digest.update(f"{archive.checksum(member):08x} {archive.size(member)} {member}\n".encode())
    return digest.hexdigest()


def survey(archive: Archive, labels: dict[str, Label], *, max_pixels: int) -> Survey:
    """Decodes each image once, for its ground truth and its counts.

    Args:
        archive: that holds them.
        labels: of the members to look at, by path.
        max_pixels: largest width × height accepted.

    Raises:
        ImageError: names the members that are no 8-bit mode L images, and says why.
        ArchiveError: a member is damaged.
    """

    def part(images: Iterator[tuple[str, Image]]) -> Survey:
        found: list[SurveyedImage] = []
        histograms: list[PixelHistogram] = []
        for path, image in images:
            digest = pixel_sha256(image)
            found.append(SurveyedImage(path, labels[path], image.width, image.height, digest))
            histograms.append(PixelHistogram(1, pixel_counts(image)))
        return Survey(found, PixelHistogram.total(histograms))

    images: list[SurveyedImage] = []
    histogram = PixelHistogram.total([])
    for found in decode_each(archive, list(labels), part, max_pixels=max_pixels):
        images.extend(found.images)
        histogram = PixelHistogram.total([histogram, found.histogram])
    return Survey(images, histogram)


def pixel_sha256(image: Image) -> str:
    """sha256, hexadecimal, of an image's decoded pixels, row by row."""
    return hashlib.sha256(_pixels(image)).hexdigest()


def _pixels(image: Image) -> Any:
    """The pixels, row by row, as a buffer; copied only if Pillow has them in several pieces."""
    import pyarrow as pa

    try:
        return pa.array(image).buffers()[1][: image.width * image.height]
    except ValueError:  # Pillow's, of an image larger than a block of its memory (16 MB)
        return image.tobytes()
