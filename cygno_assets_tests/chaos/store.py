"""The DAQ's object store with something in front of it that can be told to misbehave.

Everything goes through unchanged to a real S3 server, signatures included, for the `Host` header
is what was signed; only downloads can be answered otherwise.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cygno_assets.daq.download import content_md5
from cygno_assets.services.certificates import make_certificates
from cygno_assets.services.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cygno_assets.services.s3_server import S3Server

Content = tuple[int, bytes]
"""Status and body, as the real server has it."""
_UPSTREAM_TIMEOUT_S = 60.0


class Download(BaseHTTPRequestHandler):
    """One request to the store, with what an answer needs."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Downloads."""
        self._handle()

    def do_PUT(self) -> None:
        """Uploads."""
        self._handle()

    def do_HEAD(self) -> None:
        """Looks."""
        self._handle()

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    @property
    def event(self) -> str:
        """Of the image asked for."""
        return urlsplit(self.path).path.rpartition("/")[2].rpartition(".")[0]

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        """Answers; with a `length` other than the body's, the connection is cut."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", f'"{content_md5(body)}"')  # who uploads wants one, any will do
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if length is not None and length != len(body):
            self.close_connection = True

    def fetch(self) -> Content:
        """What the real server answers."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        upstream = http.client.HTTPSConnection(
            "127.0.0.1",
            self.server.upstream.port,
            timeout=_UPSTREAM_TIMEOUT_S,
            context=self.server.trust,
        )
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.read()

    def _handle(self) -> None:
        # Who hangs up is the client, or a server that was killed: the client tries again.
        with contextlib.suppress(OSError, http.client.HTTPException):
            faulty = self.server.faulty
            if self.command == "GET" and faulty is not None and faulty.whom(self.event):
                faulty.hit.add(self.event)
                faulty.answer(self)
            else:
                status, body = self.fetch()
                self.send(status, b"" if self.command == "HEAD" else body)
            return
        self.close_connection = True


@dataclass(frozen=True)
class _Faulty:
    """How downloads are answered otherwise; and of which events, once it has happened."""

    answer: Callable[[Download], None]
    whom: Callable[[str], bool]
    hit: set[str]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    upstream: S3Server
    trust: ssl.SSLContext
    faulty: _Faulty | None = None

    def handle_error(self, *_: object) -> None:
        """Says nothing: clients are killed here."""


class FaultyStore:
    """An HTTPS server before the real one.

    Args:
        folder: of its certificates.
        upstream: the real one.
    """

    def __init__(self, folder: Path, upstream: S3Server) -> None:
        make_certificates(folder)
        self.ca_file = folder / "ca.pem"
        self.port = free_port()
        self._server = _Server(("127.0.0.1", self.port), Download, bind_and_activate=True)
        self._server.upstream = upstream
        self._server.trust = ssl.create_default_context(cafile=str(upstream.ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyStore]:
        """Answers as long as the block lasts."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    @contextlib.contextmanager
    def answering(
        self,
        answer: Callable[[Download], None],
        hit: set[str],
        whom: Callable[[str], bool] = lambda _: True,
    ) -> Iterator[None]:
        """Has downloads answered otherwise as long as the block lasts.

        Args:
            answer: how.
            hit: each event is added whose download was answered so.
            whom: tells of an event whether its is.
        """
        self._server.faulty = _Faulty(answer, whom, hit)
        try:
            yield
        finally:
            self._server.faulty = None
