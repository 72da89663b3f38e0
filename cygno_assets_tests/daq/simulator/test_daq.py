import asyncio
import itertools
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import nats
import pytest
import requests
from nats.aio.client import Client
from nats.aio.msg import Msg

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.daq.simulator.camera import file_name
from cygno_assets.daq.simulator.daq import DaqConfig, SimulatedDaq
from cygno_assets.daq.simulator.events import ParametricImages, Season, SimulatedEvent, event_stream
from cygno_assets.daq.simulator.truth import TruthTable

SEED = 11
TIMEOUT_S = 30
ZONE = ZoneInfo("Asia/Kathmandu")  # +05:45: no machine's clock is there by chance


@pytest.fixture
def config(daq_nats_url: str, daq_bucket: BucketSettings, tmp_path: Path) -> DaqConfig:
    return DaqConfig(
        nats_url=daq_nats_url,
        bucket=daq_bucket,
        source=ParametricImages(SEED),
        truth_path=tmp_path / "truth.db",
        timezone=ZONE,
        rate_hz=100,
        limit=5,
        seed=SEED,
    )


def expected(config: DaqConfig, number: int) -> list[tuple[float, str]]:
    """The gaps and file names of the stream that `config` describes."""
    stream = event_stream(ParametricImages(SEED), config.season, config.rate_hz, config.seed)
    return [(gap_s, event.filename) for gap_s, event in itertools.islice(stream, number)]


def heard(
    config: DaqConfig, run: Callable[[], Awaitable[int]], info: bool = False
) -> tuple[int, list[bytes]]:
    """What `run` returns, and all that was published on the subject until then."""

    async def listen() -> tuple[int, list[bytes]]:
        payloads: list[bytes] = []

        async def keep(message: Msg) -> None:
            payloads.append(message.data)

        async with await nats.connect(config.nats_url) as client:
            await client.subscribe(config.info_subject if info else config.subject, cb=keep)
            await client.flush()
            announced = await asyncio.wait_for(run(), TIMEOUT_S)
            await client.drain()
        return announced, payloads

    return asyncio.run(listen())


def announcements(config: DaqConfig) -> list[dict[str, str]]:
    announced, payloads = heard(config, SimulatedDaq(config).run)
    assert announced == len(payloads)
    return [json.loads(payload) for payload in payloads]


@pytest.fixture
def on_put(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Has a function called with each file's name after it was put."""

    def install(after: Callable[[str], None]) -> None:
        put = Bucket.put

        def put_then(self: Bucket, name: str, content: bytes) -> None:
            put(self, name, content)
            after(name)

        monkeypatch.setattr(Bucket, "put", put_then)

    return install


def test_the_wire_is_the_schools(config: DaqConfig) -> None:
    before = datetime.now(ZONE).replace(tzinfo=None)
    announced, payloads = heard(config, SimulatedDaq(config).run)
    after = datetime.now(ZONE).replace(tzinfo=None)

    assert announced == len(payloads) == 5
    for payload in payloads:
        message = json.loads(payload.decode("utf-8"))
        assert list(message) == ["url", "time", "filename"]
        assert all(isinstance(value, str) for value in message.values())

        told = datetime.fromisoformat(message["time"])
        assert str(told) == message["time"]
        assert told.tzinfo is None
        assert before <= told <= after

        assert re.fullmatch(r"cygno-[0-9a-f]{32}\.jpg", message["filename"])
        response = requests.get(message["url"], verify=str(config.bucket.ca_file), timeout=10)
        assert response.status_code == 200
        assert file_name(response.content) == message["filename"]

        url = urlsplit(message["url"])
        assert url.scheme == "https"
        assert url.path == f"/cygno-daq/{message['filename']}"
        assert parse_qs(url.query)["X-Amz-Expires"] == ["3600"]


def test_a_tampered_signature_is_refused(config: DaqConfig) -> None:
    url = announcements(replace(config, limit=1))[0]["url"]
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    wrong = url.replace(signature, signature[::-1])

    assert requests.get(wrong, verify=str(config.bucket.ca_file), timeout=10).status_code == 403


def test_the_truth_table_tells_what_was_announced(config: DaqConfig) -> None:
    config = replace(config, limit=20, season=Season(period_s=480, peak=1))
    messages = announcements(config)
    truth = TruthTable(config.truth_path).rows()

    assert [(row.time, row.filename) for row in truth] == [
        (message["time"], message["filename"]) for message in messages
    ]
    stream = event_stream(ParametricImages(SEED), config.season, config.rate_hz, config.seed)
    for row, (_, event) in zip(truth, stream, strict=False):
        assert (row.is_signal, row.recoil_type, row.energy_kev, row.original) == (
            event.is_signal,
            event.recoil_type,
            event.energy_kev,
            event.original,
        )
    assert {row.is_signal for row in truth} == {True, False}


def test_nothing_of_the_truth_is_sent(config: DaqConfig) -> None:
    _, payloads = heard(config, SimulatedDaq(config).run)
    config = replace(config, source=ParametricImages(SEED))
    _, lines = heard(config, SimulatedDaq(config).run, info=True)

    for sent in payloads + lines:
        # the signature is hexadecimal and the secret's: only words can betray something
        for word in (b"nuclear", b"electronic", b"signal", b"NR", b"ER/", b"keV", b"parametric"):
            assert word not in sent


def test_truth_is_on_disk_before_the_announcement(
    config: DaqConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Client.publish
    known = []

    async def look_then_publish(self: Client, subject: str, payload: bytes) -> None:
        if subject == config.subject:
            names = [row.filename for row in TruthTable(config.truth_path).rows()]
            known.append(json.loads(payload)["filename"] in names)
        await publish(self, subject, payload)

    monkeypatch.setattr(Client, "publish", look_then_publish)
    announcements(config)

    assert known == [True] * 5


def test_progress_is_told_in_plain_text(config: DaqConfig) -> None:
    announced, lines = heard(config, SimulatedDaq(config).run, info=True)

    assert announced == len(lines)
    for line, (_, filename) in zip(lines, expected(config, 5), strict=True):
        assert filename in line.decode()
        assert b"X-Amz" not in line


def test_order_is_kept_when_a_later_upload_is_sooner(
    config: DaqConfig, on_put: Callable[[Callable[[str], None]], None]
) -> None:
    names = [name for _, name in expected(config, 5)]
    second_is_there = threading.Event()
    finished = []

    def after(name: str) -> None:
        if name == names[1]:
            second_is_there.set()
        if name == names[0]:
            assert second_is_there.wait(TIMEOUT_S)
        finished.append(name)

    on_put(after)

    assert [message["filename"] for message in announcements(config)] == names
    assert finished.index(names[1]) < finished.index(names[0])


def test_arrivals_keep_their_times_when_images_and_uploads_are_slow(
    config: DaqConfig, on_put: Callable[[Callable[[str], None]], None]
) -> None:
    image_s, upload_s, number = 0.1, 0.2, 16

    class Slow(ParametricImages):
        def next_event(self, signal_probability: float) -> SimulatedEvent:
            time.sleep(image_s)
            return super().next_event(signal_probability)

    on_put(lambda _: time.sleep(upload_s))
    config = replace(config, source=Slow(SEED), rate_hz=4, limit=number)

    start = datetime.now(ZONE).replace(tzinfo=None)
    messages = announcements(config)

    told = [(datetime.fromisoformat(m["time"]) - start).total_seconds() for m in messages]
    arrivals = list(itertools.accumulate(gap_s for gap_s, _ in expected(config, number)))
    assert all(t >= arrival + upload_s for t, arrival in zip(told, arrivals, strict=True))
    # gaps that only began when the image before was made would add this for each
    assert told[-1] - arrivals[-1] < number * image_s * 0.8


def test_a_burst_is_announced_only_when_all_is_uploaded(
    config: DaqConfig, on_put: Callable[[Callable[[str], None]], None]
) -> None:
    # at this rate the stream itself would take an hour
    config = replace(config, burst=True, limit=30, rate_hz=30 / 3600)
    put_at: list[datetime] = []
    on_put(lambda _: put_at.append(datetime.now(ZONE).replace(tzinfo=None)))

    messages = announcements(config)

    assert [m["filename"] for m in messages] == [name for _, name in expected(config, 30)]
    assert len(put_at) == 30
    assert max(put_at) < min(datetime.fromisoformat(m["time"]) for m in messages)
    assert TruthTable(config.truth_path).count() == 30


def test_what_cannot_be_stored_is_not_announced(
    config: DaqConfig, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = replace(config.bucket, secret_access_key="wrong-secret")

    assert announcements(replace(config, bucket=bucket, limit=2)) == []
    assert TruthTable(config.truth_path).count() == 0
    lost = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [line.split()[0] for line in lost] == [name for _, name in expected(config, 2)]


def test_no_secret_is_logged_or_shown(config: DaqConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    messages = announcements(config)

    assert "announced 5 events" in caplog.text
    assert "X-Amz" not in caplog.text
    for message in messages:
        assert parse_qs(urlsplit(message["url"]).query)["X-Amz-Signature"][0] not in caplog.text
    assert config.bucket.secret_access_key not in caplog.text + repr(config)
    assert "p4ss" not in repr(replace(config, nats_url="nats://user:p4ss@127.0.0.1:4222"))


def test_an_unusable_source_ends_the_run_with_its_own_error(config: DaqConfig) -> None:
    class Broken:
        def next_event(self, signal_probability: float) -> SimulatedEvent:
            assert signal_probability <= config.season.peak
            raise ValueError("source = 'broken'")

    with pytest.raises(ValueError, match="source = 'broken'"):
        asyncio.run(SimulatedDaq(replace(config, source=Broken())).run())


@contextmanager
def nats_server(port: int) -> Iterator[None]:
    program = Path(sys.executable).with_name("nats-server")
    server = subprocess.Popen([program, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.PIPE)
    try:
        assert server.stderr is not None
        assert any(b"Server is ready" in line for line in server.stderr)
        yield
    finally:
        server.kill()
        server.communicate()


def test_the_daq_outlives_its_nats_server(config: DaqConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = replace(config, nats_url=f"nats://127.0.0.1:{port}", limit=None)

    async def next_announcement() -> dict[str, str]:
        async with await nats.connect(config.nats_url) as client:
            subscription = await client.subscribe(config.subject)
            message: dict[str, str] = json.loads((await subscription.next_msg(TIMEOUT_S)).data)
            return message

    async def run() -> None:
        daq = asyncio.create_task(SimulatedDaq(config).run())  # before there is a server
        with nats_server(port):
            first = await next_announcement()
        with nats_server(port):
            second = await next_announcement()
        assert first["filename"] != second["filename"]
        assert not daq.done()
        daq.cancel()  # while there is no server again
        with pytest.raises(asyncio.CancelledError):
            await daq

    asyncio.run(run())


def test_the_last_announcements_wait_for_a_server_that_is_away(
    config: DaqConfig, on_put: Callable[[Callable[[str], None]], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = replace(config, nats_url=f"nats://127.0.0.1:{port}", burst=True)
    stored, server_is_gone = threading.Event(), threading.Event()

    def after(_: str) -> None:
        stored.set()
        assert server_is_gone.wait(TIMEOUT_S)

    on_put(after)

    async def run() -> int:
        with nats_server(port):
            daq = asyncio.create_task(SimulatedDaq(config).run())
            assert await asyncio.to_thread(stored.wait, TIMEOUT_S)
        server_is_gone.set()
        truth = TruthTable(config.truth_path)
        while truth.count() < 5:  # all are announced to nobody
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait([daq], timeout=1)
        assert not done
        with nats_server(port):
            return await asyncio.wait_for(daq, TIMEOUT_S)

    assert asyncio.run(run()) == 5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate_hz", 0, "rate_hz = 0"),
        ("limit", -1, "limit = -1"),
        ("limit", None, "burst = True: needs a limit"),
        ("stop_after", 3, "limit and stop_after exclude each other"),
        ("stop_after", -1, "stop_after = -1"),
        ("url_lifetime", timedelta(days=8), "lifetime = 8 days"),
    ],
)
def test_a_field_out_of_range_is_named(
    config: DaqConfig, field: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, burst=True, **{field: value})  # type: ignore[arg-type]


def test_a_daq_that_falls_silent_keeps_running(config: DaqConfig) -> None:
    async def run() -> int:
        daq = asyncio.create_task(SimulatedDaq(replace(config, limit=None, stop_after=3)).run())
        truth = TruthTable(config.truth_path)
        while not config.truth_path.exists() or truth.count() < 3:
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait([daq], timeout=0.5)  # 50 events' time
        assert not done
        daq.cancel()
        with suppress(asyncio.CancelledError):
            await daq
        return truth.count()

    announced, payloads = heard(config, run)
    assert announced == len(payloads) == 3


def test_no_events_are_no_announcements(config: DaqConfig) -> None:
    assert announcements(replace(config, limit=0)) == []
