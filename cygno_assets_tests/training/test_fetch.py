"""Fetching an archive from a web server that breaks off, changes its mind and lies."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import re
import threading
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.training import fetch
from cygno_assets.training.archive import Archive, ArchiveError
from cygno_assets.training.fetch import (
    FetchedArchive,
    FetchError,
    ServerUnavailableError,
    archive_version,
    fetch_archive,
)
from cygno_assets_tests.origin import answer, sent_raw, serving
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cygno_assets_tests.origin import Answer, Origin

SECRET = "X-Amz-Signature=c0ffee"


def zipped(*contents: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"NR/6_keV/{number}.png", content)
    return file.getvalue()


FIRST = zipped(*(file.read_bytes() for file in REAL_IMAGES))
SECOND = zipped(REAL_IMAGES[0].read_bytes())


class Shelf:
    """What the server offers, how it misbehaves, and what was asked of it."""

    def __init__(self) -> None:
        self.content = FIRST
        self.breaks_off_after: list[int] = []  # bytes, one for each of the next answers
        self.statuses: list[int] = []  # instead of an answer, one for each of the next requests
        self.ranges = True
        self.asked: list[dict[str, str]] = []
        self.sent = 0
        self.url = ""

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:12]}"'

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(request.headers))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        if request.headers.get("If-None-Match") == self.etag:
            request.send_response(304)
            request.end_headers()
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(asked[1])
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.breaks_off_after:
            body = body[: self.breaks_off_after.pop(0)]
        request.wfile.write(body)
        self.sent += len(body)
        request.close_connection = True


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf.answer(self)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shelf.url = f"http://127.0.0.1:{server.server_port}/dl/training_set.zip?{SECRET}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shelf
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_PAUSE_S", 0.01)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_whole(fetched: FetchedArchive, content: bytes, *, changed: bool) -> None:
    assert fetched.path.read_bytes() == content
    assert (fetched.sha256, fetched.size_bytes) == (digest(content), len(content))
    assert fetched.changed is changed
    with Archive(fetched.path) as archive:
        assert list(archive.verify()) == archive.members


def test_it_is_fetched_with_progress_and_not_again_while_unchanged(
    shelf: Shelf, tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    first = fetch_archive(shelf.url, tmp_path, progress=lambda *now: seen.append(now))
    is_whole(first, FIRST, changed=True)
    assert seen[-1] == (len(FIRST), len(FIRST))
    again = fetch_archive(shelf.url, tmp_path)
    is_whole(again, FIRST, changed=False)
    assert shelf.sent == len(FIRST)
    shelf.content = SECOND
    is_whole(fetch_archive(shelf.url, tmp_path), SECOND, changed=True)
    is_whole(fetch_archive(shelf.url, tmp_path), SECOND, changed=False)
    for file in tmp_path.iterdir():
        assert SECRET not in file.read_text(errors="replace")
    assert first.source == shelf.url.partition("?")[0]


def test_a_break_is_resumed_where_it_was(shelf: Shelf, tmp_path: Path) -> None:
    shelf.breaks_off_after = [100_000, 40_000]
    is_whole(fetch_archive(shelf.url, tmp_path), FIRST, changed=True)
    assert [headers.get("Range") for headers in shelf.asked] == [
        *(None, "bytes=100000-"),
        "bytes=140000-",
    ]
    assert shelf.sent == len(FIRST)


def test_a_fetch_that_was_given_up_goes_on_the_next_time(shelf: Shelf, tmp_path: Path) -> None:
    shelf.breaks_off_after = [60_000, 0, 0, 0, 0]
    with pytest.raises(
        ServerUnavailableError, match=r"broke off after 60000 of \d+ bytes, 5 times"
    ) as gone:
        fetch_archive(shelf.url, tmp_path)
    assert SECRET not in str(gone.value)
    is_whole(fetch_archive(shelf.url, tmp_path), FIRST, changed=True)
    assert shelf.sent == len(FIRST)


def test_the_beginning_of_one_is_never_joined_to_the_rest_of_another(
    shelf: Shelf, tmp_path: Path
) -> None:
    shelf.breaks_off_after = [60_000, 0, 0, 0, 0]
    with pytest.raises(FetchError):
        fetch_archive(shelf.url, tmp_path)
    shelf.content = zipped(*(file.read_bytes() for file in reversed(REAL_IMAGES)))
    is_whole(fetch_archive(shelf.url, tmp_path), shelf.content, changed=True)


def test_a_server_without_ranges_sends_it_anew(shelf: Shelf, tmp_path: Path) -> None:
    shelf.ranges, shelf.breaks_off_after = False, [60_000]
    is_whole(fetch_archive(shelf.url, tmp_path), FIRST, changed=True)


def test_passing_trouble_is_waited_for(shelf: Shelf, tmp_path: Path) -> None:
    shelf.statuses = [503, 429, 500]
    is_whole(fetch_archive(shelf.url, tmp_path), FIRST, changed=True)


def test_a_redirect_on_the_same_host_is_followed(tmp_path: Path) -> None:
    with serving() as origin:
        origin.answers[:] = [answer(status=302, Location="/there"), answer(FIRST)]
        fetched = fetch_archive(f"{origin.address}/here?{SECRET}", tmp_path)
        assert origin.requests == [f"/here?{SECRET}", "/there"]
    is_whole(fetched, FIRST, changed=True)


@pytest.mark.parametrize(
    "target",
    ["http://localhost:{port}/x", "//127.0.0.2/x", "http://u@127.0.0.1:{port}/x", "http://127.1/x",
     "http://localhost\\@127.0.0.1:{port}/x"],
)  # fmt: skip
def test_a_redirect_to_another_host_is_not_followed(tmp_path: Path, target: str) -> None:
    with serving() as origin:
        port = origin.address.rpartition(":")[2]
        location = f"{target.format(port=port)}?{SECRET}"
        origin.answers[:] = [answer(status=302, Location=location)]
        for ask in (archive_version, lambda url: fetch_archive(url, tmp_path)):
            with pytest.raises(FetchError, match="which is not followed") as refused:
                ask(f"{origin.address}/here?{SECRET}")
            assert SECRET not in str(refused.value)
        assert origin.requests == [f"/here?{SECRET}"] * 2


ASK: list[Callable[[str, Path], object]] = [
    lambda url, _: archive_version(url),
    fetch_archive,
]


@pytest.mark.parametrize("ask", ASK, ids=["version", "fetch"])
def test_a_redirect_is_not_unfolded(tmp_path: Path, ask: Callable[[str, Path], object]) -> None:
    bomb = gzip.compress(gzip.compress(bytes(10**8)))
    with serving() as origin:
        origin.answers[:] = [
            answer(bomb, status=302, Location="/again", Content_Encoding="gzip, gzip")
        ]
        tracemalloc.start()
        try:
            with pytest.raises(FetchError, match="redirects more than 5 times"):
                ask(f"{origin.address}/here?{SECRET}", tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 20e6
        finally:
            tracemalloc.stop()
        assert len(origin.requests) == 6


def chunked(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + text


def redirected(location: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n\r\n"


@pytest.mark.parametrize("ask", ASK, ids=["version", "fetch"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (redirected(b"http://[::1"), "redirects to an address that cannot be read, which is not"),
        (redirected(b"\xff\xfe"), "redirects to an address that cannot be read, which is not"),
        (redirected(f"http://evil.example/{SECRET}".encode()), "redirects to http://evil.example,"),
        (f"HTTP/1.1 418 {SECRET}\r\n\r\n".encode(), r"HTTP 418$"),
        (b"220 smtp ready\r\n", "ConnectionError"),
        (b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-0/9\r\n\r\nP", "HTTP 206"),
        (chunked(b"-5\r\n"), "broke off after 0 of an unknown number of bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "larger than"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_what_no_server_should_say_has_a_name(
    tmp_path: Path, ask: Callable[[str, Path], object], said: bytes, why: str
) -> None:
    with serving() as origin:
        origin.answers[:] = [sent_raw(said)]
        if ask is ASK[0] and b" 20" in said:
            ask(f"{origin.address}/set.zip?{SECRET}", tmp_path)
            return
        with pytest.raises(FetchError, match=why) as refused:
            ask(f"{origin.address}/set.zip?{SECRET}", tmp_path)
    assert SECRET not in str(refused.value)


def test_a_chunk_of_length_minus_one_is_not_read_to_its_end(tmp_path: Path) -> None:
    with serving() as origin:
        origin.answers[:] = [sent_raw(chunked(b"-1\r\n") + bytes(50_000_000))]
        tracemalloc.start()
        try:
            with pytest.raises(ServerUnavailableError):
                fetch_archive(f"{origin.address}/set.zip", tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 20e6
        finally:
            tracemalloc.stop()


ENDLESS: list[Answer] = [
    sent_raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    sent_raw(b"HTTP/1.1 200 OK\r\nX-A: ", b"x"),
    sent_raw(chunked(b"0\r\n"), b"X-A: 1\r\n"),
]


def dripping(drop: Answer, pause_s: float = 0.01) -> Answer:
    """The same, slowly: a byte at a time never meets the time-out of a socket."""

    def send(request: BaseHTTPRequestHandler) -> None:
        write = request.wfile.write

        def slowly(data: bytes) -> int:
            time.sleep(pause_s)
            return write(data)

        request.wfile.write = slowly  # type: ignore[method-assign]
        drop(request)

    return send


@pytest.mark.parametrize("drop", ENDLESS, ids=["100 Continue", "header", "trailer"])
def test_an_answer_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: Answer
) -> None:
    monkeypatch.setattr(fetch, "_MAX_S", 0.3)
    monkeypatch.setattr(fetch, "_VERSION_MAX_S", 0.3)
    with serving() as origin:
        origin.answers[:] = [dripping(drop)]
        with pytest.raises(ServerUnavailableError, match=r"not complete after 0\.3 s"):
            fetch_archive(f"{origin.address}/set.zip?{SECRET}", tmp_path)
        if drop is not ENDLESS[2]:  # whose body is not asked for
            with pytest.raises(FetchError, match=r"not complete after 0\.3 s"):
                archive_version(f"{origin.address}/set.zip?{SECRET}")


def test_redirects_have_no_more_time_than_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_VERSION_MAX_S", 0.3)
    with serving() as origin:
        drop = answer(status=302, Location="/again")
        origin.answers[:] = [lambda request: (time.sleep(0.2), drop(request))[1]]
        with pytest.raises(ServerUnavailableError, match=r"not complete after 0\.3 s"):
            archive_version(f"{origin.address}/set.zip?{SECRET}")
        assert len(origin.requests) <= 2


def test_no_signature_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = f"a='&{SECRET}"
    with serving() as origin, caplog.at_level(logging.DEBUG):
        # Headers that cannot be read urllib3 puts into a warning, and its traceback.
        raw = f"HTTP/1.1 200 OK\r\nETag: 1\r\nGET /?{secret}\r\nX: {SECRET}\r\n\r\n"
        origin.answers[:] = [sent_raw(raw.encode()), answer(FIRST)]
        archive_version(f"{origin.address}/set.zip?{secret}")
        fetch_archive(f"{origin.address}/set.zip?{secret}", tmp_path)
    assert "/set.zip?…" in caplog.text
    assert "Failed to parse headers" in caplog.text
    assert SECRET not in caplog.text


def test_a_header_that_cannot_be_sent_back_bars_nothing(tmp_path: Path) -> None:
    with serving() as origin:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: %s\r\n\r\n"
        for etag in (b"a\r b", b"\x0cb", b"\r\n b"):
            origin.answers[:] = [sent_raw(head % (len(FIRST), etag) + FIRST)]
            for _ in range(2):
                fetch_archive(f"{origin.address}/set.zip", tmp_path)


lines = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 206 x", b"HTTP/1.1 302 x", b"HTTP/1.1 304 x", b"HTTP/1.1 416",
     b"HTTP/1.0 100", b"HTTP/9 -1", b"Location: /x", b"Location: //[", b"Location: \xff",
     b"Location: http://127.0.0.1:99999/", b"Transfer-Encoding: chunked", b"Content-Length: 5",
     b"Content-Length: -5", b"Content-Length: 1, 2", b"Content-Encoding: gzip", b"ETag: \"1\"",
     b"ETag: \x00", b"Last-Modified: \xe9", b"Content-Range: bytes 5-/9", b"Set-Cookie: a=b; Path",
     b"", b"-1", b"5;x=y", b"0", b" folded"]
) | st.binary(max_size=20)  # fmt: skip
answers = st.builds(
    lambda first, rest: b"\r\n".join([first, *rest, b""]),
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 206 x", b"HTTP/1.1 302 x", b""]),
    st.lists(lines, max_size=8),
)


@pytest.fixture(scope="module")
def saying() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


@settings(deadline=None, max_examples=150)
@given(st.lists(answers, min_size=1, max_size=3))
def test_whatever_a_server_says_it_is_a_named_error(
    saying: Origin, tmp_path_factory: pytest.TempPathFactory, said: list[bytes]
) -> None:
    url = f"{saying.address}/set.zip?{SECRET}"
    for ask in ASK:
        saying.requests.clear()
        saying.answers[:] = [sent_raw(text) for text in said]
        with contextlib.suppress(FetchError, ArchiveError):
            ask(url, tmp_path_factory.mktemp("fetched"))


def test_what_does_not_pass_is_said_at_once(shelf: Shelf, tmp_path: Path) -> None:
    shelf.statuses = [404]
    with pytest.raises(FetchError, match=r"/dl/training_set\.zip: HTTP 404") as refused:
        fetch_archive(shelf.url, tmp_path)
    assert SECRET not in str(refused.value)
    assert len(shelf.asked) == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>login</html>", "not a zip"),
        (FIRST[:-1000], "truncated"),
        (FIRST.replace(REAL_IMAGES[1].read_bytes()[5000:5100], bytes(100)), "damaged"),
    ],
    ids=["html", "truncated", "damaged"],
)
def test_what_is_no_archive_is_never_half_used(
    shelf: Shelf, tmp_path: Path, content: bytes, why: str
) -> None:
    before = fetch_archive(shelf.url, tmp_path)
    shelf.content = content
    with pytest.raises(ArchiveError, match=why):
        fetch_archive(shelf.url, tmp_path)
    assert before.path.read_bytes() == FIRST
    shelf.content = SECOND
    is_whole(fetch_archive(shelf.url, tmp_path), SECOND, changed=True)


def test_two_at_once_do_not_disturb_each_other(shelf: Shelf, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        fetched = list(threads.map(lambda _: fetch_archive(shelf.url, tmp_path), range(4)))
    assert [one.changed for one in fetched].count(True) == 1
    assert {one.path for one in fetched} == {fetched[0].path}
    assert fetched[0].path.read_bytes() == FIRST
    assert shelf.sent == len(FIRST)


def test_what_is_not_accepted_is_not_used(shelf: Shelf, tmp_path: Path) -> None:
    before = fetch_archive(shelf.url, tmp_path)
    shelf.content = SECOND

    def refuse(archive: Archive) -> None:
        raise ArchiveError(f"{len(archive.members)} are too few")

    for _ in range(2):
        with pytest.raises(ArchiveError, match="1 are too few"):
            fetch_archive(shelf.url, tmp_path, accept=refuse)
    assert [path.name for path in tmp_path.glob("*.zip")] == [before.path.name]
    assert before.path.read_bytes() == FIRST


def test_the_one_before_can_still_be_read(shelf: Shelf, tmp_path: Path) -> None:
    first = fetch_archive(shelf.url, tmp_path)
    shelf.content = SECOND
    second = fetch_archive(shelf.url, tmp_path)
    assert first.path.read_bytes() == FIRST
    shelf.content = zipped(REAL_IMAGES[2].read_bytes())
    third = fetch_archive(shelf.url, tmp_path)
    assert set(tmp_path.glob("*.zip")) == {second.path, third.path}


def test_size_and_digest_are_kept(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="larger than 1000 bytes"):
        fetch_archive(shelf.url, tmp_path, max_bytes=1000)
    with pytest.raises(ArchiveError, match=f"sha256 is {digest(FIRST)}, not {digest(SECOND)}"):
        fetch_archive(shelf.url, tmp_path, sha256=digest(SECOND))
    assert fetch_archive(shelf.url, tmp_path, sha256=digest(FIRST).upper()).changed


def test_a_local_archive_is_used_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "my set.zip"
    path.write_bytes(FIRST)
    for source in (str(path), path.as_uri()):
        fetched = fetch_archive(source, tmp_path / "unused")
        assert (fetched.path, fetched.sha256) == (path, digest(FIRST))
    assert not (tmp_path / "unused").exists()
    with pytest.raises(FileNotFoundError):
        fetch_archive(str(tmp_path / "missing.zip"), tmp_path)


def test_from_a_real_s3_server_by_presigned_url(daq_bucket: BucketSettings, tmp_path: Path) -> None:
    bucket = Bucket(daq_bucket)
    bucket.put("training_set.zip", FIRST)
    for changed in (True, False):
        url = bucket.presigned_url("training_set.zip", timedelta(hours=1))
        fetched = fetch_archive(url, tmp_path, ca_file=daq_bucket.ca_file)
        is_whole(fetched, FIRST, changed=changed)
    with pytest.raises(FetchError, match="certificate is not trusted"):
        fetch_archive(url, tmp_path)


def test_another_version_is_told_without_fetching_it(shelf: Shelf) -> None:
    before = archive_version(shelf.url)
    assert archive_version(shelf.url) == before
    assert before.startswith(f"{shelf.url.partition('?')[0]} ")
    assert shelf.etag.strip('"') not in before
    shelf.content = SECOND
    assert archive_version(shelf.url) != before
    assert {headers["Range"] for headers in shelf.asked} == {"bytes=0-0"}


def test_without_an_etag_time_and_size_tell(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "etag", "")
    before = archive_version(shelf.url)
    shelf.content = SECOND
    assert archive_version(shelf.url) != before


def test_a_version_that_cannot_be_told_is_said_without_the_signature(shelf: Shelf) -> None:
    shelf.statuses = [404]
    with pytest.raises(FetchError, match="HTTP 404") as refused:
        archive_version(shelf.url)
    with pytest.raises(FetchError, match="ConnectionError") as away:
        archive_version(f"http://127.0.0.1:1/set.zip?{SECRET}")
    assert SECRET not in f"{refused.value} {away.value}"


def test_a_local_version_is_its_time_and_size(tmp_path: Path) -> None:
    path = tmp_path / "my set.zip"
    path.write_bytes(FIRST)
    before = archive_version(str(path))
    assert archive_version(path.as_uri()) == before
    path.write_bytes(SECOND)
    assert archive_version(str(path)) != before
    with pytest.raises(FileNotFoundError):
        archive_version(str(tmp_path / "missing.zip"))


def test_a_real_s3_server_tells_versions_apart(daq_bucket: BucketSettings) -> None:
    bucket = Bucket(daq_bucket)
    versions = []
    for content in (FIRST, SECOND, SECOND):
        bucket.put("version.zip", content)
        url = bucket.presigned_url("version.zip", timedelta(hours=1))
        versions.append(archive_version(url, ca_file=daq_bucket.ca_file))
    assert versions[0] != versions[1] == versions[2]
    missing = bucket.presigned_url("missing.zip", timedelta(hours=1))
    with pytest.raises(FetchError, match="HTTP 404"):
        archive_version(missing, ca_file=daq_bucket.ca_file)
