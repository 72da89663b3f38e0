"""The archive of the training set: a zip that is checked whole before any of it is used.

Here belong its refusals and the reading of its members, in place and never to disk, of a file or by
ranges of an object; not where it comes from, nor what its paths mean (physics/ground_truth.py).
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from cygno_assets.storage.errors import ObjectChangedError
from cygno_assets.storage.objects import RangeFile, StoredObject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

_ENCRYPTED = 0x1
_COMPRESSIONS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_LOCAL_HEADER = b"PK\x03\x04"
_ZIP64_END = b"PK\x06\x06"
_LARGEST_HEADER = 30 + 2 * 0xFFFF
"""Of a member: the fixed part, its name and extra fields, in bytes."""
_ENTRY = struct.Struct("<28xHHH12x")
"""Of the directory: the fixed part, with the lengths of name, extra fields and comment."""
_ENTRY_BYTES = 512
"""Of the directory, for a member, on average and at most."""
_ZIP64_END_BYTES = 56 + 20
_REQUESTS_AT_ONCE = 8
"""To an object store: while some are waited for, others are decoded."""


class ArchiveError(ValueError):
    """This file is no archive we use; the text names the file or member and the reason."""


class ArchiveChangedError(ArchiveError):
    """It is another one than was checked.

    Args:
        why: one thinks so.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the archive is not as it was when it was checked ({why}); materialize "
            "training_archive again"
        )


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold. The school's has 612 images and 110 MB.

    Attributes:
        max_members: files in it.
        max_member_bytes: of one file, decompressed or as it is stored.
        max_total_bytes: of all files, decompressed.
        max_ratio: of decompressed to compressed bytes of one file; an image's is near 1.
    """

    max_members: int = 200_000
    max_member_bytes: int = 100_000_000
    max_total_bytes: int = 100_000_000_000
    max_ratio: float = 100.0


class Archive:
    """An open archive. Reading members is safe from several threads.

    Of an object its end is fetched, with the directory in it, and then each member by one request
    for its range.

    Args:
        place: of the zip: a file, or an object.
        limits: what is refused.

    Raises:
        ArchiveError: not a zip, truncated, or with a member that is refused.
        ArchiveChangedError: the object is gone, or another one.
        FileNotFoundError: there is no such file.
        StoreError: the object store does not deliver.
    """

    def __init__(self, place: Path | StoredObject, limits: ArchiveLimits | None = None) -> None:
        self._name = place.name
        limits = limits or ArchiveLimits()
        with self._changes_named(), ExitStack() as until_read:
            if isinstance(place, Path):
                self._ranges: RangeFile | None = None
                file: BinaryIO | RangeFile = until_read.enter_context(place.open("rb"))
            else:
                file = self._ranges = RangeFile(place)
            start, end = _directory(file, self._name, limits)
            if self._ranges is not None and start < end:
                until_read.enter_context(self._ranges.holding(start, end))
            _count(file, start, end, self._name, limits)
            try:
                self._zip = zipfile.ZipFile(self._ranges or place)  # type: ignore[arg-type]  # a RangeFile is no nominal IO[bytes]
            except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
                what = (
                    "truncated, or its directory is broken"
                    if _begins_as_zip(place)
                    else "not a zip"
                )
                raise ArchiveError(f"{self._name}: {what} ({error})") from None
        size = place.stat().st_size if isinstance(place, Path) else place.size_bytes
        try:
            self._members = _checked(self._zip, self._name, size, limits)
        except ArchiveError:
            self._zip.close()
            raise
        starts = {info.header_offset for info in self._zip.infolist()} | {self._zip.start_dir}
        self._next = dict(pairwise(sorted(starts)))

    @property
    def members(self) -> Sequence[str]:
        """Paths of the files in the archive, in its order; no folders."""
        return list(self._members)

    def checksum(self, member: str) -> int:
        """CRC-32 of a member's bytes, as the archive's directory has it: no byte is read.

        Raises:
            KeyError: there is no such member.
        """
        return self._members[member].CRC

    def size(self, member: str) -> int:
        """A member's bytes when decompressed, as the archive's directory has it.

        Raises:
            KeyError: there is no such member.
        """
        return self._members[member].file_size

    @property
    def at_once(self) -> int:
        """How many members it is worth to read at once."""
        cores = os.cpu_count() or 1
        return cores if self._ranges is None else max(_REQUESTS_AT_ONCE, cores)

    def read(self, member: str) -> bytes:
        """A member's bytes, checked against the archive's checksum.

        Raises:
            ArchiveError: they are damaged.
            ArchiveChangedError: the object is gone, or another one.
            KeyError: there is no such member.
            StoreError: the object store does not deliver.
        """
        info = self._members[member]
        with self._changes_named():
            try:
                with self._holding(info):
                    return self._zip.read(info)
            # What zipfile raises where the member's own header contradicts the directory.
            except (
                *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error),
                *(NotImplementedError, RuntimeError),
            ) as error:
                raise ArchiveError(f"{self._name}: {member}: damaged ({error})") from None

    def verify(self) -> Iterator[str]:
        """Reads every member once, and yields its path when it was found whole.

        Raises:
            ArchiveError: one is damaged.
        """
        for member in self._members:
            self.read(member)
            yield member

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def _holding(self, info: zipfile.ZipInfo) -> AbstractContextManager[None]:
        """Has a member's bytes fetched, so that zipfile, which reads under a lock, finds them."""
        if self._ranges is None:
            return nullcontext()
        start = info.header_offset
        # Nothing else is between two members, unless somebody wants us to fetch it.
        longest = start + _LARGEST_HEADER + info.compress_size
        return self._ranges.holding(start, min(self._next.get(start, longest), longest))

    @contextmanager
    def _changes_named(self) -> Iterator[None]:
        try:
            yield
        except ObjectChangedError:
            raise ArchiveChangedError(f"{self._name}: gone, or another object") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _begins_as_zip(place: Path | StoredObject) -> bool:
    if isinstance(place, StoredObject):
        return RangeFile(place).read(len(_LOCAL_HEADER)) == _LOCAL_HEADER
    with place.open("rb") as file:
        return file.read(len(_LOCAL_HEADER)) == _LOCAL_HEADER


def _directory(
    file: BinaryIO | RangeFile, file_name: str, limits: ArchiveLimits
) -> tuple[int, int]:
    """Where the directory begins and ends, unless it is too large: zipfile reads all there is.

    What is no directory is nowhere, (0, 0); zipfile says what is wrong with it.
    """
    try:
        # Private, but there is no other way to find the very directory that zipfile will read.
        found = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    except (OSError, zipfile.BadZipFile):
        return 0, 0
    if not found:
        return 0, 0
    signature, _, _, _, claimed, size_bytes, _, _, _, at = found
    if claimed > limits.max_members:
        raise _too_many(claimed, file_name, limits)
    if size_bytes > (allowed := limits.max_members * _ENTRY_BYTES):
        raise ArchiveError(
            f"{file_name}: {size_bytes} bytes of directory are more than the {allowed} allowed for "
            f"{limits.max_members} members"
        )
    end = at - (_ZIP64_END_BYTES if signature == _ZIP64_END else 0)
    return (end - size_bytes, end) if size_bytes <= end else (0, 0)


def _count(
    file: BinaryIO | RangeFile, start: int, end: int, file_name: str, limits: ArchiveLimits
) -> None:
    """Refuses a directory that has more entries than its archive says, and than are allowed."""
    file.seek(start)
    directory = file.read(end - start) or b""
    place = found = 0
    while place + _ENTRY.size <= len(directory):
        place += _ENTRY.size + sum(_ENTRY.unpack_from(directory, place))
        found += 1
        if found > limits.max_members:
            raise _too_many(found, file_name, limits)


def _too_many(count: int, file_name: str, limits: ArchiveLimits) -> ArchiveError:
    return ArchiveError(
        f"{file_name}: {count} members are more than the {limits.max_members} allowed"
    )


def _checked(
    archive: zipfile.ZipFile, file_name: str, size_bytes: int, limits: ArchiveLimits
) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        # As the archive has it: zipfile itself cuts names at NUL.
        name = info.orig_filename
        if why := _refusal(info, name, limits):
            raise ArchiveError(f"{file_name}: member {name[:200]!r} {why}")
        if info.is_dir():
            continue
        if name in members:
            raise ArchiveError(f"{file_name}: member {name[:200]!r} is there twice")
        members[name] = info
    total = sum(info.file_size for info in members.values())
    if total > limits.max_total_bytes:
        raise ArchiveError(
            f"{file_name}: {total} bytes are more than the {limits.max_total_bytes} allowed"
        )
    if any(not 0 <= info.header_offset < size_bytes for info in members.values()):
        raise ArchiveError(f"{file_name}: its directory points outside the file")
    if sum(info.compress_size for info in members.values()) > size_bytes:
        raise ArchiveError(f"{file_name}: its members overlap")
    return members


def _refusal(info: zipfile.ZipInfo, name: str, limits: ArchiveLimits) -> str | None:
    """Why a member is refused, in words; None if it is not."""
    mode = info.external_attr >> 16
    ratio = info.file_size / max(info.compress_size, 1)
    larger = max(info.file_size, info.compress_size)
    refusals = {
        "has an absolute path": name.startswith("/") or name[1:2] == ":",
        "has '..' in its path": ".." in PurePosixPath(name).parts,
        "has a backslash or a control character in its path": "\\" in name
        or not name.isprintable(),
        "is a symbolic link": stat.S_ISLNK(mode),
        "is encrypted": bool(info.flag_bits & _ENCRYPTED),
        f"has compression method {info.compress_type}": info.compress_type not in _COMPRESSIONS,
        f"has {larger} bytes, more than the {limits.max_member_bytes} allowed": (
            larger > limits.max_member_bytes
        ),
        f"claims to unfold {ratio:.0f}-fold": ratio > limits.max_ratio,
    }
    return next((why for why, refused in refusals.items() if refused), None)
