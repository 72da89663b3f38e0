"""Decoding an archive's images, each once, on all cores; what is done with them is the caller's."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from cygno_assets.physics.images import ImageError, decode_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

    from cygno_assets.training.archive import Archive

_AT_ONCE = 8
"""Images of a task: few, so that all cores are busy to the end, of a small cell too."""
_AHEAD = 2
"""Tasks for each thread, under way or done and not taken yet: memory does not grow with a cell."""
_REFUSED_SHOWN = 10

Part = TypeVar("Part")


def decode_each(
    archive: Archive,
    paths: Sequence[str],
    part: Callable[[Iterator[tuple[str, Image]]], Part],
    *,
    max_pixels: int,
) -> Iterator[Part]:
    """Decodes images some at a time, in threads: decompression and decoding release the GIL.

    Processes that run already are about as fast, but a run would have to start them
    (benchmarks/training_histogram.py).

    Args:
        archive: that holds them.
        paths: of the members to decode.
        part: makes of some paths and their images what is wanted of them; called in threads, and
            must take all it is given. An `ImageError` that it raises while it has an image refuses
            nothing: it ends everything.
        max_pixels: largest width × height accepted.

    Yields:
        What `part` made, in the order of the paths.

    Raises:
        ImageError: in the end; names the members that are no 8-bit mode L images, and says why.
        ArchiveError: a member is damaged.
    """
    refused: dict[str, str] = {}

    def images(some: Sequence[str]) -> Iterator[tuple[str, Image]]:
        for path in some:
            try:
                image = decode_image(archive.read(path), max_pixels=max_pixels)
            except ImageError as error:
                refused[path] = str(error)
            else:
                yield path, image

    slices = (paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE))
    with ThreadPoolExecutor(archive.at_once) as threads:
        tasks = (threads.submit(lambda some=some: part(images(some))) for some in slices)  # type: ignore[misc]  # mypy cannot type the default
        under_way = deque(islice(tasks, _AHEAD * archive.at_once))
        while under_way:
            yield under_way.popleft().result()
            under_way.extend(islice(tasks, 1))
    raise_refused(refused, len(paths))


def raise_refused(refused: dict[str, str], of: int) -> None:
    """Raises one ImageError for all images refused, with their reasons by path; for none, nothing.

    Args:
        refused: the reasons.
        of: how many images there were.
    """
    if not refused:
        return
    reasons = [f"{path}: {refused[path]}" for path in sorted(refused)]
    more = len(reasons) - _REFUSED_SHOWN
    shown = "; ".join(reasons[:_REFUSED_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise ImageError(f"{len(reasons)} of {of} images refused: {shown}")
