"""Fetching the training set's archive: once, resumed after a break, and not again if unchanged.

Here belong the conversation with the server and the file it becomes; what is in the archive is
archive.py's. A URL may be presigned: no error, log line or file here shows what follows its `?`,
and no error what the server says in words of its own, for that may be the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from cygno_assets.hosts import Endpoint
from cygno_assets.training.archive import Archive, ArchiveError, ArchiveLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import requests

    _Check = Callable[[Path, str, str | None], "FetchedArchive"]

_CHUNK_BYTES = 1024 * 1024
_TRIES = 5
_PAUSE_S = 1.0
_TIMEOUT_S = (5.0, 30.0)
_MAX_S = 6 * 3600.0
"""Of one answer, and after as much no further try begins: 10 GB at 500 kB/s."""
_VERSION_MAX_S = 30.0
_VERSION_MAX_BYTES = 65_536
_MAX_REDIRECTS = 5
_LONGEST_HEADER = 256
"""Of those that are kept, in characters."""
STEM = "training_set"
"""Of file names; what stands behind it is the sha256."""


class FetchError(Exception):
    """The archive could not be fetched. What was fetched so far is kept for the next time."""


class ServerUnavailableError(FetchError):
    """Its server did not answer, or broke off: trying again later may help."""


@dataclass(frozen=True)
class FetchedArchive:
    """An archive on this machine, whole and checked.

    Attributes:
        path: of the zip.
        source: where it came from, without what follows the URL's `?`.
        size_bytes: of the zip.
        sha256: of the zip, hexadecimal.
        changed: False only if it was fetched before and the server has no other.
    """

    path: Path
    source: str
    size_bytes: int
    sha256: str
    changed: bool


@dataclass(frozen=True)
class _Version:
    """What tells one version of the file at a URL from another."""

    source: str
    etag: str | None
    last_modified: str | None
    size_bytes: int | None = None
    sha256: str | None = None


def fetch_archive(
    source: str,
    folder: Path,
    *,
    sha256: str | None = None,
    ca_file: Path | None = None,
    limits: ArchiveLimits | None = None,
    max_bytes: int = 10_000_000_000,
    progress: Callable[[int, int | None], None] = lambda _, __: None,
    accept: Callable[[Archive], object] = lambda _: None,
) -> FetchedArchive:
    """Makes sure that the archive is here, whole.

    Args:
        source: `https://…`, `http://…`, `file:///…` or a path. A local archive is used where it is.
        folder: where a fetched one is kept, with what is known of it.
        sha256: of the zip, hexadecimal, if it is known; anything else is refused.
        ca_file: PEM file of the server's authority; None for those that certifi knows.
        limits: what the archive may hold.
        max_bytes: of the zip.
        progress: told the bytes that are there, and how many there will be if that is known.
        accept: raises ArchiveError for an archive that is whole and still not to be used.

    Raises:
        ServerUnavailableError: the server does not deliver it now.
        FetchError: it never will.
        ArchiveError: what it delivers is no archive we use.
        FileNotFoundError: there is no such local file.
    """

    def check(path: Path, shown: str, known: str | None) -> FetchedArchive:
        return check_archive(path, shown, sha256=sha256, limits=limits, accept=accept, known=known)

    path = _local_path(source)
    if path is not None:
        return check(path, str(path), None)
    with alone_in(folder):
        return _Fetch(source, folder, ca_file, max_bytes, progress).run(check)


def check_archive(
    path: Path,
    source: str,
    *,
    sha256: str | None,
    limits: ArchiveLimits | None,
    accept: Callable[[Archive], object],
    known: str | None = None,
) -> FetchedArchive:
    """Reads a zip of this machine whole, and every member, before any of it is used.

    Args:
        path: of the zip.
        source: where it came from, as it may be shown.
        sha256: as for `fetch_archive`.
        limits: as for `fetch_archive`.
        accept: as for `fetch_archive`.
        known: sha256 of one whose members have been read before, and need not be again.

    Raises:
        ArchiveError: it is no archive we use.
        FileNotFoundError: there is no such file.
    """
    if path.is_dir():
        raise ArchiveError(f"{path}: a folder and no zip")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ArchiveError(f"{path.name}: sha256 is {found}, not {sha256.lower()}")
    with Archive(path, limits) as archive:
        accept(archive)
        if found != known:
            for _ in archive.verify():
                pass
    return FetchedArchive(path, source, path.stat().st_size, found, changed=found != known)


def archive_version(source: str, *, ca_file: Path | None = None) -> str:
    """What tells the archive that is offered now from another one. Fetches none of it.

    Args:
        source: as for `fetch_archive`.
        ca_file: as for `fetch_archive`.

    Returns:
        The source without what follows its `?`, and a digest of the server's ETag, or failing that
        of the time it was modified and its size; of a local file these two.

    Raises:
        FetchError: the server does not offer it now.
        FileNotFoundError: there is no such local file.
    """
    path = _local_path(source)
    if path is not None:
        stat = path.stat()
        return f"{path} {stat.st_mtime_ns} {stat.st_size}"
    shown = _without_signature(source)
    ask = _Request(source, ca_file, max_bytes=_VERSION_MAX_BYTES, max_s=_VERSION_MAX_S)
    try:
        # Not HEAD: a presigned URL is signed for GET alone.
        with ask.answered({"Range": "bytes=0-0"}) as response:
            status, headers = response.status_code, response.headers
    except ConnectionError as error:
        raise FetchError(f"{shown}: {error}") from None
    if status not in {200, 206}:
        raise FetchError(f"{shown}: HTTP {status}")
    if etag := _kept(headers.get("ETag")):
        said = etag
    else:
        size = headers.get("Content-Range", "").rpartition("/")[2]
        size = size or headers.get("Content-Length", "")
        said = f"{headers.get('Last-Modified', '')} {size}"
    return f"{shown} {hashlib.sha256(said.encode()).hexdigest()[:16]}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder, and lets one into it at a time: two at once would write into one file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Request:
    """What is asked of the server, and how long it may take to answer.

    Args:
        url: of the archive.
        ca_file: as for `fetch_archive`.
        max_bytes: of an answer.
        max_s: of an answer, in seconds.
    """

    def __init__(self, url: str, ca_file: Path | None, *, max_bytes: int, max_s: float) -> None:
        self._url = url
        self._shown = _without_signature(url)
        self._verify: bool | str = True if ca_file is None else str(ca_file)
        self._max_bytes = max_bytes
        self._max_s = max_s

    @contextmanager
    def answered(self, headers: Mapping[str, str]) -> Iterator[requests.Response]:
        """The answer, by GET; a few redirects are followed, but none to another host.

        Raises:
            ServerUnavailableError: it takes too long.
            ConnectionError: it broke; trying again may help.
            FetchError: it will not.
        """
        url, started = self._url, time.monotonic()
        for _ in range(_MAX_REDIRECTS + 1):
            if time.monotonic() - started > self._max_s:
                raise self._too_slow()
            with self._sent(url, headers) as response:
                if not response.is_redirect:
                    yield response
                    return
                url = self._target(url, response.headers["Location"])
        raise FetchError(f"{self._shown}: redirects more than {_MAX_REDIRECTS} times")

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """The body as it is sent; raises what `answered` does."""
        with self._named_errors():
            yield from response.raw.stream(_CHUNK_BYTES, decode_content=False)

    def _sent(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        from cygno_assets.daq.http_session import session

        web = session(max_bytes=self._max_bytes, max_s=self._max_s, public_only=False)
        with self._named_errors():
            return web.get(
                url, headers=headers, stream=True, timeout=_TIMEOUT_S, verify=self._verify
            )

    def _target(self, here: str, location: str) -> str:
        """Where a redirect leads; to no other host, nor from https to http.

        Whoever runs the archive's server could otherwise have us ask around in our own network.
        """
        shown = "an address that cannot be read"
        try:
            target = urljoin(here, location.encode("latin-1").decode())
            asked, there = Endpoint.of(here), Endpoint.of(target)
            if asked.host == there.host and there.scheme in {asked.scheme, "https"}:
                return target
            shown = f"{there.scheme}://{there}"
        except ValueError:
            pass
        raise FetchError(
            f"{self._shown}: redirects to {shown}, which is not followed; if it is meant, set "
            "CYGNO_TRAINING_ARCHIVE to it"
        )

    def _too_slow(self) -> ServerUnavailableError:
        return ServerUnavailableError(f"{self._shown}: not complete after {self._max_s:g} s")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        import requests
        import urllib3.exceptions

        from cygno_assets.daq.http_session import AnswerTooLongError, AnswerTooSlowError

        try:
            yield
        except AnswerTooLongError:
            raise FetchError(f"{self._shown}: larger than {self._max_bytes} bytes") from None
        except AnswerTooSlowError:
            raise self._too_slow() from None
        except requests.exceptions.SSLError:
            raise FetchError(f"{self._shown}: the server's certificate is not trusted") from None
        # What requests and urllib3 say quotes the URL. What a server says that is no HTTP is a
        # ValueError here and there.
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            ValueError,
        ) as error:
            raise ConnectionError(type(error).__name__) from None
        # requests' word for an authority's file that is gone; all else it raises is above.
        except OSError as error:
            raise FetchError(f"{self._shown}: {error}") from None


def _kept(header: str | None) -> str | None:
    """A header that is sent back the next time; None if it could not be."""
    kept = (header or "").strip()
    sendable = kept.isascii() and kept.isprintable() and 0 < len(kept) <= _LONGEST_HEADER
    return kept if sendable else None


def _without_signature(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _local_path(source: str) -> Path | None:
    parts = urlsplit(source)
    if parts.scheme in {"http", "https"}:
        return None
    return Path(url2pathname(parts.path) if parts.scheme == "file" else source)


class _Fetch:
    """One fetch; `.partial` and `.partial.json` outlive it if it breaks."""

    def __init__(
        self,
        url: str,
        folder: Path,
        ca_file: Path | None,
        max_bytes: int,
        progress: Callable[[int, int | None], None],
    ) -> None:
        self._source = _without_signature(url)
        self._request = _Request(url, ca_file, max_bytes=max_bytes, max_s=_MAX_S)
        self._max_bytes = max_bytes
        self._progress = progress
        self._folder = folder
        self._whole_version = folder / f"{STEM}.json"
        self._partial = folder / f"{STEM}.partial"
        self._partial_version = folder / f"{STEM}.partial.json"

    def run(self, check: _Check) -> FetchedArchive:
        known = self._read(self._whole_version)
        if known is None or not self._whole(known.sha256).is_file():
            known = None
        started = time.monotonic()
        for attempt in range(1, _TRIES + 1):
            try:
                version = self._ask(known)
            except ConnectionError as error:
                reason = str(error)
            else:
                if version is None and known is not None:  # unchanged
                    return check(self._whole(known.sha256), self._source, known.sha256)
                if version is not None:
                    return self._accept(version, check, known)
                reason = "HTTP 304 unasked"
            if attempt == _TRIES or time.monotonic() - started > _MAX_S:
                break
            time.sleep(_PAUSE_S * attempt)
        raise ServerUnavailableError(f"{self._source}: {reason}, {attempt} times")

    def _accept(self, version: _Version, check: _Check, known: _Version | None) -> FetchedArchive:
        try:
            checked = check(self._partial, self._source, known.sha256 if known else None)
        except ArchiveError:
            self._discard_partial()  # it is whole, and no good
            raise
        # Named by its content: whoever still reads the one before goes on reading that.
        whole = self._whole(checked.sha256)
        if whole.is_file():
            self._partial.unlink()
        else:
            self._partial.replace(whole)
        self._partial_version.unlink(missing_ok=True)
        self._write(
            self._whole_version,
            _Version(
                self._source,
                version.etag,
                version.last_modified,
                checked.size_bytes,
                checked.sha256,
            ),
        )
        kept = {whole, self._whole(known.sha256) if known else whole}
        for old in set(self._folder.glob(f"{STEM}-*.zip")) - kept:
            old.unlink()
        return replace(checked, path=whole)

    def _whole(self, sha256: str | None) -> Path:
        return self._folder / f"{STEM}-{sha256}.zip"

    def _ask(self, known: _Version | None) -> _Version | None:
        """One request; the version fetched whole, None if what is here is unchanged.

        Raises:
            ConnectionError: it broke, or the server is in trouble; trying again may help.
            FetchError: it will not.
        """
        headers: dict[str, str] = {}
        if known is not None:
            if known.etag:
                headers["If-None-Match"] = known.etag
            if known.last_modified:
                headers["If-Modified-Since"] = known.last_modified
        started = self._read(self._partial_version) if self._partial.exists() else None
        # Only with a strong validator can the rest be told to belong to the beginning.
        if started is not None and started.etag and not started.etag.startswith("W/"):
            headers["Range"] = f"bytes={self._partial.stat().st_size}-"
            headers["If-Range"] = started.etag
        with self._request.answered(headers) as response:
            return self._receive(response, rest="Range" in headers)

    def _receive(self, response: requests.Response, *, rest: bool) -> _Version | None:
        status = response.status_code
        if status == 304:
            return None
        if status == 416:
            self._discard_partial()
            raise ConnectionError("what was fetched before is not part of it")
        if status in {429, 500, 502, 503, 504}:
            raise ConnectionError(f"HTTP {status}")
        if status != 200 and not (status == 206 and rest):
            raise FetchError(f"{self._source}: HTTP {status}")
        told = response.headers
        version = _Version(self._source, _kept(told.get("ETag")), _kept(told.get("Last-Modified")))
        there = self._partial.stat().st_size if status == 206 else 0
        length = told.get("Content-Length", "")
        # Twenty digits are too many as well, and int() refuses thousands.
        total = there + int(length[:20]) if length.isascii() and length.isdigit() else None
        too_large = FetchError(f"{self._source}: larger than {self._max_bytes} bytes")
        if total is not None and total > self._max_bytes:
            raise too_large
        self._write(self._partial_version, version)
        broken = False
        with self._partial.open("ab" if status == 206 else "wb") as file:
            try:
                for chunk in self._request.chunks(response):
                    file.write(chunk)
                    there += len(chunk)
                    if there > self._max_bytes:
                        raise too_large
                    self._progress(there, total)
            except ConnectionError:
                broken = True
        if broken or (total is not None and there != total):
            whole = "an unknown number of" if total is None else str(total)
            raise ConnectionError(f"broke off after {there} of {whole} bytes")
        return version

    def _discard_partial(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._partial_version.unlink(missing_ok=True)

    def _read(self, file: Path) -> _Version | None:
        """What was known of a file, None if nothing or if it came from elsewhere."""
        try:
            version = _Version(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return version if version.source == self._source else None

    def _write(self, file: Path, version: _Version) -> None:
        partial = file.with_suffix(".new")
        partial.write_text(json.dumps(asdict(version)))
        partial.replace(file)
