"""Reading every stored image and tensor: whether each holds what it should.

What it should hold is known by the md5 in an image's name, and by the data version that Dagster
has of the newest materialization. Which files are there at all, is reconciliation.py's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cygno_assets.daq.announcement import md5_in
from cygno_assets.daq.download import content_md5
from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.records.history import events_of, unfinished_runs
from cygno_assets.records.made import newest_of
from cygno_assets.records.reconciliation import MEANINGS, Difference
from cygno_assets.storage.io_managers import TensorIOManager
from cygno_assets.storage.locations import file_names, read_if_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dagster import AssetKey, DagsterInstance
    from upath import UPath

_AT_ONCE = 500


def damaged(instance: DagsterInstance, root: UPath) -> list[Difference]:
    """Stored images and tensors whose content is not what it should be.

    A file that is written anew between two looks at it and its record is looked at again.

    Args:
        instance: Dagster's.
        root: of the stored files.
    """
    images = _wrong(instance, root, RAW_IMAGE, _is_image)
    tensors = _wrong(instance, root, PREPROCESSED_TENSOR, _is_tensor)
    being_made = events_of(unfinished_runs(instance))
    return [
        *(Difference(e, "damaged image", MEANINGS["damaged image"]) for e in images),
        *(
            Difference(e, "damaged tensor", MEANINGS["damaged tensor"])
            for e in tensors
            if e not in images and e not in being_made
        ),
    ]


def _wrong(
    instance: DagsterInstance,
    root: UPath,
    asset: AssetKey,
    is_right: Callable[[bytes, str, str | None], bool],
) -> list[str]:
    """Events whose file is wrong twice."""
    folder = root.joinpath(*asset.path)
    names = file_names(folder)

    def wrong_of(events: Sequence[str]) -> Iterator[str]:
        for first in range(0, len(events), _AT_ONCE):
            some = events[first : first + _AT_ONCE]
            made = newest_of(instance, asset, some)
            for event in some:
                data = read_if_there(folder / names[event])
                version = made[event].version if event in made else None
                if data is not None and not is_right(data, event, version):
                    yield event

    return list(wrong_of(list(wrong_of(sorted(names)))))


def _is_image(data: bytes, event: str, version: str | None) -> bool:
    """Whether these are the bytes that the name, or else the data version, is the md5 of."""
    return (md5_in(event) or version) in {None, content_md5(data)}


def _is_tensor(data: bytes, _: str, version: str | None) -> bool:
    """Whether it is an array, and the one whose digest the data version ends in."""
    try:
        tensor = TensorIOManager().from_bytes(data)
    except ValueError:
        return False
    digest = hashlib.sha256(tensor.tobytes()).hexdigest()
    return version is None or digest.startswith(version.rpartition("-")[2])
