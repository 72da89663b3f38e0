"""Downloads from a real web server that misbehaves, and from a real S3 server."""

from __future__ import annotations

import contextlib
import gzip
import logging
import re
import socket
import threading
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from cygno_assets.daq import download
from cygno_assets.daq.download import (
    DoubtfulDownloadError,
    DownloadError,
    DownloadLimits,
    FinalDownloadError,
    RetriableDownloadError,
    check_md5,
    content_md5,
    download_image,
)
from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.hosts import AllowedHost, Endpoint
from cygno_assets.services.certificates import make_certificates
from cygno_assets.services.process import free_port
from cygno_assets_tests.origin import (
    IMAGE,
    QUERY,
    Origin,
    announcement,
    answer,
    sent_raw,
    serving,
    tls_of,
)
from cygno_assets_tests.wire import name_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from cygno_assets.daq.announcement import Announcement
    from cygno_assets_tests.origin import Answer

LIMITS = DownloadLimits(max_bytes=100_000, timeout_s=10.0)


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
    with serving(tls_of(certificates)) as origin:
        yield origin


def fetch(announced: Announcement, limits: DownloadLimits = LIMITS) -> bytes:
    """Downloads; the host is listed unless the limits list others."""
    hosts = limits.hosts or (AllowedHost(Endpoint.of(announced.url)),)
    return download_image(announced, replace(limits, hosts=hosts))


def failure(
    announced: Announcement,
    error: type[DownloadError],
    kind: str,
    caplog: pytest.LogCaptureFixture,
    limits: DownloadLimits = LIMITS,
) -> str:
    """Downloads, which must fail so; returns what is said, in which no signature may be."""
    with caplog.at_level(logging.DEBUG), pytest.raises(error) as caught:
        fetch(announced, limits)
    shown = [str(caught.value), repr(caught.value), caplog.text]
    shown += traceback.format_exception(caught.value)
    shown += [record.getMessage() for record in caplog.records]
    assert "X-Amz-Signature" not in "\n".join(shown)
    assert announced.filename in str(caught.value)
    assert caught.value.kind == kind
    return str(caught.value)


# --- from one image to the next


def test_a_connection_is_kept_and_nothing_else() -> None:
    with serving(keep_alive=True) as origin:
        announced = origin.announced(answer(IMAGE, Set_Cookie="who=me; Path=/"))
        assert [fetch(announced) for _ in range(3)] == [IMAGE] * 3
        assert len(origin.connections) == 1
        assert origin.cookies == [None] * 3


def test_a_kept_connection_that_the_server_has_closed_is_opened_again() -> None:
    with serving(keep_alive=True) as origin:
        announced = origin.announced(answer(IMAGE))
        assert fetch(announced) == IMAGE
        origin.connections[0].shutdown(socket.SHUT_RDWR)
        assert fetch(announced) == IMAGE
        assert len(origin.connections) == 2


def test_after_an_answer_that_broke_off_the_next_image_is_whole() -> None:
    with serving(keep_alive=True) as origin:
        announced = origin.announced(answer(IMAGE, status=418), answer(IMAGE))
        with pytest.raises(DoubtfulDownloadError):
            fetch(announced)
        assert fetch(announced) == IMAGE


# --- what a server may answer


def test_the_images_bytes_are_returned_as_delivered(origin: Origin) -> None:
    assert fetch(origin.announced(answer(IMAGE))) == IMAGE
    assert origin.requests == [f"/cygno-daq/{name_of(IMAGE)}?{QUERY}"]


def test_a_length_unknown_beforehand_is_no_matter(origin: Origin) -> None:
    announced = origin.announced(answer(IMAGE, Content_Length=None))

    assert fetch(announced) == IMAGE


def test_an_image_of_exactly_the_size_allowed_is_fetched(origin: Origin) -> None:
    announced = origin.announced(answer(IMAGE))

    assert fetch(announced, replace(LIMITS, max_bytes=len(IMAGE))) == IMAGE


TOO_LARGE = bytes(100_001)
FINAL = FinalDownloadError
DOUBTFUL = DoubtfulDownloadError
RETRIABLE = RetriableDownloadError
LONG_HEADER = b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000
MANY_HEADERS = b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 101
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "error", "kind", "reason", "requests"),
    [
        pytest.param(
            answer(IMAGE[:-1]), DOUBTFUL, "wrong_content", "wrong md5", 2, id="wrong bytes"
        ),
        pytest.param(answer(), DOUBTFUL, "wrong_content", "the answer is empty", 2, id="empty"),
        pytest.param(
            answer(IMAGE[:1000], Content_Length=len(IMAGE)),
            *(RETRIABLE, "unavailable", "", 4),
            id="truncated",
        ),
        pytest.param(
            answer(b"ff\r\nxyz", Transfer_Encoding="chunked", Content_Length=None),
            *(RETRIABLE, "unavailable", "", 4),
            id="truncated in a chunk",
        ),
        pytest.param(
            answer(Content_Length=100_001),
            *(DOUBTFUL, "too_large", "larger than the 100000", 1),
            id="says too large",
        ),
        pytest.param(
            answer(Content_Length="9" * 5000),
            *(DOUBTFUL, "too_large", "larger than the 100000", 1),
            id="says larger than there are numbers for",
        ),
        pytest.param(
            answer(TOO_LARGE, Content_Length=None),
            *(DOUBTFUL, "too_large", "larger than", 1),
            id="is too large",
        ),
        pytest.param(
            sent_raw(LONG_HEADER), DOUBTFUL, "too_large", "headers", 1, id="a long header"
        ),
        pytest.param(
            sent_raw(MANY_HEADERS), DOUBTFUL, "too_large", "headers", 1, id="many headers"
        ),
        pytest.param(
            sent_raw(b"", b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n"),
            *(DOUBTFUL, "too_large", "larger than", 1),
            id="endless beginnings",
        ),
        pytest.param(
            sent_raw(CHUNKED + b"0\r\n", b"X-Trailer: 1\r\n"),
            *(DOUBTFUL, "too_large", "larger than", 1),
            id="endless trailers",
        ),
        pytest.param(
            answer(gzip.compress(IMAGE), Content_Encoding="gzip"),
            *(DOUBTFUL, "wrong_content", "wrong md5", 2),
            id="gzip",
        ),
        pytest.param(
            answer(IMAGE, status=403),
            *(DOUBTFUL, "forbidden", "HTTP 403 Forbidden; the URL says no time of expiry", 2),
            id="403",
        ),
        pytest.param(answer(status=410), DOUBTFUL, "missing", "HTTP 410 Gone", 5, id="410"),
        pytest.param(answer(IMAGE, status=206), DOUBTFUL, "bad_answer", "HTTP 206", 1, id="206"),
        pytest.param(answer(status=299), DOUBTFUL, "bad_answer", "HTTP 299", 1, id="299"),
        pytest.param(
            answer(status=302, Location="/elsewhere"),
            *(DOUBTFUL, "bad_answer", "HTTP 302 Found", 1),
            id="302",
        ),
        pytest.param(
            sent_raw(f"HTTP/1.1 400 {QUERY} {'x' * 1000}\r\n\r\n".encode()),
            *(DOUBTFUL, "bad_answer", "HTTP 400 Bad Request", 1),
            id="says our signature",
        ),
        pytest.param(sent_raw(b"hello"), RETRIABLE, "unavailable", "BadStatus", 4, id="no HTTP"),
        *(
            pytest.param(answer(status=n), RETRIABLE, "unavailable", f"HTTP {n}", 4, id=f"{n}")
            for n in (408, 429, 500, 503, 507, 520)
        ),
        *(
            pytest.param(answer(status=n), DOUBTFUL, "bad_answer", f"HTTP {n}", 1, id=f"{n}")
            for n in (400, 501, 505)
        ),
        pytest.param(
            sent_raw(CHUNKED + b"-5\r\n"), DOUBTFUL, "bad_answer", "ValueError", 1, id="chunk of -5"
        ),
    ],
)
def test_bad_answers_are_named(
    origin: Origin,
    caplog: pytest.LogCaptureFixture,
    sent: Answer,
    error: type[DownloadError],
    kind: str,
    reason: str,
    requests: int,
) -> None:
    said = failure(origin.announced(sent), error, kind, caplog)

    assert reason in said
    assert len(said) < 400
    assert f"{origin.address}/cygno-daq/{name_of(IMAGE)}" in said
    assert origin.requests == [f"/cygno-daq/{name_of(IMAGE)}?{QUERY}"] * requests


@pytest.mark.parametrize(
    "head", [b"", CHUNKED], ids=["never ends its headers", "never ends its image"]
)
def test_a_server_that_drips_is_given_up(
    origin: Origin, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(head)
        while not origin.closing.wait(0.01):
            request.wfile.write(b"1\r\nx\r\n" if head else b"H")

    limits = replace(LIMITS, max_duration_s=0.3)
    said = failure(origin.announced(drip), RETRIABLE, "unavailable", caplog, limits)

    assert "not complete after 0.3 s" in said


# --- an object that is not there (yet)


def test_an_object_that_comes_late_is_fetched(origin: Origin) -> None:
    announced = origin.announced(answer(status=404), answer(status=404), answer(IMAGE))

    assert fetch(announced) == IMAGE
    assert len(origin.requests) == 3


def test_an_object_that_does_not_come_is_missing(
    origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    said = failure(origin.announced(answer(status=404)), DOUBTFUL, "missing", caplog)

    assert "HTTP 404 Not Found" in said
    assert len(origin.requests) == 5


# --- hosts


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:{port}/x.jpg", "http://127.0.0.1:{port}"),
        ("https://127.0.0.1:{port}/x.jpg", "127.0.0.1:{port}"),
        ("http://[::1]:{port}/x.jpg", "http://[::1]:{port}"),
        ("http://LOCALHOST:{port}/x.jpg", "http://localhost:{port}"),
        ("http://0.0.0.0:{port}/x.jpg", "http://0.0.0.0:{port}"),
        ("http://169.254.169.254/latest/meta-data", "http://169.254.169.254"),
        ("http://listed.example/x.jpg", "http://listed.example"),
        ("https://listed.example:444/x.jpg", "listed.example:444"),
        ("https://below.listed.example/x.jpg", "below.listed.example"),
        ("https://pattern.example/x.jpg", "pattern.example"),
        ("https://notpattern.example/x.jpg", "notpattern.example"),
        ("https://a.pattern.example.evil.example/x.jpg", "a.pattern.example.evil.example"),
    ],
)
def test_only_listed_hosts_are_asked(
    origin: Origin, caplog: pytest.LogCaptureFixture, url: str, shown: str
) -> None:
    port = origin.address.rpartition(":")[2]
    announced = announcement(f"{url.format(port=port)}?{QUERY}")
    hosts = tuple(map(AllowedHost.parse, ("listed.example", "*.pattern.example")))

    said = failure(announced, FINAL, "not_allowed", caplog, replace(LIMITS, hosts=hosts))

    where = shown.format(port=port)
    assert said.endswith(f"field 'url': host {where} is not in CYGNO_DOWNLOAD_HOSTS")
    assert origin.connections == []


def test_without_a_list_nothing_is_asked(origin: Origin) -> None:
    with pytest.raises(FINAL, match="is not in CYGNO_DOWNLOAD_HOSTS"):
        download_image(origin.announced(answer(IMAGE)), LIMITS)
    assert origin.connections == []


@pytest.fixture
def names_lead_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that sends every name to this machine: what a hostile one would do."""
    ask = socket.getaddrinfo

    def answers(host: str, *args: Any, **kwargs: Any) -> Any:
        return ask("127.0.0.1" if host.endswith(".example") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answers)


@pytest.mark.usefixtures("names_lead_here")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_below_a_pattern_may_not_lead_to_a_private_address(
    caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    received.append(connection.recv(1000))
                    connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            announced = announcement(f"{scheme}://images.daq.example:{port}/x.jpg?{QUERY}")
            entry = AllowedHost.parse(f"{scheme}://*.daq.example:{port}")
            limits = replace(LIMITS, hosts=(entry,))
            said = failure(announced, FINAL, "not_allowed", caplog, limits)
            wait_until("the connection was seen", lambda: received)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert "field 'url': the host leads to 127.0.0.1, which is no public address" in said
    assert f"*.daq.example:{port}" in said
    assert received == [b""]


@pytest.mark.usefixtures("names_lead_here")
@pytest.mark.parametrize("pattern", ["*.daq.example", None])
def test_a_name_that_is_listed_may_lead_anywhere(origin: Origin, pattern: str | None) -> None:
    port = origin.address.rpartition(":")[2]
    origin.answers[:] = [answer(IMAGE)]
    entries = [f"http://images.daq.example:{port}"]
    if pattern:
        entries.insert(0, f"http://{pattern}:{port}")
    hosts = tuple(map(AllowedHost.parse, entries))
    announced = announcement(f"http://images.daq.example:{port}/x.jpg")

    assert fetch(announced, replace(LIMITS, hosts=hosts)) == IMAGE


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "127.1", "u:p@127.0.0.1", "%6cocalhost"])
def test_urls_that_cannot_be_used(host: str) -> None:
    with pytest.raises(FINAL, match="field 'url' ") as caught:
        download_image(announcement(f"https://{host}/x.jpg?{QUERY}"), LIMITS)
    assert caught.value.kind == "unusable_url"
    assert "X-Amz" not in str(caught.value)


# --- passing faults


def test_a_passing_fault_is_bridged(origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    passing = (answer(status=500), answer(status=429), answer(IMAGE[:-1]), answer(status=403))
    announced = origin.announced(*passing, answer(IMAGE))

    with caplog.at_level(logging.DEBUG):
        assert fetch(announced) == IMAGE
    assert len(origin.requests) == 5
    assert "X-Amz-Signature" not in caplog.text


def test_those_who_failed_together_do_not_come_back_together(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = origin.announced(answer(status=500))
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    for _ in range(10):
        with pytest.raises(RETRIABLE):
            fetch(announced)
    for at, usual in enumerate((0.1, 0.4, 0.8)):
        these = pauses[at::3]
        assert len(set(these)) == 10
        assert 0.7 * usual <= min(these) <= max(these) <= 1.3 * usual
        assert max(these) - min(these) > 0.1 * usual


def test_a_server_cannot_make_us_wait(origin: Origin) -> None:
    announced = origin.announced(answer(status=503, Retry_After=3600), answer(IMAGE))
    fetched: list[bytes] = []
    thread = threading.Thread(target=lambda: fetched.append(fetch(announced)), daemon=True)

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

    said = failure(announced, RETRIABLE, "unavailable", caplog, replace(LIMITS, timeout_s=0.2))

    assert "imeout" in said


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    announced = announcement(f"http://127.0.0.1:{free_port()}/x.jpg?{QUERY}")

    assert "Connection refused" in failure(announced, RETRIABLE, "unavailable", caplog)


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
            failure(announcement(address), RETRIABLE, "unavailable", caplog)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# --- certificates


def test_a_certificate_is_trusted_by_its_authority(tls_origin: Origin, certificates: Path) -> None:
    announced = tls_origin.announced(answer(IMAGE))

    limits = replace(LIMITS, ca_file=certificates / "ca.pem")
    assert fetch(announced, limits) == IMAGE


def test_a_certificate_of_an_unknown_authority_is_not_trusted(
    tls_origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    said = failure(tls_origin.announced(answer(IMAGE)), DOUBTFUL, "untrusted", caplog)

    assert "certificate is not trusted" in said
    assert "CYGNO_DOWNLOAD_CA_FILE" in said
    assert tls_origin.requests == []


def test_a_certificate_of_another_authority_is_not_trusted(
    tls_origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_certificates(tmp_path)

    limits = replace(LIMITS, ca_file=tmp_path / "ca.pem")
    assert "not trusted" in failure(
        tls_origin.announced(answer(IMAGE)), DOUBTFUL, "untrusted", caplog, limits
    )


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_certificates_are_not_checked_if_one_says_so(tls_origin: Origin) -> None:
    announced = tls_origin.announced(answer(IMAGE))

    assert fetch(announced, replace(LIMITS, insecure=True)) == IMAGE


def test_an_authority_file_that_is_gone(
    tls_origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = replace(LIMITS, ca_file=tmp_path / "gone.pem")

    assert "gone.pem" in failure(
        tls_origin.announced(answer(IMAGE)), DOUBTFUL, "untrusted", caplog, limits
    )


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
    assert fetch(announced, limits) == IMAGE

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificates / "ca.pem"))
    assert "not trusted" in failure(announced, DOUBTFUL, "untrusted", caplog)


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

    assert fetch(announced, s3_limits) == IMAGE


def test_a_tampered_signature_is_told_from_an_expired_one(
    presigned: Callable[[timedelta], str],
    s3_limits: DownloadLimits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = presigned(timedelta(hours=1))
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    tampered = url.replace(signature, signature[::-1])

    said = failure(announcement(tampered), DOUBTFUL, "forbidden", caplog, s3_limits)

    assert "HTTP 403 Forbidden; the URL is valid until 20" in said
    assert "its signature is wrong" in said


def test_an_expired_url_says_since_when(
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

    said = failure(announcement(url), FINAL, "expired", caplog, s3_limits)

    assert re.search(r"HTTP 403 Forbidden; its URL expired at 20.* UTC, 0:00:\d\d ago", said)


@pytest.mark.parametrize(
    "query",
    ["X-Amz-Date=20241127T132736Z&X-Amz-Expires=3600&X-Amz-Signature=1", "Expires=1732717656"],
    ids=["version 4", "version 2"],
)
def test_a_url_that_has_long_expired_is_not_asked(
    origin: Origin, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    announced = replace(origin.announced(answer(IMAGE)), url=f"{origin.address}/x.jpg?{query}")

    said = failure(announced, FINAL, "expired", caplog)

    assert "its URL expired at 2024-11-27 14:27:36 UTC, " in said
    assert " days, " in said
    assert origin.requests == []


def test_clocks_may_differ_by_a_minute(origin: Origin) -> None:
    just = datetime.now(UTC) - timedelta(seconds=40)
    announced = origin.announced(answer(IMAGE))
    announced = replace(announced, url=f"{origin.address}/x.jpg?Expires={just.timestamp():.0f}")

    assert fetch(announced) == IMAGE


def test_an_object_that_is_not_there_is_missing(
    daq_bucket: BucketSettings, s3_limits: DownloadLimits, caplog: pytest.LogCaptureFixture
) -> None:
    url = Bucket(daq_bucket).presigned_url("cygno-nowhere.jpg", timedelta(hours=1))

    said = failure(announcement(url), DOUBTFUL, "missing", caplog, s3_limits)

    assert "HTTP 404" in said


# --- md5


def test_a_name_without_md5_promises_nothing() -> None:
    nameless = replace(announcement(f"http://h/x.jpg?{QUERY}"), md5=None)

    check_md5(b"anything", nameless)
    with pytest.raises(DOUBTFUL, match="wrong md5 f0e166dc34d14d6c228ffac576c9a43c of 8 bytes"):
        check_md5(b"anything", replace(nameless, md5=content_md5(IMAGE)))
