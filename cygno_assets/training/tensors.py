"""One pass over training images for their tensors, and for what the audit asks of each image.

Here belong the pass and what it was made from (`tensors_digest`); the tensor itself is made by
physics/images.py, as a live image's is.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cygno_assets.physics.images import ImageError, clipped_shares, preprocess
from cygno_assets.physics.tracks import find_track
from cygno_assets.storage.tables import row_dicts, table_of
from cygno_assets.storage.tensor_table import ROWS_AT_ONCE, TensorTable
from cygno_assets.training.decode import decode_each, raise_refused
from cygno_assets.training.tables import TENSOR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray
    from PIL.Image import Image

    from cygno_assets.physics.spec import PreprocessSpec
    from cygno_assets.training.archive import Archive

CODE_VERSION = "2"
"""Of the pass: raised when the same images would give another result."""


def tensors_digest(ground_truth: str, spec: PreprocessSpec) -> str:
    """What a cell's tensors are made from.

    Args:
        ground_truth: `survey.input_digest` of the cell.
        spec: of the tensors.

    Returns:
        sha256, hexadecimal. Equal digests, equal tensors.
    """
    return hashlib.sha256(f"{CODE_VERSION} {spec.hash} {ground_truth}".encode()).hexdigest()


def make_tensors(
    archive: Archive, ground_truth: pd.DataFrame, spec: PreprocessSpec, *, max_pixels: int
) -> Iterator[TensorTable]:
    """Decodes each image once, and makes its tensor as `preprocessed_tensor` does a live one's.

    Args:
        archive: that holds the images.
        ground_truth: a row for each.
        spec: of the tensors.
        max_pixels: largest width × height accepted.

    Yields:
        TENSOR_COLUMNS and a tensor for each image, in the order of the rows, some at a time: all
        of a cell need not be in memory. Of no images, one empty table.

    Raises:
        ImageError: in the end; names the members that are no 8-bit mode L images or smaller than
            the crop.
        ArchiveError: a member is damaged.
    """
    rows = {row["path"]: row for row in row_dicts(ground_truth)}
    refused: dict[str, str] = {}

    def part(
        images: Iterator[tuple[str, Image]],
    ) -> tuple[list[tuple[Any, ...]], list[NDArray[np.float32]]]:
        known: list[tuple[Any, ...]] = []
        tensors: list[NDArray[np.float32]] = []
        for path, image in images:
            try:
                tensor = preprocess(image, spec)
                track = find_track(np.asarray(image), spec.half_width)
                clipped = clipped_shares(image, spec)
            except ImageError as error:
                refused[path] = str(error)
                continue
            row = rows[path]
            known.append(
                (
                    path,
                    row["recoil_type"],
                    row["energy_kev"],
                    row["pixel_sha256"],
                    hashlib.sha256(tensor.tobytes()).hexdigest(),
                    spec.hash,
                    *clipped,
                    track.inside,
                    track.at_edge,
                    track.outside,
                    track.saturated_px,
                )
            )
            tensors.append(tensor)
        return known, tensors

    known: list[tuple[Any, ...]] = []
    tensors: list[NDArray[np.float32]] = []
    for some_known, some_tensors in decode_each(archive, list(rows), part, max_pixels=max_pixels):
        known += some_known
        tensors += some_tensors
        if len(known) >= ROWS_AT_ONCE:
            yield TensorTable(table_of(TENSOR_COLUMNS, known), np.stack(tensors))
            known, tensors = [], []
    raise_refused(refused, len(rows))
    if known or not rows:
        nothing = np.empty((0, spec.side, spec.side), np.float32)
        yield TensorTable(
            table_of(TENSOR_COLUMNS, known), np.stack(tensors) if tensors else nothing
        )
