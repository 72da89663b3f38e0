"""A web server that answers as a test says, well or badly, over HTTP or HTTPS."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import TYPE_CHECKING

from cygno_assets.daq.announcement import Announcement
from cygno_assets.daq.download import content_md5
from cygno_assets_tests.wire import REAL_IMAGES, name_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Answer = Callable[[BaseHTTPRequestHandler], None]

IMAGE = REAL_IMAGES[0].read_bytes()
QUERY = "X-Amz-Expires=3600&X-Amz-Signature=d1f2c0ffee"


def announcement(url: str, data: bytes = IMAGE) -> Announcement:
    filename = name_of(data)
    acquired = datetime(2024, 11, 27, tzinfo=UTC)
    return Announcement(filename[:-4], filename, url, acquired, str(acquired), content_md5(data))


@dataclass
class Origin:
    """A web server that answers each GET as the test says, one answer after the other."""

    address: str
    answers: list[Answer] = field(default_factory=list)  # the last one for ever
    requests: list[str] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    cookies: list[str | None] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def announced(self, *answers: Answer, data: bytes = IMAGE) -> Announcement:
        self.answers[:] = answers
        return announcement(f"{self.address}/cygno-daq/{name_of(data)}?{QUERY}", data)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(request.path)
        self.cookies.append(request.headers["Cookie"])
        if request.connection not in self.connections:
            self.connections.append(request.connection)
        self.answers[min(len(self.requests), len(self.answers)) - 1](request)


def sent_raw(head: bytes, endless: bytes = b"") -> Answer:
    """An answer byte for byte, and then others for ever, until the client has had enough."""

    def send(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(head)
        while endless:
            request.wfile.write(endless)

    return send


@contextlib.contextmanager
def serving(tls: SSLContext | None = None, *, keep_alive: bool = False) -> Iterator[Origin]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

        def do_GET(self) -> None:
            # Who hangs up in the middle of an answer is the client; it has its reasons.
            with contextlib.suppress(ConnectionError):
                origin.answer(self)
            if not keep_alive:
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...  # a client that hangs up in a handshake

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "http" if tls is None else "https"
    origin = Origin(f"{scheme}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield origin
    finally:
        origin.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(body: bytes = b"", *, status: int = 200, **headers: object) -> Answer:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            if value is not None:
                request.send_header(name.replace("_", "-"), str(value))
        request.end_headers()
        request.wfile.write(body)

    return send


def tls_of(certificates: Path) -> SSLContext:
    """What a server with these certificates (`make_certificates`) speaks."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return context
