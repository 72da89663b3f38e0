"""The archive in a bucket, where every machine that makes cells finds it.

Here belongs how a checked one comes to be there, or is found to be there already; how one is
fetched from elsewhere is fetch.py's, and how it is read archive.py's.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cygno_assets.storage.errors import ObjectChangedError, StoreError, StoreRefusedError
from cygno_assets.storage.objects import StoredObject
from cygno_assets.training.archive import ArchiveChangedError
from cygno_assets.training.fetch import (
    STEM,
    FetchedArchive,
    FetchError,
    ServerUnavailableError,
    alone_in,
    check_archive,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from upath import UPath

    from cygno_assets.training.archive import Archive, ArchiveLimits

_PIECE_BYTES = 1024 * 1024


def object_version(source: UPath) -> str:
    """What tells the archive that is there now from another one. Fetches none of it.

    Raises:
        FetchError: there is none, or the store does not say.
    """
    with _as_fetch_errors():
        return f"{source} {StoredObject.at(source).etag}"


def check_object(
    source: UPath,
    folder: Path,
    *,
    sha256: str | None = None,
    limits: ArchiveLimits | None = None,
    max_bytes: int = 10_000_000_000,
    progress: Callable[[int, int | None], None] = lambda _, __: None,
    accept: Callable[[Archive], object] = lambda _: None,
) -> tuple[StoredObject, FetchedArchive]:
    """Reads an archive in a bucket once and whole, and checks it; it is then used where it is.

    Args:
        source: the object.
        folder: where it is while it is checked, and not any longer.
        sha256: as for `fetch_archive`, and so are the others.
        limits: what the archive may hold.
        max_bytes: of the zip.
        progress: told the bytes that have been read, and how many there are.
        accept: raises ArchiveError for an archive that is whole and still not to be used.

    Returns:
        The version that was checked, and what was found.

    Raises:
        ServerUnavailableError: the store does not deliver it now.
        FetchError: it never will.
        ArchiveError: it is no archive we use.
    """
    checking = folder / "checking"
    with alone_in(folder), _as_fetch_errors():
        found = StoredObject.at(source)
        if found.size_bytes > max_bytes:
            raise FetchError(f"{source}: larger than {max_bytes} bytes")
        shutil.rmtree(checking, ignore_errors=True)  # of one that was killed
        checking.mkdir()
        try:
            path = checking / source.name
            with path.open("wb") as file:
                for piece in found.pieces():
                    file.write(piece)
                    progress(file.tell(), found.size_bytes)
            checked = check_archive(path, str(source), sha256=sha256, limits=limits, accept=accept)
        finally:
            shutil.rmtree(checking, ignore_errors=True)
    return found, checked


def keep(fetched: FetchedArchive, folder: UPath, before: str | None) -> StoredObject:
    """Makes sure that a checked archive is in a bucket, under a name that holds its sha256.

    What is there under that name is what was checked: the bytes are summed on their way.

    Args:
        fetched: it, on this machine.
        folder: of the bucket. Copies of others are deleted from it, but for the one before.
        before: path of that one, which runs may still read.

    Raises:
        ArchiveChangedError: it was replaced since it was checked.
        FetchError: the store does not take it.
    """
    path = folder / f"{STEM}-{fetched.sha256}.zip"

    def pieces() -> Iterator[bytes]:
        digest = hashlib.sha256()
        with fetched.path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != fetched.sha256:
            raise ArchiveChangedError(f"{fetched.path.name}: another file")

    with _as_fetch_errors():
        try:
            there = StoredObject.at(path)
        except FileNotFoundError:
            there = None
        if there is not None and there.size_bytes == fetched.size_bytes:
            return there
        kept = StoredObject.put(path, pieces())
    for other in folder.glob(f"{STEM}-*.zip"):
        if str(other) not in {str(path), before}:
            other.unlink(missing_ok=True)
    return kept


@contextmanager
def _as_fetch_errors() -> Iterator[None]:
    """What a store does not do is told as what a server does not do."""
    try:
        yield
    except ObjectChangedError as error:
        raise ServerUnavailableError(f"{error}: replaced while it was read") from None
    except (StoreRefusedError, FileNotFoundError) as error:
        raise FetchError(str(error)) from None
    except StoreError as error:
        raise ServerUnavailableError(str(error)) from None
