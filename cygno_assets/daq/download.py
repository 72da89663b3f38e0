"""Fetching an announced image: bounded in size and time, checked against its md5.

Here belong the request and the names of what can go wrong with it; not where bytes are kept.
Presigned URLs open the image for whoever holds them: no error or log line here shows one.
"""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import requests

    from cygno_assets.daq.announcement import Announcement

_CHUNK_BYTES = 65_536
_RETRIES = 3
_RETRIED_STATUSES = (429, 500, 502, 503, 504)
_CONNECT_TIMEOUT_S = 5.0
_MAX_DURATION_S = 120.0
"""Of the whole answer: a server that drips one byte a second never runs into a time-out."""


class DownloadError(Exception):
    """An image could not be fetched. Which subclass says what may be done about it."""


class RetriableDownloadError(DownloadError):
    """Trying again later may help: connection, time-out, 429, 5xx, a truncated answer."""


class FinalDownloadError(DownloadError):
    """Trying the same again will not help: 403, 404, too large, wrong md5, bad certificate."""


@dataclass(frozen=True)
class DownloadLimits:
    """How an image may be fetched.

    Attributes:
        max_bytes: largest answer accepted.
        timeout_s: without a byte, in seconds.
        ca_file: authority of the server's certificate; None for the system's.
        insecure: skip certificate checks.
    """

    max_bytes: int
    timeout_s: float
    ca_file: Path | None = None
    insecure: bool = False


def content_md5(data: bytes) -> str:
    """The md5 that names carry, as 32 lower-case hexadecimal digits; no matter of security."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def check_md5(data: bytes, announcement: Announcement) -> None:
    """Compares bytes with the md5 in the announced name, if it carries one.

    Raises:
        FinalDownloadError: they differ.
    """
    if announcement.md5 is not None and (found := content_md5(data)) != announcement.md5:
        raise FinalDownloadError(
            f"{announcement.filename}: wrong md5 {found} of {len(data)} bytes "
            f"from {announcement.source}"
        )


def download_image(announcement: Announcement, limits: DownloadLimits) -> bytes:
    """Fetches one announced image.

    Short retries with growing, jittered pauses happen inside; they follow no redirect.

    Returns:
        The file's bytes, as delivered, with the md5 that its name promises.

    Raises:
        RetriableDownloadError: see there.
        FinalDownloadError: see there.
    """
    import requests
    import urllib3.exceptions

    # What a message says starts with the file's name, so that it can be told which event it is.
    what = f"{announcement.filename} from {announcement.source}"
    try:
        with _session().get(
            announcement.url,
            stream=True,
            allow_redirects=False,
            timeout=(_CONNECT_TIMEOUT_S, limits.timeout_s),
            # On each request, for REQUESTS_CA_BUNDLE in the environment silently
            # overrides what is set on a session.
            verify=_verify(limits),
        ) as response:
            _check_status(response, what)
            data = _read_body(response, limits.max_bytes, what)
    except requests.exceptions.SSLError as error:
        if not _is_about_certificates(error):  # hung up in the handshake, say
            raise RetriableDownloadError(f"{what}: {_kind(error)}") from None
        raise FinalDownloadError(
            f"{what}: the server's certificate is not trusted ({_kind(error)}); set "
            "CYGNO_DOWNLOAD_CA_FILE to its authority's PEM file"
        ) from None
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
    ) as error:
        raise FinalDownloadError(f"{what}: the URL cannot be used ({_kind(error)})") from None
    # The exceptions of requests and urllib3 quote the URL with its signature: `from None`.
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise RetriableDownloadError(f"{what}: {_kind(error)}") from None
    # requests' word for an authority's file that is gone; all else it raises is above.
    except OSError as error:
        raise FinalDownloadError(f"{what}: {error}") from None
    check_md5(data, announcement)
    return data


@cache
def _session() -> requests.Session:
    """This process's session: its connections are kept, for a handshake costs as much as an image.

    Nothing else of it outlasts a request: no cookie, no password, and a connection that the
    server has closed meanwhile is opened again.
    """
    from http.cookiejar import DefaultCookiePolicy

    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    for name in ("urllib3.connectionpool", "urllib3.util.retry", "urllib3.connection"):
        logging.getLogger(name).addFilter(_without_signatures)
    retries = Retry(
        total=_RETRIES,
        backoff_factor=0.2,
        backoff_jitter=0.2,
        status_forcelist=_RETRIED_STATUSES,
        allowed_methods=("GET",),
        raise_on_status=False,
        respect_retry_after_header=False,  # it may say hours, and a run would sleep through them
    )
    session = requests.Session()
    session.trust_env = False  # no proxy and no .netrc password for an address from a message
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries))
    return session


def _without_signatures(record: logging.LogRecord) -> bool:
    """A logging filter: urllib3 writes whole URLs, signatures and all, when it tries again."""
    record.msg, record.args = re.sub(r"\?[^\s'\"]+", "?…", record.getMessage()), None
    return True


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


def _kind(error: BaseException) -> str:
    """What happened without the URL: the name of the innermost error, and the system's words."""
    error = _innermost(error)
    system = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{system}"


def _check_status(response: requests.Response, what: str) -> None:
    status = response.status_code
    if status == 200:
        return
    message = f"{what}: HTTP {status} {response.reason or ''}".rstrip()
    if status in _RETRIED_STATUSES:
        raise RetriableDownloadError(message)
    if status == 403:
        message += "; presigned URLs expire, and a wrong signature is answered alike"
    raise FinalDownloadError(message)


def _read_body(response: requests.Response, max_bytes: int, what: str) -> bytes:
    too_large = FinalDownloadError(f"{what}: larger than the {max_bytes} bytes allowed")
    declared = response.headers.get("Content-Length", "")
    expected = int(declared) if declared.isascii() and declared.isdigit() else None
    if expected is not None and expected > max_bytes:
        raise too_large
    data = bytearray()
    deadline = time.monotonic() + _MAX_DURATION_S
    # The raw stream as sent: an object store does not compress images, and a small compressed
    # answer must not unfold into a huge one.
    for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
        data += chunk
        if len(data) > max_bytes:
            raise too_large
        if time.monotonic() > deadline:
            raise RetriableDownloadError(f"{what}: not complete after {_MAX_DURATION_S:g} s")
    if expected is not None and len(data) != expected:
        raise RetriableDownloadError(f"{what}: truncated, {len(data)} of {expected} bytes")
    if not data:
        raise FinalDownloadError(f"{what}: the answer is empty")
    return bytes(data)
