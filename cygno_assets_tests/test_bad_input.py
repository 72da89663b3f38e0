"""Bad input from everybody who sends us something: one table, each row by the real road.

A row says what is sent, where it must end and with which reason; and after each row the next good
event (archive, start) goes through.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import nats
import numpy as np
import pytest
from dagster import DagsterInstance
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cygno_assets.daq import download
from cygno_assets.daq.announcement import NotAnEventError, parse_announcement
from cygno_assets.daq.download import DownloadError, DownloadLimits, download_image
from cygno_assets.daq.inbox import MAX_REJECTED_BYTES, Inbox, StoredMessage
from cygno_assets.daq.recorder import Recorder
from cygno_assets.hosts import AllowedHost
from cygno_assets.physics.images import ImageError, decode_image, preprocess
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.services.certificates import make_certificates
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import ServiceError
from cygno_assets.services.run import run_up
from cygno_assets.services.stack import locked_home
from cygno_assets.settings import SettingsError, load_settings
from cygno_assets_tests.assets.detector import Detector, kind, reason
from cygno_assets_tests.assets.training_side import TrainingSide
from cygno_assets_tests.origin import IMAGE, Origin, answer, sent_raw, serving, tls_of
from cygno_assets_tests.training.archives import (
    cell,
    link,
    many_members,
    named,
    overlapping,
    with_directory_field,
    write_archive,
    zipped,
)
from cygno_assets_tests.wire import REAL_IMAGES, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings
    from cygno_assets_tests.origin import Answer

SIGNATURE = "X-Amz-Signature=d1f2c0ffee"
NAME = name_of(IMAGE)
OTHER = REAL_IMAGES[1].read_bytes()
MD5 = NAME.removeprefix("cygno-").removesuffix(".jpg")

REJECTED = "rejected"
REFUSED = "refused at start"
STAYS = "what is stored stays"


def failed(kind: str) -> str:
    return f"failed: {kind}"


_times = itertools.count()


def new_time() -> str:
    """A time that no message had before, or the inbox would take it for a repeat."""
    return str(datetime(2024, 11, 27) + timedelta(seconds=next(_times)))  # noqa: DTZ001 – as sent


@dataclass
class Road:
    """The road of an event in this process: DAQ, recorder, inbox, run, object store.

    Attributes:
        daq_url: the DAQ's NATS server.
        detector: runs events of the inbox.
        origin: the object store, over HTTP.
        tls_origin: another, over HTTPS, whose authority nobody knows.
        environ: of this process.
    """

    daq_url: str
    detector: Detector
    origin: Origin
    tls_origin: Origin
    environ: pytest.MonkeyPatch

    def announcement(self, **changed: object) -> bytes:
        """A good one, but for what is changed."""
        filename = changed.get("filename", NAME)
        url = f"{self.origin.address}/cygno-daq/{filename}?{SIGNATURE}"
        fields = {"url": url, "time": new_time(), "filename": filename}
        return json.dumps(fields | changed).encode()

    def record(self, *payloads: bytes) -> list[StoredMessage]:
        """Publishes messages as the DAQ does; returns what the recorder made of them."""
        inbox = Inbox(lambda: self.detector.inbox_url)

        async def work() -> None:
            chosen = self.detector.settings.model_copy(update={"daq_nats_url": self.daq_url})
            recorder = Recorder(chosen, self.detector.inbox_url)
            counts = recorder.counts
            async with asyncio.timeout(40), asyncio.TaskGroup() as group:
                running = group.create_task(recorder.run())
                while not counts.daq_connected:
                    await asyncio.sleep(0.005)
                daq = await nats.connect(self.daq_url)
                for payload in payloads:
                    await daq.publish("daq/data", payload)
                await daq.close()
                while counts.stored + counts.rejected < len(payloads):
                    await asyncio.sleep(0.005)
                running.cancel()

        asyncio.run(work())
        last = inbox.state().last_sequence
        _, messages = inbox.read_after(last - len(payloads), limit=len(payloads))
        sent = [payload[:MAX_REJECTED_BYTES] for payload in payloads]
        assert [message.payload for message in messages] == sent
        return messages

    def store(self, data: bytes) -> None:
        """Takes a good event to its tensor."""
        self.origin.answers[:] = [answer(data)]
        self.run_good(*self.record(self.announcement(filename=name_of(data))))

    def run_good(self, message: StoredMessage) -> None:
        assert message.event_id is not None, message.reason
        assert self.detector.run(message.event_id).success
        assert self.detector.tensor_file(message.event_id).is_file()


@dataclass
class Live:
    """One message, what the object store answers for it, and what becomes of it.

    Attributes:
        fields: of the message, where they are not a good one's.
        payload: makes of this message what is sent.
        answers: of the object store.
        overrides: settings while the bad event is on its way.
        tls: ask the store whose authority nobody knows.
        stored: an image that is stored before.
        keeps: the bytes are kept, for they are the DAQ's own.
    """

    name: str
    place: str
    reason: str
    fields: dict[str, object] = field(default_factory=dict)
    payload: Callable[[bytes], bytes] = lambda good: good
    answers: tuple[Answer, ...] = ()
    overrides: dict[str, object] = field(default_factory=dict)
    tls: bool = False
    stored: bytes | None = None
    keeps: bool = False

    def holds(self, road: Road) -> None:
        detector = road.detector
        detector.overrides |= {
            "download_hosts": f"{road.origin.address},{road.tls_origin.address}",
            "download_ca_file": None,
        }
        if self.stored is not None:
            road.store(self.stored)
        usual = dict(detector.overrides)
        detector.overrides |= self.overrides
        road.origin.answers[:] = self.answers
        tls = {"url": f"{road.tls_origin.address}/{NAME}?{SIGNATURE}"} if self.tls else {}
        sent = self.payload(road.announcement(**self.fields, **tls))
        bad, good = road.record(sent, road.announcement(filename=name_of(OTHER)))
        check_words(self._becomes(road, bad), self.reason)
        detector.overrides = usual
        road.origin.answers[:] = [answer(OTHER)]
        road.run_good(good)

    def _becomes(self, road: Road, bad: StoredMessage) -> str:
        """Makes sure that it ends where it must; returns what is said of it."""
        if self.place == REJECTED:
            assert bad.event_id is None
            return str(bad.reason)
        assert bad.event_id is not None, bad.reason
        requests = len(road.origin.requests)
        result = road.detector.run(bad.event_id)
        raw = road.detector.raw_file(bad.event_id)
        if self.place == STAYS:
            assert result.success
            assert len(road.origin.requests) == requests
            return f"still the {raw.stat().st_size} bytes"
        assert f"failed: {kind(result)}" == self.place, reason(result)
        assert reason(result).startswith(f"{bad.event_id}: ")
        assert raw.exists() is self.keeps
        assert not road.detector.tensor_file(bad.event_id).exists()
        return reason(result)


@dataclass
class TrainingSet:
    """One archive, at a path or at a URL."""

    name: str
    reason: str
    content: Callable[[], bytes] = bytes
    answers: tuple[Answer, ...] = ()
    place: str = "failed"

    def holds(self, road: Road) -> None:
        archive = road.detector.home / "set.zip"
        archive.parent.mkdir(exist_ok=True)
        archive.write_bytes(self.content())
        side = TrainingSide(archive, road.detector.home, road.detector.instance)
        if self.answers:
            road.origin.answers[:] = self.answers
            side.overrides["training_archive"] = f"{road.origin.address}/set.zip?{SIGNATURE}"
        check_words(reason(side.run("training_archive")), self.reason)
        write_archive(archive, cell("NR/6_keV", 1))
        if self.answers:
            road.origin.answers[:] = [answer(archive.read_bytes())]
        assert side.run("training_archive").success


@dataclass
class Start:
    """Settings with which nothing starts."""

    name: str
    reason: str
    environ: Mapping[str, str]
    place: str = REFUSED

    def holds(self, road: Road) -> None:
        with road.environ.context() as environ, locked_home(load_settings()):
            environ.setenv("CYGNO_DOWNLOAD_HOSTS", "minio.example")
            for name, value in self.environ.items():
                environ.setenv(f"CYGNO_{name}", value)
            with pytest.raises(SettingsError) as refused:
                run_up({})
            check_words(str(refused.value), self.reason)
            for name in self.environ:
                environ.delenv(f"CYGNO_{name}")
            environ.setenv("CYGNO_DOWNLOAD_HOSTS", "minio.example")
            # What keeps it from starting now is the lock above, and no setting.
            with pytest.raises(ServiceError, match="a system runs in"):
                run_up({})


def check_words(said: str, wanted: str) -> None:
    assert wanted in said
    assert len(said) < 1000
    for secret in (SIGNATURE, SIGNATURE.partition("=")[2], "hunter2"):
        assert secret not in said


# --- what is sent


def message(name: str, reason: str, payload: Callable[[bytes], bytes]) -> Live:
    return Live(name, REJECTED, reason, payload=payload)


def url(reason: str, text: str, place: str = REJECTED) -> Live:
    return Live(f"URL {text}", place, reason, {"url": f"{text}?{SIGNATURE}"})


def http_answer(name: str, kind: str, reason: str, *answers: Answer, **overrides: object) -> Live:
    return Live(f"HTTP: {name}", failed(kind), reason, answers=answers, overrides=overrides)


def image(name: str, reason: str, data: bytes, **overrides: object) -> Live:
    """Bytes with the right md5: the DAQ's own, so they are kept, for their URL is dead soon."""
    return Live(
        f"image: {name}",
        *(failed("no_image"), reason, {"filename": name_of(data)}),
        answers=(answer(data),),
        overrides=overrides,
        keeps=True,
    )


def then(*more: bytes) -> Callable[[bytes], bytes]:
    """The good message, with these bytes instead of its last one."""
    return lambda good: good[:-1] + b"".join(more)


def stall(request: BaseHTTPRequestHandler) -> None:
    request.connection.settimeout(5)
    answer(IMAGE[:1000], Content_Length=len(IMAGE))(request)
    request.rfile.read()  # until the client has gone


def png(pixels: Image.Image) -> bytes:
    file = io.BytesIO()
    pixels.save(file, "PNG")
    return file.getvalue()


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)


def saved(pixels: Image.Image, how: str, **options: object) -> bytes:
    file = io.BytesIO()
    pixels.save(file, how, **options)
    return file.getvalue()


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, is there as often as it takes."""
    data = saved(Image.new("L", (576, 576), 100), "JPEG", progressive=True)
    *_, last = data.removesuffix(b"\xff\xd9").split(b"\xff\xda")
    more = scans - data.count(b"\xff\xda")
    return data[:-2] + more * (b"\xff\xda" + last) + b"\xff\xd9"


FRAMES = {"save_all": True, "append_images": [Image.new("L", (576, 576), 9)] * 2}


def nested_zip() -> bytes:
    return zipped(("NR/6_keV/a.png", bytes(10**8)), compression=zipfile.ZIP_DEFLATED)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = zlib.compress(bytes(10**8), 9)
HTML = b"<html>Sign in</html>"
LETTERS = "field 'filename' may hold only letters, digits, '_' and '-'"
NO_MD5 = "field 'filename' does not end in the md5 of the file (32 lower-case hexadecimal digits)"
NOT_LISTED = "is not in CYGNO_DOWNLOAD_HOSTS"
NOT_ALLOWED = failed("not_allowed")
TOMORROW = str(datetime.now(UTC) + timedelta(hours=25))

ROWS: list[Live | TrainingSet | Start] = [
    # messages
    message("empty", "message is empty", lambda _: b""),
    message("plain text", "message is not JSON", lambda _: b"DAQ started"),
    message("not UTF-8", "message is not UTF-8", lambda good: good.decode().encode("utf-16")),
    message("Latin-1", "message is not UTF-8", then(b', "run": "\xe9"}')),
    message("byte order mark", "byte order mark", lambda good: b"\xef\xbb\xbf" + good),
    message("cut in half", "message is not JSON", lambda good: good[: len(good) // 2]),
    message("two at once", "message is not JSON: Extra data", lambda good: good + good),
    message("a list", "not a JSON object but a array", lambda good: b"[" + good + b"]"),
    message("deep", "message is not JSON", lambda _: b"[" * 60_000),
    message("long", "is longer than 65536 bytes", lambda good: good.ljust(70_000)),
    message("NaN", "message holds NaN, which is not JSON", then(b', "run": NaN}')),
    message("infinity", "message holds Infinity", then(b', "run": [Infinity]}')),
    message("a URL twice", "field 'url' is there twice", then(b', "url": "https://evil/x"}')),
    message("a name twice", "field 'filename' is there twice", then(b', "filename": "x.jpg"}')),
    message("a key that is a URL twice", "field a URL is there twice",
            then(*[b', "https://minio/x?%s": 1' % SIGNATURE.encode()] * 2, b"}")),
    Live("no URL", REJECTED, "field 'url' is not a string but a null", {"url": None}),
    Live("a number for a name", REJECTED, "field 'filename' is not a string", {"filename": 7}),
    message("a field is missing", "field 'time' is missing",
            lambda good: json.dumps({**json.loads(good), "time": 0}).replace(
                '"time": 0', '"when": 0').encode()),
    # names
    Live("upper-case md5", REJECTED, NO_MD5, {"filename": f"cygno-{MD5.upper()}.jpg"}),
    Live("no md5", REJECTED, NO_MD5, {"filename": "cygno-0001.jpg"}),
    Live("a path", REJECTED, LETTERS, {"filename": f"../../etc/{MD5}.jpg"}),
    Live("a NUL", REJECTED, LETTERS, {"filename": f"a\0{MD5}.jpg"}),
    Live("a NATS wildcard", REJECTED, LETTERS, {"filename": f"*-{MD5}.jpg"}),
    Live("a header", REJECTED, LETTERS, {"filename": f"a\r\nNats-Msg-Id: 1-{MD5}.jpg"}),
    Live("a long name", REJECTED, "is longer than 100", {"filename": "x" * 99 + MD5 + ".jpg"}),
    Live("fields mixed up", REJECTED, "field 'filename' may hold only letters, digits, '_' and "
         "'-' before its suffix: a URL",
         {"filename": f"https://anna:hunter2@minio/x?{SIGNATURE}.jpg"}),
    # times
    Live("a signed name", REJECTED, r"has no suffix such as .jpg: 'x.jpg?\u2026'",
         {"filename": f"x.jpg?{SIGNATURE}"}),
    Live("a signed time", REJECTED, r"14:27:36.570564: '2024-11-27?\u2026'",
         {"time": f"2024-11-27?{SIGNATURE}"}),
    Live("a password in a name", REJECTED, r"before its suffix: '\u2026@minio.jpg'",
         {"filename": "anna:hunter2@minio.jpg"}),
    Live("before 1970", REJECTED, "field 'time' is before 1970: '1969-12-31 23:59:59'",
         {"time": "1969-12-31 23:59:59"}),
    Live("in the future", REJECTED, f"field 'time' is more than a day in the future: '{TOMORROW}'",
         {"time": TOMORROW}),
    Live("the end of time", REJECTED, "more than a day in the future",
         {"time": "9999-12-31 00:00:00"}),
    Live("no time", REJECTED, "field 'time' is not a time", {"time": "yesterday"}),
    Live("seconds since 1970", REJECTED, "field 'time' is not a time", {"time": "1732717656"}),
    Live("two lines of time", REJECTED, "field 'time' is not", {"time": "2024-11-27\n14:27:36"}),
    # URLs: how they are written
    url("field 'url' is neither https nor http: 'file'", "file:///etc/passwd"),
    url("field 'url' is neither https nor http: 'gopher'", "gopher://127.0.0.1:6379/_FLUSHALL"),
    url("field 'url' names no host", "https:///x.jpg"),
    url("field 'url' holds a user name or password", "https://anna:hunter2@minio/x.jpg"),
    url("field 'url' holds a user name or password", "https://minio@169.254.169.254/x.jpg"),
    url("field 'url' names no plain host[:port]", "https://minio\\.evil.example/x.jpg"),
    url("field 'url' names no plain host[:port]", "https://%31%32%37.0.0.1/x.jpg"),
    url(r"host[:port]: '\u2026@minio'", "https://anna%3Ahunter2%40minio/x.jpg"),
    url(r"host[:port]: 'minio&?\u2026'", "https://minio&X-Amz-Signature=c0ffee/x.jpg"),
    url("field 'url' names a host in letters beyond ASCII", "https://mini\u00f6.example/x.jpg"),
    url("field 'url' names a host in letters beyond ASCII", "https://\u2460\u2461\u2466.0.0.1/x"),
    url("field 'url' writes an address in an odd form: '127.1'", "https://127.1/x.jpg"),
    url("field 'url' writes an address in an odd form: '0x7f.1'", "https://0x7f.1/x.jpg"),
    url("field 'url' writes an address in an odd form", "https://2130706433/x.jpg"),
    url("field 'url' writes an address in an odd form", "https://0177.0.0.1/x.jpg"),
    url("field 'url' writes an address in an odd form", "https://[::ffff:127.0.0.1]/x.jpg"),
    url("field 'url' names a host that cannot be: '127.0.0.1.'", "https://127.0.0.1./x.jpg"),
    url("field 'url' names port 0", "https://minio:0/x.jpg"),
    url("field 'url' cannot be parsed", "https://minio:99999/x.jpg"),
    url("field 'url' holds spaces or control characters", "https://minio/x\r\nHost: evil/x.jpg"),
    url("field 'url' is longer than 8192", "https://minio/" + "x" * 9_000),
    # URLs: where they lead
    url("field 'url': host evil.example " + NOT_LISTED, "https://evil.example/x.jpg", NOT_ALLOWED),
    url("host 127.0.0.1 " + NOT_LISTED, "https://127.0.0.1/x.jpg", NOT_ALLOWED),
    url("host localhost " + NOT_LISTED, "https://LOCALHOST/x.jpg", NOT_ALLOWED),
    url("host http://127.0.0.1 " + NOT_LISTED, "http://127.0.0.1/x.jpg", NOT_ALLOWED),
    url("host [::1]:22 " + NOT_LISTED, "https://[0:0::1]:22/x.jpg", NOT_ALLOWED),
    url("host http://169.254.169.254 " + NOT_LISTED, "http://169.254.169.254/x", NOT_ALLOWED),
    url("host xn--mini-6qa.example " + NOT_LISTED, "https://xn--mini-6qa.example/x", NOT_ALLOWED),
    Live("a signature of long ago", failed("expired"), "its URL expired at 2024-11-27 14:27:36 UTC",
         payload=lambda good: good.replace(b"?", b"?Expires=1732717656&")),
    # answers
    http_answer("redirect", "bad_answer", "HTTP 302 Found",
                answer(status=302, Location=f"http://127.0.0.1:1/x?{SIGNATURE}")),
    http_answer("redirect to a file", "bad_answer", "HTTP 307 Temporary Redirect",
                answer(status=307, Location="file:///etc/passwd")),
    http_answer("redirect with a bomb", "bad_answer", "HTTP 302 Found",
                answer(gzip.compress(gzip.compress(bytes(10**8))), status=302, Location="/x",
                       Content_Encoding="gzip, gzip")),
    http_answer("HTML with status 200", "wrong_content", "wrong md5", answer(HTML)),
    http_answer("nothing", "wrong_content", "the answer is empty", answer()),
    http_answer("forbidden", "forbidden", "HTTP 403 Forbidden; the URL says no time of expiry",
                answer(status=403)),
    http_answer("gone", "missing", "HTTP 410 Gone", answer(status=410)),
    http_answer("part of it", "bad_answer", "HTTP 206 Partial Content", answer(IMAGE, status=206)),
    http_answer("gzip bomb", "wrong_content", "wrong md5",
                answer(gzip.compress(bytes(10**8)), Content_Encoding="gzip")),
    http_answer("gzip bomb, chunked", "wrong_content", "wrong md5",
                answer(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BOMB), BOMB), Content_Encoding="deflate",
                       Transfer_Encoding="chunked", Content_Length=None)),
    http_answer("says too large", "too_large", "larger than the 100000 bytes allowed",
                answer(Content_Length=10**12), download_max_bytes=100_000),
    http_answer("says an absurd size", "too_large", "larger than",
                answer(Content_Length="9" * 5000)),
    http_answer("never ends", "too_large", "larger than the 100000 bytes allowed",
                sent_raw(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65_536)), download_max_bytes=100_000),
    http_answer("giant header", "too_large", "headers are too large",
                sent_raw(b"HTTP/1.1 200 OK\r\nX-A: ", b"x" * 65_536)),
    http_answer("a header too many", "too_large", "headers are too large",
                sent_raw(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 100)),
    http_answer("endless beginnings", "too_large", "larger than the 100000 bytes allowed",
                sent_raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), download_max_bytes=100_000),
    http_answer("our signature in its own words", "bad_answer", "HTTP 418 I'm a Teapot",
                sent_raw(f"HTTP/1.1 418 {SIGNATURE} hunter2\r\n\r\n".encode())),
    http_answer("stalls in the image", "unavailable", "imeout", stall, download_timeout_s=0.1),
    http_answer("a chunk of less than nothing", "bad_answer", "no HTTP answer (ValueError)",
                sent_raw(CHUNKED + b"-5\r\n")),
    http_answer("redirect to half an address", "bad_answer", "HTTP",
                sent_raw(b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n")),
    http_answer("redirect to no text", "bad_answer", "HTTP",
                sent_raw(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n")),
    http_answer("truncated", "unavailable", "IncompleteRead",
                answer(IMAGE[:-1], Content_Length=len(IMAGE))),
    http_answer("no HTTP", "unavailable", "BadStatusLine", sent_raw(b"220 smtp ready\r\n")),
    Live("HTTPS: unknown authority", failed("untrusted"), "certificate is not trusted", tls=True),
    Live("the same name, other bytes", STAYS, f"still the {len(IMAGE)} bytes",
         answers=(answer(OTHER),), stored=IMAGE),
    Live("the same name, other bytes, nothing stored", failed("wrong_content"), "wrong md5",
         answers=(answer(OTHER),)),
    # images
    image("HTML", "not a JPEG or PNG image: 20 bytes", HTML),
    image("truncated", "image cannot be decoded (20000 bytes)", IMAGE[:20_000]),
    image("claims 60,000 × 60,000", "image too large: ",
          png_of(header(60_000, 60_000), (b"IDAT", zlib.compress(b"")))),
    image("too many pixels", "576 × 576 is 331776 pixels, more than the 300000 allowed",
          IMAGE, image_max_pixels=300_000),
    image("a bomb in a comment", "image header cannot be read", png_of(
        header(576, 576), (b"zTXt", b"c\0\0" + BOMB), (b"IDAT", zlib.compress(bytes(577 * 576))))),
    image("a bomb in a colour profile", "image header cannot be read", png_of(
        header(576, 576), (b"iCCP", b"p\0\0" + BOMB), (b"IDAT", b""))),
    image("colour", "image is mode RGB; the camera's are", png(Image.new("RGB", (576, 576)))),
    image("16 bits", "image is mode I;16", png(Image.new("I;16", (576, 576)))),
    image("small", "image of 127 × 576 pixels is smaller", png(Image.new("L", (127, 576)))),
    image("many scans", "image has 65 scans, more than the 64 allowed", progressive(65)),
    image("four colours", "image is mode CMYK", saved(Image.new("CMYK", (576, 576)), "JPEG")),
    image("GIF", "not a JPEG or PNG image", b"GIF89a" + bytes(100)),
    image("pickle", "not a JPEG or PNG image", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    Live("image: HTML, unvouched", failed("no_image"), "not a JPEG or PNG image",
         {"filename": "run7-0001.jpg"}, answers=(answer(HTML),),
         overrides={"names_without_md5": True}),
    # archives
    TrainingSet("archive: HTML", "not a zip", lambda: HTML),
    TrainingSet("archive: cut", "truncated", lambda: zipped(("NR/6_keV/a.png", IMAGE))[:-30]),
    TrainingSet("archive: absolute path", "has an absolute path", lambda: named("/etc/passwd")),
    TrainingSet("archive: out of it", "has '..' in its path", lambda: named("NR/../../a.png")),
    TrainingSet("archive: link", "is a symbolic link", link),
    TrainingSet("archive: bomb", "claims to unfold", nested_zip),
    TrainingSet("archive: overlapping", "its members overlap", overlapping),
    TrainingSet("archive: more members than it says", "200001 members are more than the 200000",
                lambda: many_members(200_001, claimed=1)),
    TrainingSet("archive: encrypted", "is encrypted", lambda: with_directory_field(8, 1)),
    TrainingSet("archive: by HTTP, HTML", "not a zip", answers=(answer(HTML),)),
    TrainingSet("archive: by HTTP, missing", "HTTP 404", answers=(answer(status=404),)),
    TrainingSet("archive: by HTTP, elsewhere", "redirects to http://169.254.169.254, which is not "
                "followed",
                answers=(answer(status=302, Location="http://169.254.169.254/latest?hunter2"),)),
    TrainingSet("archive: by HTTP, round and round", "redirects more than 5 times",
                answers=(answer(gzip.compress(gzip.compress(bytes(10**8))), status=302,
                                Location="/set.zip", Content_Encoding="gzip, gzip"),)),
    TrainingSet("archive: by HTTP, to nowhere", "redirects to an address that cannot be read",
                answers=(answer(status=302, Location="http://[::1"),)),
    TrainingSet("archive: by HTTP, our signature in its own words", "HTTP 418",
                answers=(sent_raw(f"HTTP/1.1 418 {SIGNATURE} hunter2\r\n\r\n".encode()),)),
    TrainingSet("archive: by HTTP, an absurd size", "larger than",
                answers=(answer(Content_Length="9" * 5000),)),
    # settings
    Start("no host", "CYGNO_DOWNLOAD_HOSTS: no host to fetch", {"DOWNLOAD_HOSTS": ""}),
    Start("every host", "CYGNO_DOWNLOAD_HOSTS: '*' names no plain host", {"DOWNLOAD_HOSTS": "*"}),
    Start("a host in an odd form", "writes an address in an odd form", {"DOWNLOAD_HOSTS": "127.1"}),
    Start("a password in a host", "CYGNO_DOWNLOAD_HOSTS: 'minio' holds a user name or password",
          {"DOWNLOAD_HOSTS": "https://anna:hunter2@minio"}),
    Start("no such setting", "did you mean CYGNO_DOWNLOAD_HOSTS?", {"DOWNLOAD_HOST": "hunter2"}),
    Start("no number", "CYGNO_WINDOW_LOW: ", {"WINDOW_LOW": "nan"}),
    Start("no size", "CYGNO_DOWNLOAD_MAX_BYTES: ", {"DOWNLOAD_MAX_BYTES": "-1"}),
    Start("no certificate", "there is no file", {"DOWNLOAD_CA_FILE": "/no/ca.pem"}),
    Start("no time zone", "no IANA time zone", {"DAQ_TIMEZONE": "../../etc/passwd"}),
    Start("no NATS server", "CYGNO_DAQ_NATS_URL: not of the form nats://host:port",
          {"DAQ_NATS_URL": "http://anna:hunter2@daq"}),
    Start("no storage", "neither file:///absolute/path nor s3://", {"STORAGE_URL": "ftp://x"}),
    Start("a password in the storage", "CYGNO_STORAGE_URL: holds a user name or password",
          {"STORAGE_URL": "s3://anna:hunter2@bucket"}),
    Start("a password in its endpoint", "CYGNO_STORAGE_S3_ENDPOINT: holds a user name or password",
          {"STORAGE_S3_ENDPOINT": "https://anna:hunter2@minio"}),
    Start("a password after its endpoint", "CYGNO_STORAGE_S3_ENDPOINT: 'minio?…' is no http://",
          {"STORAGE_S3_ENDPOINT": "minio?password=hunter2"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """The DAQ's NATS server, the inbox's, and certificates: all rows share them."""
    folder = tmp_path_factory.mktemp("servers")
    make_certificates(folder / "certificates")
    daq = NatsServer(folder / "daq", folder / "daq.log", name="DAQ")
    inbox = NatsServer(folder / "inbox", folder / "inbox.log", name="inbox", jetstream=True)
    try:
        yield daq.start().url, inbox.start().url, folder / "certificates"
    finally:
        daq.stop()
        inbox.stop()


@pytest.fixture
def road(
    servers: tuple[str, str, Path],
    daq_bucket: BucketSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Road]:
    daq_url, inbox_url, certificates = servers
    with (
        DagsterInstance.ephemeral() as instance,
        serving() as origin,
        serving(tls_of(certificates)) as tls_origin,
    ):
        detector = Detector(daq_bucket, inbox_url, tmp_path / "home", instance)
        yield Road(daq_url, detector, origin, tls_origin, monkeypatch)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row.name)[1:50])
def test_bad_input_ends_where_it_must_and_the_next_good_one_goes_through(
    road: Road, row: Live | TrainingSet | Start
) -> None:
    row.holds(road)


# --- whatever else there may be: nothing but the named errors

GOOD = json.dumps(
    {
        "url": f"https://minio:9000/{NAME}?{SIGNATURE}",
        "time": "2024-11-27 14:27:36.570564",
        "filename": NAME,
    }
).encode()


@settings(deadline=None, max_examples=500)
@given(
    at=st.integers(0, len(GOOD)),
    put=st.binary(max_size=8) | st.text(max_size=8).map(lambda text: text.encode(errors="ignore")),
    cut=st.integers(0, 20),
)
def test_a_damaged_message_is_an_event_or_refused(at: int, put: bytes, cut: int) -> None:
    try:
        event = parse_announcement(GOOD[:at] + put + GOOD[at + cut :], timezone=ZoneInfo("UTC"))
    except NotAnEventError as refused:
        check_words(str(refused), "")
    else:
        assert event.acquired >= datetime(1970, 1, 1, tzinfo=UTC)
        assert event.url_expires is None or event.url_expires.tzinfo is UTC
        assert SIGNATURE not in repr(event)


status_lines = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200",
        b"HTTP/1.1 302 Found",
        b"HTTP/1.1 100 Continue",
        b"ICY 200",
    ]
) | st.binary(max_size=20)
headers = st.sampled_from(
    [b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Content-Length: -5",
     b"Content-Length: 9", b"Content-Length: 1, 2", b"Content-Encoding: gzip", b"Connection: close",
     b"Location: http://[::1", b"Location: \xff\xfe", b"Location: //", b"Set-Cookie: \xff"]
) | st.binary(max_size=20)  # fmt: skip
bodies = st.lists(
    st.sampled_from([b"0\r\n\r\n", b"-5\r\n", b"f" * 20 + b"\r\n", b"5;x\r\nabcde\r\n", b"zz\r\n",
                     b"1_0\r\n", b"1" * 70_000])
    | st.binary(max_size=20),
    max_size=4,
)  # fmt: skip
http_answers = st.builds(
    lambda status, headers, body: b"\r\n".join([status, *headers, b"", b"".join(body)]),
    *(status_lines, st.lists(headers, max_size=4), bodies),
) | st.binary(max_size=200)


def test_whatever_a_server_answers_only_the_named_errors_come_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "_PAUSES_S", {})
    with serving() as origin:
        announced = origin.announced()
        limits = DownloadLimits(
            max_bytes=100_000,
            timeout_s=2.0,
            hosts=(AllowedHost.parse(origin.address),),
            max_duration_s=5.0,
        )

        @settings(deadline=None, max_examples=500)
        @given(http_answers)
        def asks(sent: bytes) -> None:
            origin.answers[:] = [sent_raw(sent)]
            with pytest.raises(DownloadError) as caught:
                download_image(announced, limits)
            check_words(str(caught.value), announced.filename)

        asks()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "data",
    [
        progressive(64),
        saved(Image.new("L", (576, 576)), "PNG", **FRAMES),
        saved(Image.new("L", (576, 576)), "MPO", **FRAMES),
        IMAGE[:2]
        + b"\xff\xe1\xea\x6a"
        + b"Exif\0\0II*\0\x08\0\0\0".ljust(60_008, b"\xff")
        + IMAGE[2:],
    ],
    ids=["progressive", "APNG", "MPO", "Exif of nonsense"],
)
def test_what_is_odd_but_an_image_is_taken_by_its_first_frame(data: bytes) -> None:
    decoded = decode_image(data, max_pixels=10**6)
    assert (decoded.size, decoded.mode) == ((576, 576), "L")
    assert preprocess(decoded, PreprocessSpec()).shape == (128, 128)


chunk_names = st.sampled_from(
    [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"acTL",
     b"fcTL", b"fdAT", b"pHYs", b"gAMA", b"sRGB", b"IEND"]
)  # fmt: skip
chunk_contents = st.binary(max_size=40) | st.binary(max_size=200).map(zlib.compress)
png_headers = st.builds(
    lambda *fields: (b"IHDR", struct.pack(">IIBBBBB", *fields)),
    *[st.integers(0, 200) | st.integers(0, 2**32 - 1)] * 2,
    *[st.sampled_from([0, 1, 2, 3, 4, 6, 8, 16]), st.sampled_from([0, 2, 3, 4, 6])],
    *[st.integers(0, 1)] * 3,
)
pngs = st.builds(
    lambda header, chunks: png_of(header, *chunks),
    png_headers,
    st.lists(st.tuples(chunk_names, chunk_contents), max_size=6),
)
damaged = st.builds(
    lambda data, at, put, cut: data[: at % len(data)] + put + data[at % len(data) + cut :],
    st.sampled_from([IMAGE, png(Image.new("L", (130, 130)))]),
    st.integers(0, 700) | st.integers(0, len(IMAGE)),
    st.binary(max_size=8),
    st.integers(0, 30),
)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore:Invalid APNG")
@settings(deadline=None, max_examples=500)
@given(pngs | damaged | st.binary(max_size=100))
def test_whatever_an_image_is_it_becomes_a_tensor_or_is_refused(data: bytes) -> None:
    try:
        tensor = preprocess(decode_image(data, max_pixels=10**6), PreprocessSpec())
    except ImageError:
        return
    assert (tensor.shape, tensor.dtype) == ((128, 128), np.float32)
    assert 0 <= tensor.min() <= tensor.max() <= 1
