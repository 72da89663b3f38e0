"""Downloads from a real web server that misbehaves, and from a real S3 server."""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
import threading
import traceback
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from cygno_assets.daq.announcement import Announcement
from cygno_assets.daq.download import (
    DownloadError,
    DownloadLimits,
    FinalDownloadError,
    RetriableDownloadError,
    check_md5,
    content_md5,
    download_image,
)
from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.services.certificates import make_certificates
from cygno_assets.services.process import free_port
from cygno_assets_tests.wire import REAL_IMAGES, name_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMAGE = REAL_IMAGES[0].read_bytes()
QUERY = "X-Amz-Expires=3600&X-Amz-Signature=d1f2c0ffee"
LIMITS = DownloadLimits(max_bytes=100_000, timeout_s=10.0)

Answer = "Callable[[BaseHTTPRequestHandler], None]"


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


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture
def tls_origin(certificates: Path) -> Iterator[Origin]:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    with serving(context) as origin:
        yield origin


def answer(body: bytes = b"", *, status: int = 200, **headers: object) -> Answer:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            if value is not None:
                request.send_header(name.replace("_", "-"), str(value))
        request.end_headers()
        request.wfile.write(body)

    return send


def failure(
    announced: Announcement,
    kind: type[DownloadError],
    caplog: pytest.LogCaptureFixture,
    limits: DownloadLimits = LIMITS,
) -> str:
    """Downloads, which must fail so; returns what is said, in which no signature may be."""
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as caught:
        download_image(announced, limits)
    shown = [str(caught.value), repr(caught.value), caplog.text]
    shown += traceback.format_exception(caught.value)
    shown += [record.getMessage() for record in caplog.records]
    assert "X-Amz-Signature" not in "\n".join(shown)
    assert announced.filename in str(caught.value)
    return str(caught.value)


# --- from one image to the next


def test_a_connection_is_kept_and_nothing_else() -> None:
    with serving(keep_alive=True) as origin:
        announced = origin.announced(answer(IMAGE, Set_Cookie="who=me; Path=/"))
        assert [download_image(announced, LIMITS) for _ in range(3)] == [IMAGE] * 3
        assert len(origin.connections) == 1
        assert origin.cookies == [None] * 3


def test_a_kept_connection_that_the_server_has_closed_is_opened_again() -> None:
    with serving(keep_alive=True) as origin:
        announced = origin.announced(answer(IMAGE))
        assert download_image(announced, LIMITS) == IMAGE
        origin.connections[0].shutdown(socket.SHUT_RDWR)
        assert download_image(announced, LIMITS) == IMAGE
        assert len(origin.connections) == 2


def test_after_an_answer_that_broke_off_the_next_image_is_whole() -> None:
    with serving(keep_alive=True) as origin:
        announced = origin.announced(answer(IMAGE, status=403), answer(IMAGE))
        with pytest.raises(FinalDownloadError):
            download_image(announced, LIMITS)
        assert download_image(announced, LIMITS) == IMAGE


# --- what a server may answer


def test_the_images_bytes_are_returned_as_delivered(origin: Origin) -> None:
    assert download_image(origin.announced(answer(IMAGE)), LIMITS) == IMAGE
    assert origin.requests == [f"/cygno-daq/{name_of(IMAGE)}?{QUERY}"]


def test_a_length_unknown_beforehand_is_no_matter(origin: Origin) -> None:
    announced = origin.announced(answer(IMAGE, Content_Length=None))

    assert download_image(announced, LIMITS) == IMAGE


def test_an_image_of_exactly_the_size_allowed_is_fetched(origin: Origin) -> None:
    announced = origin.announced(answer(IMAGE))

    assert download_image(announced, replace(LIMITS, max_bytes=len(IMAGE))) == IMAGE


TOO_LARGE = bytes(100_001)
FINAL = FinalDownloadError
RETRIABLE = RetriableDownloadError


@pytest.mark.parametrize(
    ("sent", "kind", "reason", "requests"),
    [
        pytest.param(answer(IMAGE[:-1]), FINAL, "wrong md5", 1, id="wrong bytes"),
        pytest.param(answer(), FINAL, "the answer is empty", 1, id="empty"),
        pytest.param(
            answer(IMAGE[:1000], Content_Length=len(IMAGE)), RETRIABLE, "", 1, id="truncated"
        ),
        pytest.param(
            answer(b"ff\r\nxyz", Transfer_Encoding="chunked", Content_Length=None),
            RETRIABLE,
            "",
            1,
            id="truncated in a chunk",
        ),
        pytest.param(
            answer(Content_Length=100_001), FINAL, "larger than the 100000", 1, id="says too large"
        ),
        pytest.param(
            answer(TOO_LARGE, Content_Length=None), FINAL, "larger than", 1, id="is too large"
        ),
        pytest.param(
            answer(gzip.compress(IMAGE), Content_Encoding="gzip"), FINAL, "wrong md5", 1, id="gzip"
        ),
        pytest.param(answer(IMAGE, status=404), FINAL, "HTTP 404 Not Found", 1, id="404"),
        pytest.param(
            answer(IMAGE, status=403), FINAL, "HTTP 403 Forbidden; presigned URLs", 1, id="403"
        ),
        pytest.param(answer(IMAGE, status=206), FINAL, "HTTP 206", 1, id="206"),
        pytest.param(
            answer(status=302, Location="/elsewhere"), FINAL, "HTTP 302 Found", 1, id="302"
        ),
        pytest.param(answer(IMAGE, status=500), RETRIABLE, "HTTP 500", 4, id="500 for ever"),
    ],
)
def test_bad_answers_are_named(
    origin: Origin,
    caplog: pytest.LogCaptureFixture,
    sent: Answer,
    kind: type[DownloadError],
    reason: str,
    requests: int,
) -> None:
    said = failure(origin.announced(sent), kind, caplog)

    assert reason in said
    assert f"{origin.address}/cygno-daq/{name_of(IMAGE)}" in said
    assert origin.requests == [f"/cygno-daq/{name_of(IMAGE)}?{QUERY}"] * requests


def test_a_passing_fault_is_bridged(origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    announced = origin.announced(answer(status=500), answer(status=429), answer(IMAGE))

    with caplog.at_level(logging.DEBUG):
        assert download_image(announced, LIMITS) == IMAGE
    assert len(origin.requests) == 3
    assert "X-Amz-Signature" not in caplog.text


def test_a_server_cannot_make_us_wait(origin: Origin) -> None:
    announced = origin.announced(answer(status=503, Retry_After=3600), answer(IMAGE))
    fetched: list[bytes] = []
    thread = threading.Thread(
        target=lambda: fetched.append(download_image(announced, LIMITS)), daemon=True
    )

    thread.start()
    thread.join(timeout=20)

    assert fetched == [IMAGE]


@pytest.mark.parametrize("sent", [0, 1000], ids=["before the headers", "in the image"])
def test_a_server_that_stalls(origin: Origin, caplog: pytest.LogCaptureFixture, sent: int) -> None:
    def stall(request: BaseHTTPRequestHandler) -> None:
        if sent:
            answer(IMAGE[:sent], Content_Length=len(IMAGE))(request)
        origin.closing.wait()

    announced = origin.announced(stall)

    said = failure(announced, RETRIABLE, caplog, replace(LIMITS, timeout_s=0.2))

    assert "imeout" in said


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    announced = announcement(f"http://127.0.0.1:{free_port()}/x.jpg?{QUERY}")

    assert "Connection refused" in failure(announced, RETRIABLE, caplog)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_hangs_up_at_once(caplog: pytest.LogCaptureFixture, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.recv(65_536)  # unread bytes would make it a reset
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/x.jpg?{QUERY}"
        try:
            failure(announcement(address), RETRIABLE, caplog)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_hosts_that_cannot_be_reached(host: str, caplog: pytest.LogCaptureFixture) -> None:
    failure(announcement(f"http://{host}/x.jpg?{QUERY}"), DownloadError, caplog)


# --- certificates


def test_a_certificate_is_trusted_by_its_authority(tls_origin: Origin, certificates: Path) -> None:
    announced = tls_origin.announced(answer(IMAGE))

    limits = replace(LIMITS, ca_file=certificates / "ca.pem")
    assert download_image(announced, limits) == IMAGE


def test_a_certificate_of_an_unknown_authority_is_not_trusted(
    tls_origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    said = failure(tls_origin.announced(answer(IMAGE)), FINAL, caplog)

    assert "certificate is not trusted" in said
    assert "CYGNO_DOWNLOAD_CA_FILE" in said
    assert tls_origin.requests == []


def test_a_certificate_of_another_authority_is_not_trusted(
    tls_origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_certificates(tmp_path)

    limits = replace(LIMITS, ca_file=tmp_path / "ca.pem")
    assert "not trusted" in failure(tls_origin.announced(answer(IMAGE)), FINAL, caplog, limits)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_certificates_are_not_checked_if_one_says_so(tls_origin: Origin) -> None:
    announced = tls_origin.announced(answer(IMAGE))

    assert download_image(announced, replace(LIMITS, insecure=True)) == IMAGE


def test_an_authority_file_that_is_gone(
    tls_origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = replace(LIMITS, ca_file=tmp_path / "gone.pem")

    assert "gone.pem" in failure(tls_origin.announced(answer(IMAGE)), FINAL, caplog, limits)


def test_the_environment_changes_nothing(
    tls_origin: Origin,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    announced = tls_origin.announced(answer(IMAGE))
    limits = replace(LIMITS, ca_file=certificates / "ca.pem")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{free_port()}")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "bogus.pem"))
    assert download_image(announced, limits) == IMAGE

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificates / "ca.pem"))
    assert "not trusted" in failure(announced, FINAL, caplog)


# --- presigned URLs of a real S3 server


@pytest.fixture
def s3_limits(daq_bucket: BucketSettings) -> DownloadLimits:
    return replace(LIMITS, ca_file=daq_bucket.ca_file)


@pytest.fixture
def presigned(daq_bucket: BucketSettings) -> Callable[[timedelta], str]:
    bucket = Bucket(daq_bucket)
    bucket.put(name_of(IMAGE), IMAGE)
    return lambda lifetime: bucket.presigned_url(name_of(IMAGE), lifetime)


def test_a_presigned_url_opens_the_image(
    presigned: Callable[[timedelta], str], s3_limits: DownloadLimits
) -> None:
    announced = announcement(presigned(timedelta(hours=1)))

    assert download_image(announced, s3_limits) == IMAGE


def test_a_tampered_signature_is_final(
    presigned: Callable[[timedelta], str],
    s3_limits: DownloadLimits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = presigned(timedelta(hours=1))
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    tampered = url.replace(signature, signature[::-1])

    said = failure(announcement(tampered), FINAL, caplog, s3_limits)

    assert "HTTP 403 Forbidden; presigned URLs expire" in said


def test_an_expired_url_is_final(
    presigned: Callable[[timedelta], str],
    s3_limits: DownloadLimits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = presigned(timedelta(seconds=1))
    wait_until(
        "the URL has expired",
        lambda: requests.get(url, verify=str(s3_limits.ca_file), timeout=10).status_code == 403,
    )
    caplog.clear()  # of what this test's own requests wrote

    said = failure(announcement(url), FINAL, caplog, s3_limits)

    assert "HTTP 403 Forbidden; presigned URLs expire" in said


def test_an_object_that_is_not_there_is_final(
    daq_bucket: BucketSettings, s3_limits: DownloadLimits, caplog: pytest.LogCaptureFixture
) -> None:
    url = Bucket(daq_bucket).presigned_url("cygno-nowhere.jpg", timedelta(hours=1))

    assert "HTTP 404" in failure(announcement(url), FINAL, caplog, s3_limits)


# --- md5


def test_a_name_without_md5_promises_nothing() -> None:
    nameless = replace(announcement(f"http://h/x.jpg?{QUERY}"), md5=None)

    check_md5(b"anything", nameless)
    with pytest.raises(FINAL, match="wrong md5 f0e166dc34d14d6c228ffac576c9a43c of 8 bytes"):
        check_md5(b"anything", replace(nameless, md5=content_md5(IMAGE)))
