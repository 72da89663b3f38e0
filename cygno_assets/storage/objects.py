"""Objects of a bucket that are too large to be read whole: a range at a time, of one version.

Here belong the requests; what may go wrong with them is in errors.py, and what the bytes mean is
not known here.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from cygno_assets.storage.errors import ObjectChangedError, named_errors
from cygno_assets.storage.locations import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from obstore.store import S3Store
    from typing_extensions import Buffer
    from upath import UPath

_PIECE_BYTES = 8 * 1024 * 1024
"""Of a long read: a request must end within the store's time limit."""
_TAIL_BYTES = 128 * 1024
"""Has a zip's end, however long its comment is, and the directory of a thousand images."""


@dataclass(frozen=True)
class StoredObject:
    """One version of an object. Threads may read it at the same time, each by requests of its own.

    Attributes:
        path: of the object, with what opens its bucket.
        size_bytes: of it.
        etag: of this version.
    """

    path: UPath
    size_bytes: int
    etag: str

    @classmethod
    def at(cls, path: UPath) -> Self:
        """The object as it is now.

        Raises:
            FileNotFoundError: there is none.
            StoreError: the store does not say.
        """
        import obstore

        with named_errors(path, FileNotFoundError):
            found = obstore.head(_store_of(path), _key(path))
        return cls(path, found["size"], found["e_tag"] or "")

    @classmethod
    def put(cls, path: UPath, pieces: Iterator[bytes]) -> Self:
        """Stores an object piece by piece; it is there when it is whole, or not at all.

        Whatever `pieces` raises is raised here, and then nothing is stored.

        Raises:
            StoreError: the store does not take it.
        """
        import obstore

        size_bytes = 0

        def counted() -> Iterator[bytes]:
            nonlocal size_bytes
            for piece in pieces:
                size_bytes += len(piece)
                yield piece

        with named_errors(path, FileNotFoundError):
            stored = obstore.put(_store_of(path), _key(path), counted())
        return cls(path, size_bytes, stored["e_tag"] or "")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @cached_property
    def _store(self) -> S3Store:
        return _store_of(self.path)

    def read(self, start: int, end: int) -> Buffer:
        """Bytes from `start` up to and without `end`, in one request; no copy of them is made.

        Raises:
            ObjectChangedError: it is no longer this version.
            StoreError: the store does not deliver.
        """
        import obstore

        with named_errors(self.path, ObjectChangedError):
            options = {"range": (start, end), "if_match": self.etag}
            return obstore.get(self._store, _key(self.path), options=options).bytes()  # type: ignore[arg-type]  # obstore's TypedDict, of a literal

    def pieces(self) -> Iterator[Buffer]:
        """All bytes, one piece after the other.

        Raises:
            ObjectChangedError: it is no longer this version.
            StoreError: the store does not deliver.
        """
        for start in range(0, self.size_bytes, _PIECE_BYTES):
            yield self.read(start, min(start + _PIECE_BYTES, self.size_bytes))


class RangeFile(io.RawIOBase):
    """An object as a file to seek and read in; each read is a request, unless the bytes are held.

    Its end is held from the beginning, for there are the directories of zip and Parquet. One
    thread at a time may seek and read; `holding` is safe from several.

    Raises:
        ObjectChangedError: it is no longer this version.
        StoreError: the store does not deliver. So does reading.
    """

    def __init__(self, of: StoredObject) -> None:
        super().__init__()
        self._object = of
        self._position = 0
        self._held: dict[object, tuple[int, memoryview]] = {}
        tail = max(of.size_bytes - _TAIL_BYTES, 0)
        if of.size_bytes:
            self._held[object()] = tail, memoryview(of.read(tail, of.size_bytes))

    @contextmanager
    def holding(self, start: int, end: int) -> Iterator[None]:
        """Holds these bytes in the block, fetched in one request unless they are there."""
        if self._find(start, end - start) is not None:
            yield
            return
        token = object()
        self._held[token] = start, memoryview(self._object.read(start, end))
        try:
            yield
        finally:
            del self._held[token]

    def _find(self, start: int, size: int) -> memoryview | None:
        for first, data in list(self._held.values()):  # at once: others hold and let go
            if first <= start and start + size <= first + len(data):
                return data[start - first : start - first + size]
        return None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._object.size_bytes}
        position = origin[whence] + offset
        if position < 0:
            raise OSError(f"position {position} is before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        """As of any file."""
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """As of any file; less than asked for only at the end."""
        into = memoryview(buffer).cast("B")
        size = min(len(into), max(self._object.size_bytes - self._position, 0))
        if size:
            held = self._find(self._position, size)
            into[:size] = held or memoryview(
                self._object.read(self._position, self._position + size)
            )
        self._position += size
        return size


def opened(path: UPath) -> Path | IO[bytes]:
    """What pyarrow reads parts of a file from: its path on this machine, elsewhere by ranges.

    Raises:
        FileNotFoundError: there is no such file; on this machine, when it is read.
        StoreError: the store does not deliver.
    """
    return local_path(path) or RangeFile(StoredObject.at(path))  # type: ignore[return-value]  # it is what IO[bytes] asks for, but no nominal one


def _store_of(path: UPath) -> S3Store:
    from obstore.store import S3Store

    return S3Store(path.path.partition("/")[0], **path.storage_options)


def _key(path: UPath) -> str:
    return path.path.partition("/")[2]
