"""Fetching an announced image: from a listed host, bounded in size and time, checked by its md5.

Here belong the request and the names of what can go wrong with it; not connections
(http_session.py), nor where bytes are kept.
Presigned URLs open the image for whoever holds them: no error or log line here shows one.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import random
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from cygno_assets.hosts import AllowedHost, Endpoint, admitting

if TYPE_CHECKING:
    from pathlib import Path

    import requests

    from cygno_assets.daq.announcement import Announcement

Kind = Literal[
    "unavailable",  # connection, time-out, 408, 429, 5xx, truncated
    "missing",  # 404, 410
    "expired",  # the presigned URL
    "forbidden",  # 401, 403 with a URL that has not expired
    "wrong_content",  # another md5, or nothing
    "too_large",  # body or headers
    "bad_answer",  # any other status: redirects, 206, …; or what is no HTTP
    "not_allowed",  # the host is not listed, or its address not public
    "untrusted",  # certificate
    "unusable_url",
]

_CHUNK_BYTES = 65_536
_NOT_IMPLEMENTED = (501, 505)
"""The statuses of 500 and above that are about the request."""
_CONNECT_TIMEOUT_S = 5.0
_CLOCK_SKEW = timedelta(minutes=1)

# Pauses before each further try, in seconds; an object may appear seconds after its announcement.
_PAUSES_S: dict[str, tuple[float, ...]] = {
    "unavailable": (0.1, 0.4, 0.8),
    "missing": (0.5, 1.0, 1.5, 2.0),
    "forbidden": (0.5,),
    "wrong_content": (0.5,),
}
_JITTER = 0.3
"""Pauses are longer or shorter by up to this share: many runs must not come back at once."""


class DownloadError(Exception):
    """An image could not be fetched. Which subclass says what may be done about it.

    Args:
        message: begins with the file's name, so that it can be told which event it is.
        kind: what it is, in a word that stays the same.
    """

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


class RetriableDownloadError(DownloadError):
    """Nobody answered as a server should; trying again later may help: `unavailable`."""


class DoubtfulDownloadError(DownloadError):
    """What the server answered, well or badly; if it says so again a minute later, it means it.

    A server that just starts, or a proxy before it, denies what is there and sends what is not.
    """


class FinalDownloadError(DownloadError):
    """The URL itself is of no use, whoever answers: `expired`, `not_allowed`, `unusable_url`."""


@dataclass(frozen=True)
class DownloadLimits:
    """How an image may be fetched.

    Attributes:
        max_bytes: largest answer accepted.
        timeout_s: without a byte, in seconds.
        hosts: to fetch from; none unless listed.
        max_duration_s: of one answer, in seconds; no further try begins after as much.
        ca_file: authority of the server's certificate; None for the system's.
        insecure: skip certificate checks.
    """

    max_bytes: int
    timeout_s: float
    hosts: tuple[AllowedHost, ...] = ()
    max_duration_s: float = 120.0
    ca_file: Path | None = None
    insecure: bool = False


def content_md5(data: bytes) -> str:
    """The md5 that names carry, as 32 lower-case hexadecimal digits; no matter of security."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def check_md5(data: bytes, announcement: Announcement) -> None:
    """Compares bytes with the md5 in the announced name, if it carries one.

    Raises:
        DoubtfulDownloadError: they differ (`wrong_content`).
    """
    if announcement.md5 is not None and (found := content_md5(data)) != announcement.md5:
        raise DoubtfulDownloadError(
            f"{announcement.filename}: wrong md5 {found} of {len(data)} bytes "
            f"from {announcement.source}",
            "wrong_content",
        )


def span(time: timedelta) -> str:
    """A time in words for people, to the second: `1 day, 2:03:04`."""
    return str(timedelta(seconds=max(0, round(time.total_seconds()))))


def download_image(announcement: Announcement, limits: DownloadLimits) -> bytes:
    """Fetches one announced image.

    Short retries with growing, jittered pauses happen inside; they follow no redirect.

    Args:
        announcement: what to fetch, and from where.
        limits: how.

    Returns:
        The file's bytes, as delivered, with the md5 that its name promises.

    Raises:
        RetriableDownloadError: see there.
        DoubtfulDownloadError: see there.
        FinalDownloadError: see there.
    """
    started = time.monotonic()
    fetch = _Fetch(announcement, limits)
    pauses = {kind: iter(seconds) for kind, seconds in _PAUSES_S.items()}
    while True:
        try:
            return fetch.once()
        except (RetriableDownloadError, DoubtfulDownloadError) as error:
            pause = next(pauses.get(error.kind, iter(())), None)
            if pause is None or time.monotonic() - started > limits.max_duration_s:
                raise
        time.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 – no secret


class _Fetch:
    """One image's requests, all alike."""

    def __init__(self, announcement: Announcement, limits: DownloadLimits) -> None:
        self._announcement = announcement
        self._limits = limits
        self._what = f"{announcement.filename} from {announcement.source}"
        self._entry = self._admitted()

    def _admitted(self) -> AllowedHost:
        """The entry of the list that allows this URL; no name is looked up for any other."""
        try:
            endpoint = Endpoint.of(self._announcement.url)
        except ValueError as error:
            raise self._final(f"field 'url' {error}", "unusable_url") from None
        entry = admitting(endpoint, self._limits.hosts)
        if entry is None:
            scheme = "" if endpoint.scheme == "https" else "http://"
            raise self._final(
                f"field 'url': host {scheme}{endpoint} is not in CYGNO_DOWNLOAD_HOSTS",
                "not_allowed",
            )
        return entry

    def once(self) -> bytes:
        """Asks once; raises what `download_image` raises."""
        import requests
        import urllib3.exceptions

        from cygno_assets.daq import http_session

        self._check_expiry()
        limits = self._limits
        session = http_session.session(
            max_bytes=limits.max_bytes,
            max_s=limits.max_duration_s,
            # A name that is listed is allowed wherever it leads; of one that is not, whoever
            # runs the domain's name server decides where it leads.
            public_only=self._entry.below,
        )
        try:
            with session.get(
                self._announcement.url,
                stream=True,
                allow_redirects=False,
                timeout=(_CONNECT_TIMEOUT_S, limits.timeout_s),
                # On each request, for REQUESTS_CA_BUNDLE in the environment silently
                # overrides what is set on a session.
                verify=_verify(limits),
            ) as response:
                self._check_status(response.status_code)
                data = self._read_body(response)
        except http_session.NotPublicError as error:
            raise self._final(
                f"field 'url': the host leads to {error}, which is no public address, and is "
                f"allowed only by the pattern {self._entry}; list it by its name in "
                "CYGNO_DOWNLOAD_HOSTS if it is meant",
                "not_allowed",
            ) from None
        except http_session.AnswerTooLongError:
            raise self._too_large() from None
        except http_session.AnswerTooSlowError:
            raise self._unavailable(f"not complete after {limits.max_duration_s:g} s") from None
        except requests.exceptions.SSLError as error:
            if not _is_about_certificates(error):  # hung up in the handshake, say
                raise self._unavailable(_named(error)) from None
            raise self._doubtful(
                f"the server's certificate is not trusted ({_named(error)}); set "
                "CYGNO_DOWNLOAD_CA_FILE to its authority's PEM file",
                "untrusted",
            ) from None
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise self._final(f"the URL cannot be used ({_named(error)})", "unusable_url") from None
        # The exceptions of requests and urllib3 quote the URL with its signature: `from None`.
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            if _is_about_headers(error):
                raise self._doubtful("its answer's headers are too large", "too_large") from None
            raise self._unavailable(_named(error)) from None
        # What requests and urllib3 let through of lengths and headers that are nonsense.
        except (ValueError, OverflowError) as error:
            raise self._doubtful(f"no HTTP answer ({_named(error)})", "bad_answer") from None
        # requests' word for an authority's file that is gone; all else it raises is above.
        except OSError as error:
            raise self._doubtful(str(error), "untrusted") from None
        check_md5(data, self._announcement)
        return data

    def _check_expiry(self) -> None:
        """A URL that is known to be dead need not be asked; the server's clock may differ a bit."""
        expires = self._announcement.url_expires
        if expires is not None and datetime.now(UTC) > expires + _CLOCK_SKEW:
            raise self._final(_expired(expires), "expired")

    def _check_status(self, status: int) -> None:
        if status == 200:
            return
        # Not in the server's own words: it may put anything there, our URL too.
        phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
        said = f"HTTP {status} {phrase}".rstrip()
        if status in {408, 429} or (status >= 500 and status not in _NOT_IMPLEMENTED):
            raise self._unavailable(said)
        if status in {404, 410}:
            raise self._doubtful(said, "missing")
        if status not in {401, 403}:
            raise self._doubtful(said, "bad_answer")
        expires = self._announcement.url_expires
        if expires is not None and datetime.now(UTC) > expires:
            raise self._final(f"{said}; {_expired(expires)}", "expired")
        until = "says no time of expiry" if expires is None else f"is valid until {_utc(expires)}"
        raise self._doubtful(
            f"{said}; the URL {until}: its signature is wrong, or it may not read this object",
            "forbidden",
        )

    def _read_body(self, response: requests.Response) -> bytes:
        declared = response.headers.get("Content-Length", "")
        # Twenty digits are too large as well, and int() refuses thousands.
        expected = int(declared[:20]) if declared.isascii() and declared.isdigit() else None
        if expected is not None and expected > self._limits.max_bytes:
            raise self._too_large()
        data = bytearray()
        # The raw stream as sent: a small compressed answer must not unfold into a huge one.
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
            data += chunk
            if len(data) > self._limits.max_bytes:
                raise self._too_large()
        if expected is not None and len(data) != expected:
            raise self._unavailable(f"truncated, {len(data)} of {expected} bytes")
        if not data:
            raise self._doubtful("the answer is empty", "wrong_content")
        return bytes(data)

    def _final(self, why: str, kind: Kind) -> FinalDownloadError:
        return FinalDownloadError(f"{self._what}: {why}", kind)

    def _doubtful(self, why: str, kind: Kind) -> DoubtfulDownloadError:
        return DoubtfulDownloadError(f"{self._what}: {why}", kind)

    def _unavailable(self, why: str) -> RetriableDownloadError:
        return RetriableDownloadError(f"{self._what}: {why}", "unavailable")

    def _too_large(self) -> DoubtfulDownloadError:
        why = f"larger than the {self._limits.max_bytes} bytes allowed"
        return self._doubtful(why, "too_large")


def _expired(expires: datetime) -> str:
    return f"its URL expired at {_utc(expires)}, {span(datetime.now(UTC) - expires)} ago"


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _verify(limits: DownloadLimits) -> bool | str:
    if limits.insecure:
        return False
    return True if limits.ca_file is None else str(limits.ca_file)


def _innermost(error: BaseException) -> BaseException:
    while True:
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner


def _is_about_certificates(error: BaseException) -> bool:
    return isinstance(_innermost(error), ssl.SSLCertVerificationError)


def _is_about_headers(error: BaseException) -> bool:
    """One line of them too long, or too many: of the latter http.client has no error of its own."""
    error = _innermost(error)
    return isinstance(error, http.client.LineTooLong) or type(error) is http.client.HTTPException


def _named(error: BaseException) -> str:
    """What happened without the URL: the name of the innermost error, and the system's words."""
    error = _innermost(error)
    system = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{system}"
