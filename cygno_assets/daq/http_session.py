"""The HTTP sessions that servers are asked through; imported when the first one is asked.

Here belongs what keeps a server in its place: how much it may send, for how long, and from which
addresses. What an answer means is for whoever asks to say.
"""

from __future__ import annotations

import http.client
import io
import logging
import time
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from cygno_assets.hosts import is_public, without_queries

if TYPE_CHECKING:
    import socket

    _Pools = dict[str, type[HTTPConnectionPool]]

_OVERHEAD_BYTES = 1_048_576
"""Of an answer beside its body: headers, and what frames the chunks."""


# None of these is an OSError: urllib3 and requests let them through as they are.
class AnswerTooLongError(Exception):
    """The answer has more bytes than allowed."""


class AnswerTooSlowError(Exception):
    """The answer was not complete in time, though bytes kept coming."""


class NotPublicError(Exception):
    """The name leads to an address that is not of the internet at large, which the text is."""


@cache
def session(*, max_bytes: int, max_s: float, public_only: bool) -> requests.Session:
    """This process's session: its connections are kept, for a handshake costs as much as an image.

    Nothing else of it outlasts a request: no cookie, no password, and a connection that the
    server has closed meanwhile is opened again. It follows no redirect. Ask with `stream=True` and
    read `raw`: requests undoes what an answer says that it is compressed by, however small.

    Args:
        max_bytes: of an answer's body; its headers may have a megabyte more.
        max_s: of an answer, from its first byte to its last, in seconds.
        public_only: ask nobody whose address is private, loopback, link-local or the like.

    A request raises, beside what requests says, AnswerTooLongError, AnswerTooSlowError and
    NotPublicError.
    """
    for name in ("urllib3.connectionpool", "urllib3.util.retry", "urllib3.connection"):
        logging.getLogger(name).addFilter(_without_signatures)
    made = _Session()
    made.trust_env = False  # no proxy and no .netrc password for an address from a message
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    # Nothing unfolds on its way: an object store does not compress images.
    made.headers["Accept-Encoding"] = "identity"
    adapter = _Adapter(_pools(max_bytes + _OVERHEAD_BYTES, max_s, public_only=public_only))
    for scheme in ("https://", "http://"):
        made.mount(scheme, adapter)
    return made


def _without_signatures(record: logging.LogRecord) -> bool:
    """A logging filter: urllib3 writes whole URLs, and headers that may have the URL in them."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            type(said).__name__ if isinstance(said, BaseException) else said for said in record.args
        )
    record.msg, record.args = without_queries(record.getMessage()), None
    record.exc_info = record.exc_text = record.stack_info = None
    return True


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 – requests' name
        """None: even if it shall not follow, requests would read a redirect's body, unfolded."""
        return


class _Adapter(HTTPAdapter):
    def __init__(self, pools: _Pools) -> None:
        self._pools = pools
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools


def _pools(max_bytes: int, max_s: float, *, public_only: bool) -> _Pools:
    """urllib3's pools, of connections that keep to these limits."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp = io.BufferedReader(_Bounded(self.fp.detach(), max_bytes, max_s))

        def _safe_read(self, amt: int) -> bytes:
            # By this, http.client's own, urllib3 reads a chunk, and takes a length of -1 for one:
            # that is all there is, at once.
            if amt < 0:
                raise ValueError("a chunk of negative length")
            return super()._safe_read(amt)  # type: ignore[misc,no-any-return]  # private

    class Plain(HTTPConnection):
        response_class = Answer

        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            # The address that is really connected to: what a name server says a second time
            # does not matter. Nothing has been sent yet, and no TLS spoken.
            address = connection.getpeername()[0]
            if public_only and not is_public(address):
                connection.close()
                raise NotPublicError(address)
            return connection

    class Tls(Plain, HTTPSConnection): ...

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


class _Bounded(io.RawIOBase):
    """An answer's bytes as they come from the socket, headers and all, up to the limits."""

    def __init__(self, raw: io.RawIOBase, max_bytes: int, max_s: float) -> None:
        self._raw = raw
        self._left = max_bytes
        self._deadline = time.monotonic() + max_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        # A server that drips a byte a second never runs into the socket's time-out.
        if time.monotonic() > self._deadline:
            raise AnswerTooSlowError
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise AnswerTooLongError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
