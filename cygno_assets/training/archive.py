"""The archive of the training set: a zip that is checked whole before any of it is used.

Here belong its refusals and the reading of its members, in place and never to disk; not where it
comes from, nor what its paths mean (physics/ground_truth.py).
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ENCRYPTED = 0x1
_COMPRESSIONS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_LOCAL_HEADER = b"PK\x03\x04"


class ArchiveError(ValueError):
    """This file is no archive we use; the text names the file or member and the reason."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold. The school's has 612 images and 110 MB.

    Attributes:
        max_members: files in it.
        max_member_bytes: of one file, decompressed.
        max_total_bytes: of all files, decompressed.
        max_ratio: of decompressed to compressed bytes of one file; an image's is near 1.
    """

    max_members: int = 200_000
    max_member_bytes: int = 100_000_000
    max_total_bytes: int = 100_000_000_000
    max_ratio: float = 100.0


class Archive:
    """An open archive. Reading members is safe from several threads.

    Args:
        path: of the zip.
        limits: what is refused.

    Raises:
        ArchiveError: not a zip, truncated, or with a member that is refused.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, limits: ArchiveLimits | None = None) -> None:
        self._path = path
        with path.open("rb") as file:
            begins_as_zip = file.read(len(_LOCAL_HEADER)) == _LOCAL_HEADER
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            what = "truncated, or its directory is broken" if begins_as_zip else "not a zip"
            raise ArchiveError(f"{path.name}: {what} ({error})") from None
        try:
            self._members = _checked(self._zip, path, limits or ArchiveLimits())
        except ArchiveError:
            self._zip.close()
            raise

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

    def read(self, member: str) -> bytes:
        """A member's bytes, checked against the archive's checksum.

        Raises:
            ArchiveError: they are damaged.
            KeyError: there is no such member.
        """
        info = self._members[member]
        try:
            return self._zip.read(info)
        # What zipfile raises where the member's own header contradicts the directory.
        except (
            *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error),
            *(NotImplementedError, RuntimeError),
        ) as error:
            raise ArchiveError(f"{self._path.name}: {member}: damaged ({error})") from None

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(
    archive: zipfile.ZipFile, path: Path, limits: ArchiveLimits
) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > limits.max_members:
        raise ArchiveError(
            f"{path.name}: {len(infos)} members are more than the {limits.max_members} allowed"
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        # As the archive has it: zipfile itself cuts names at NUL.
        name = info.orig_filename
        if why := _refusal(info, name, limits):
            raise ArchiveError(f"{path.name}: member {name[:200]!r} {why}")
        if info.is_dir():
            continue
        if name in members:
            raise ArchiveError(f"{path.name}: member {name[:200]!r} is there twice")
        members[name] = info
    total = sum(info.file_size for info in members.values())
    if total > limits.max_total_bytes:
        raise ArchiveError(
            f"{path.name}: {total} bytes are more than the {limits.max_total_bytes} allowed"
        )
    if any(not 0 <= info.header_offset < path.stat().st_size for info in members.values()):
        raise ArchiveError(f"{path.name}: its directory points outside the file")
    if sum(info.compress_size for info in members.values()) > path.stat().st_size:
        raise ArchiveError(f"{path.name}: its members overlap")
    return members


def _refusal(info: zipfile.ZipInfo, name: str, limits: ArchiveLimits) -> str | None:
    """Why a member is refused, in words; None if it is not."""
    mode = info.external_attr >> 16
    ratio = info.file_size / max(info.compress_size, 1)
    refusals = {
        "has an absolute path": name.startswith("/") or name[1:2] == ":",
        "has '..' in its path": ".." in PurePosixPath(name).parts,
        "has a backslash or a control character in its path": "\\" in name
        or not name.isprintable(),
        "is a symbolic link": stat.S_ISLNK(mode),
        "is encrypted": bool(info.flag_bits & _ENCRYPTED),
        f"has compression method {info.compress_type}": info.compress_type not in _COMPRESSIONS,
        f"has {info.file_size} bytes, more than the {limits.max_member_bytes} allowed": (
            info.file_size > limits.max_member_bytes
        ),
        f"claims to unfold {ratio:.0f}-fold": ratio > limits.max_ratio,
    }
    return next((why for why, refused in refusals.items() if refused), None)
