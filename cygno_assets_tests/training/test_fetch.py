"""Fetching an archive from a web server that breaks off, changes its mind and lies."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

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
from cygno_assets_tests.origin import answer, serving
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    assert archive_version(shelf.url) == before == f"{shelf.url.partition('?')[0]} {shelf.etag}"
    shelf.content = SECOND
    assert archive_version(shelf.url) != before
    assert {headers["Range"] for headers in shelf.asked} == {"bytes=0-0"}


def test_without_an_etag_time_and_size_tell(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "etag", "")
    before = archive_version(shelf.url)
    assert before.endswith(f" {len(FIRST)}")
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
