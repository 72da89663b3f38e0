"""The recorder between two real nats-servers, which restart, lose their disk or are late."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from nats.aio.client import Client

from cygno_assets.daq import inbox
from cygno_assets.daq import recorder as recorder_module
from cygno_assets.daq.inbox import MAX_REJECTED_BYTES, Inbox, InboxUnavailableError
from cygno_assets.daq.recorder import (
    RecorderCounts,
    cancellable,
    recorder_status,
)
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import free_port
from cygno_assets_tests.daq.recording import (
    MD5,
    SUBJECT,
    Host,
    daq,
    event,
    other_server,
    publish,
    record,
    recording,
    reset,
    stored,
    until,
)
from cygno_assets_tests.wire import message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def daq_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "daq", tmp_path / "daq.log", name="DAQ")
    yield server
    server.stop()


@pytest.fixture
def inbox_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "js", tmp_path / "js.log", name="inbox", jetstream=True)
    yield server
    server.stop()


def test_work_that_misses_a_cancellation_is_cancelled_again() -> None:
    """As nats-py's may on Python 3.11: a recorder that was told to end went on for ever."""
    missed = 0

    async def hard_of_hearing() -> None:
        nonlocal missed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if missed == 2:
                    raise
                missed += 1

    async def work() -> None:
        task = asyncio.create_task(cancellable(hard_of_hearing()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert missed == 2


# --- what is recorded


def test_announcements_are_stored_verbatim_and_in_order(daq_nats_url: str, inbox_url: str) -> None:
    payloads = [b" " + event(number) + b"\n" for number in range(50)]
    before = datetime.now(UTC)

    messages, counts = record(daq_nats_url, inbox_url, payloads)

    assert [kept.payload for kept in messages] == payloads
    assert [kept.event_id for kept in messages] == [f"run{n}-{MD5}" for n in range(50)]
    assert [kept.sequence for kept in messages] == list(range(1, 51))
    assert all(before <= kept.received <= datetime.now(UTC) for kept in messages if kept.received)
    assert all(kept.received and kept.reason is None for kept in messages)
    assert before.timestamp() <= counts.started <= time.time()
    assert replace(counts, started=0.0) == RecorderCounts(
        received=50, stored=50, daq_connected=True
    )


def test_a_repeat_is_stored_once_and_a_re_announcement_again(
    daq_nats_url: str, inbox_url: str
) -> None:
    first, repeat = event(1), event(1, signature="2")
    again = event(1, time="2024-11-27 15:00:00", signature="3")

    messages, counts = record(daq_nats_url, inbox_url, [first, repeat, again, first])

    assert [kept.payload for kept in messages] == [first, again]
    assert (counts.stored, counts.duplicate) == (2, 2)
    newest = Inbox(lambda: inbox_url).newest_announcement(f"run1-{MD5}")
    assert newest == messages[1]


BAD = {
    "empty": (b"", "message is empty"),
    "text": (b"DAQ started\r\nCygno-Reason: forged\r\n", "message is not JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "message is not UTF-8"),
    "list": (b"[]", "not a JSON object"),
    "deep": (b"[" * 60_000, "message is not JSON"),
    "long": (b"x" * 70_000, "message of 70000 bytes is longer than"),
    "no field": (b"{}", "field 'filename' is missing"),
    "wrong type": (b'{"filename": null}', "field 'filename' is not a string but a null"),
    "newline": (message(f"a\nb-{MD5}.jpg", "https://m/x"), f"'a\\nb-{MD5}.jpg'"),
    "unicode": (message(f"é☃-{MD5}.jpg", "https://m/x"), f"'\\xe9\\u2603-{MD5}.jpg'"),
    "surrogate": (message(f"\ud800-{MD5}.jpg", "https://m/x"), "may hold only letters"),
    "no md5": (message("run.jpg", "https://m/x"), "does not end in the md5"),
    "time": (message(f"{MD5}.jpg", "https://m/x", "now"), "field 'time' is not a time"),
    "URL": (message(f"{MD5}.jpg", "file:///x?X-Amz"), "field 'url' is neither https nor http"),
}


def test_each_bad_message_is_kept_with_its_reason_and_the_next_good_one_goes_through(
    daq_nats_url: str, inbox_url: str
) -> None:
    payloads = [
        payload for number, (bad, _) in enumerate(BAD.values()) for payload in (bad, event(number))
    ]

    messages, counts = record(daq_nats_url, inbox_url, payloads)

    assert [kept.payload for kept in messages] == [sent[:MAX_REJECTED_BYTES] for sent in payloads]
    assert [kept.size for kept in messages] == [len(payload) for payload in payloads]
    for kept, (_, reason) in zip(messages[::2], BAD.values(), strict=True):
        assert (kept.subject, kept.event_id) == ("cygno.daq.rejected", None)
        assert kept.received
        assert kept.reason
        assert reason in kept.reason
        assert "X-Amz" not in kept.reason
    assert [kept.event_id for kept in messages[1::2]] == [f"run{n}-{MD5}" for n in range(len(BAD))]
    assert (counts.rejected, counts.stored) == (len(BAD), len(BAD))


def test_a_time_that_fits_no_header_does_not_end_the_recorder(
    daq_nats_url: str, inbox_url: str
) -> None:
    # Python's ISO parser takes any character between date and time, even half of one.
    odd = [event(number, time=f"2024-11-27{c}14:27:36") for number, c in enumerate("\n\0☃\ud800")]

    messages, _ = record(daq_nats_url, inbox_url, [*odd, event(9)])

    assert [kept.payload for kept in messages] == [*odd, event(9)]


def test_names_without_md5_are_stored_if_the_setting_says_so(
    daq_nats_url: str, inbox_url: str
) -> None:
    payload = message("run-7.png", "https://m/x")

    messages, _ = record(daq_nats_url, inbox_url, [payload], names_without_md5=True)

    assert [kept.event_id for kept in messages] == ["run-7"]


def test_the_stream_has_the_limits_of_the_settings(daq_nats_url: str, inbox_url: str) -> None:
    record(daq_nats_url, inbox_url, [], inbox_max_age_days=0.25, inbox_max_bytes=2**24)

    async def config() -> tuple[float | None, int | None]:
        client = await inbox.connect(inbox_url)
        info = await client.jetstream().stream_info(inbox.STREAM)
        await client.close()
        return info.config.max_age, info.config.max_bytes

    assert asyncio.run(config()) == (0.25 * 86_400, 2**24)


def test_a_huge_message_is_rejected_and_cut(tmp_path: Path, inbox_url: str) -> None:
    huge = bytes(5_000_000)

    with other_server(tmp_path / "daq", "max_payload: 8MB") as daq_url:
        messages, _ = record(daq_url, inbox_url, [huge, event(1)])

    assert [kept.payload for kept in messages] == [huge[:MAX_REJECTED_BYTES], event(1)]
    assert messages[0].reason == "message of 5000000 bytes is longer than 65536 bytes"
    assert [kept.size for kept in messages] == [5_000_000, len(event(1))]


def test_junk_pushes_out_junk_and_no_event(daq_nats_url: str, inbox_url: str) -> None:
    junk = [b"%d" % number + bytes(100_000) for number in range(200)]

    messages, counts = record(
        daq_nats_url, inbox_url, [event(1), *junk, event(2)], inbox_max_bytes=4 * 1024**2
    )

    assert (counts.stored, counts.rejected) == (2, 200)
    kept = [message.payload for message in messages if message.event_id is None]
    assert kept == [payload[:MAX_REJECTED_BYTES] for payload in junk[-len(kept) :]]
    assert 0 < len(kept) * MAX_REJECTED_BYTES <= 4 * 1024**2 / 8
    assert [message.payload for message in messages if message.event_id] == [event(1), event(2)]


def test_of_a_flood_of_rejected_messages_the_first_is_logged_and_then_their_number(
    daq_nats_url: str,
    inbox_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder_module, "_SAY_REJECTED_EVERY_S", 0.5)

    async def work() -> None:
        async with recording(daq_nats_url, inbox_url) as recorder, daq(daq_nats_url) as client:
            await until("it listens", lambda: recorder.counts.daq_connected)
            await publish(client, *(b"junk %d" % number for number in range(500)))
            await until("all is rejected", lambda: recorder.counts.rejected == 500)
            await until("it is summed up", lambda: recorder._rejections._since_said is None)
            await publish(client, b"{}")
            await until("it is said", lambda: "'filename' is missing" in caplog.text)

    asyncio.run(work())

    assert caplog.text.count("rejected a message") == 2
    summed = [int(number) for number in re.findall(r"rejected (\d+) more", caplog.text)]
    assert sum(summed) == 499
    assert len(summed) <= 5


def test_an_inbox_that_takes_less_than_the_daq_sends_does_not_block(
    tmp_path: Path, daq_nats_url: str
) -> None:
    # An inbox of the operator's own, with a nats-server's usual limit of 1 MiB, headers included.
    store = json.dumps(str(tmp_path / "store"))
    with other_server(tmp_path / "inbox", f"jetstream {{ store_dir: {store} }}") as inbox_url:
        messages, counts = record(daq_nats_url, inbox_url, [bytes(2**20), event(1)])

    assert [kept.event_id for kept in messages] == [None, f"run1-{MD5}"]
    assert (counts.rejected, counts.stored) == (1, 1)


# --- servers that are not there


def test_nobody_records() -> None:
    with pytest.raises(InboxUnavailableError):
        asyncio.run(recorder_status(f"nats://127.0.0.1:{free_port()}"))


def test_without_a_recorder_there_is_no_status(inbox_url: str) -> None:
    assert asyncio.run(recorder_status(inbox_url)) == []


def test_it_waits_for_both_servers(daq_server: NatsServer, inbox_server: NatsServer) -> None:
    async def work() -> None:
        async with recording(daq_server.url, inbox_server.url) as recorder:
            inbox_server.start()
            statuses: list[RecorderCounts] = []
            async with asyncio.timeout(30):
                while not statuses:
                    statuses = await recorder_status(inbox_server.url)
            assert not statuses[0].daq_connected
            daq_server.start()
            await until("it listens", lambda: recorder.counts.daq_connected)
            async with daq(daq_server.url) as client:
                await publish(client, event(1))
                await until("it is stored", lambda: recorder.counts.stored == 1)

    asyncio.run(work())

    assert [kept.payload for kept in stored(inbox_server.url)] == [event(1)]


def test_it_survives_a_restart_of_the_daqs_server(daq_server: NatsServer, inbox_url: str) -> None:
    async def work() -> None:
        daq_server.start()
        async with recording(daq_server.url, inbox_url) as recorder:
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            for number in (1, 2):
                daq_server.stop()
                await until("the loss is noticed", lambda: not counts.daq_connected)
                [status] = await recorder_status(inbox_url)
                assert not status.daq_connected
                daq_server.start()
                await until("it listens again", lambda: counts.daq_connected)
                async with daq(daq_server.url) as client:
                    await publish(client, event(number))
                await until("it is stored", lambda n=number: counts.stored == n)
                assert counts.daq_reconnects == number

    asyncio.run(work())

    assert [kept.payload for kept in stored(inbox_url)] == [event(1), event(2)]


def test_where_the_daq_has_several_servers_another_is_heard_when_one_dies(
    tmp_path: Path, inbox_url: str
) -> None:
    ports = [free_port(), free_port()]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    dies, stays = (
        other_server(
            tmp_path / str(port),
            f'cluster {{ name: daq, listen: "127.0.0.1:{port}", routes: [{routes}] }}',
        )
        for port in ports
    )

    async def work(dying: ExitStack, first: str, second: str) -> None:
        async with daq(first) as client:
            await until("they know one another", lambda: len(client.servers) == 2)
        async with recording(first, inbox_url) as recorder, daq(second) as client:
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            await asyncio.to_thread(dying.close)
            await until("it listens again", lambda: counts.daq_reconnects == 1)
            await publish(client, event(1))
            await until("it is stored", lambda: counts.stored == 1)

    with stays as second, ExitStack() as dying:
        asyncio.run(work(dying, dying.enter_context(dies), second))


def test_a_host_that_died_without_a_word_is_met_again_before_anything_is_announced(
    daq_nats_url: str, inbox_url: str
) -> None:
    """Who only listens would learn of it with nats-py's next ping: after up to two minutes."""

    async def work() -> None:
        host = Host(daq_nats_url, resets=True)
        async with (
            host.running() as url,
            recording(url, inbox_url) as recorder,
            daq(daq_nats_url) as client,
        ):
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            await publish(client, event(1))
            await until("it is stored", lambda: counts.stored == 1)  # and the recorder only listens
            host.power_fails()
            await until("it listens again", lambda: counts.daq_reconnects == 1)
            await publish(client, event(2))
            await until("the next is stored", lambda: counts.stored == 2)

    asyncio.run(work())


def test_a_host_that_died_and_whose_return_the_kernel_does_not_see_is_heard_beside(
    daq_nats_url: str, inbox_url: str
) -> None:
    async def work() -> None:
        host = Host(daq_nats_url, resets=False)
        async with (
            host.running() as url,
            recording(url, inbox_url) as recorder,
            daq(daq_nats_url) as client,
        ):
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            for number in (1, 2):  # what fails then is the second connection
                host.power_fails()
                await until("it connects", lambda: host.connections > number)  # noqa: B023  # now
                await until("it listens again", lambda: counts.daq_connected)
                await publish(client, event(number))
                await until("it is stored", lambda: counts.stored == number)  # noqa: B023  # now
            assert counts.daq_reconnects == 0

    asyncio.run(work())


def test_what_a_server_held_that_stood_still_is_stored(
    daq_server: NatsServer, inbox_url: str
) -> None:
    daq_server.start()

    async def work() -> None:
        async with (
            recording(daq_server.url, inbox_url) as recorder,
            daq(daq_server.url) as client,
        ):
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            os.kill(daq_server.service.pid, signal.SIGSTOP)
            for number in (1, 2, 3):
                await client.publish(SUBJECT, event(number))
            await until("it is silent", lambda: not counts.daq_connected)
            os.kill(daq_server.service.pid, signal.SIGCONT)
            await until("what it held is stored", lambda: counts.stored == 3)
            await publish(client, event(4))
            await until("the next is stored", lambda: counts.stored == 4)
            assert counts.daq_reconnects == 0

    asyncio.run(work())

    assert [kept.payload for kept in stored(inbox_url)] == [event(n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("disk_lost", [False, True], ids=["restarted", "with its disk lost"])
def test_what_is_announced_while_the_inbox_is_away_is_stored_afterwards(
    daq_nats_url: str, inbox_server: NatsServer, tmp_path: Path, disk_lost: bool
) -> None:
    missed = [event(number) for number in range(2, 8)]

    async def work() -> None:
        inbox_server.start()
        async with (
            recording(daq_nats_url, inbox_server.url) as recorder,
            daq(daq_nats_url) as client,
        ):
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            await publish(client, event(1))
            await until("it is stored", lambda: counts.stored == 1)

            inbox_server.stop()
            await publish(client, *missed)
            await until("it meets the outage", lambda: counts.received >= 2)
            if disk_lost:
                shutil.rmtree(tmp_path / "js" / "jetstream")
            inbox_server.start()

            await until("all is stored", lambda: counts.stored + counts.duplicate == 7)
            await publish(client, event(8))
            await until("the next is stored", lambda: counts.stored + counts.duplicate == 8)
            assert counts.dropped == 0
            assert await recorder_status(inbox_server.url) == [counts]

    asyncio.run(work())

    expected = [*missed, event(8)] if disk_lost else [event(1), *missed, event(8)]
    assert [kept.payload for kept in stored(inbox_server.url)] == expected


def test_a_server_that_refuses_us_is_asked_no_more_often_than_half_secondly(
    tmp_path: Path, inbox_url: str
) -> None:
    """It writes each refusal into its log; a client that waits so long is refused beside ours."""
    log = tmp_path / "daq" / "nats.log"

    def refusals(user: str) -> int:
        return log.read_text().count(f'authentication error - User "{user}"')

    with other_server(
        tmp_path / "daq", 'authorization { user: "anna", password: "hunter2" }'
    ) as url:
        ours, other = (url.replace("://", f"://{user}:wrong@") for user in ("anna", "bert"))

        async def work() -> None:
            async with recording(ours, inbox_url):
                half_secondly = Client()
                connecting = asyncio.ensure_future(
                    half_secondly.connect(
                        other,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=0.5,  # type: ignore[arg-type]  # any number will do
                        error_cb=_ignore,
                    )
                )
                await until("the other is refused", lambda: refusals("bert") >= 5)
                connecting.cancel()

        asyncio.run(work())

        assert 0 < refusals("anna") <= refusals("bert") + 2


async def _ignore(_: Exception) -> None:
    """It is meant to fail."""


def test_a_server_without_room_is_asked_no_more_often_than_half_secondly(inbox_url: str) -> None:
    """One at its `max_connections` resets most of those it refuses, but does not count them.

    So this is none, but behaves like one after the first connection.
    """
    tries = {"ours": 0, "half-secondly": 0}

    async def refuse(who: str, writer: asyncio.StreamWriter) -> None:
        tries[who] += 1
        writer.write(b'INFO {"server_id": "full"}\r\n')
        await writer.drain()
        reset(writer)

    async def work() -> None:
        async with AsyncExitStack() as servers:
            urls = {}
            for who in tries:
                server = await asyncio.start_server(
                    lambda _, writer, who=who: refuse(who, writer), "127.0.0.1", 0
                )
                await servers.enter_async_context(server)
                urls[who] = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with recording(urls["ours"], inbox_url):
                half_secondly = Client()
                connecting = asyncio.ensure_future(
                    half_secondly.connect(
                        urls["half-secondly"],
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=0.5,  # type: ignore[arg-type]  # any number will do
                        error_cb=_ignore,
                    )
                )
                await until("the other is refused", lambda: tries["half-secondly"] >= 5)
                connecting.cancel()

    asyncio.run(work())

    assert 2 < tries["ours"] <= tries["half-secondly"] + 2


def test_no_log_line_holds_a_password(
    tmp_path: Path, inbox_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with other_server(
        tmp_path / "daq", 'authorization { user: "anna", password: "hunter2" }'
    ) as url:
        address = url.removeprefix("nats://")

        async def work() -> None:
            async with recording(f"nats://anna:wrong-one@{address}", inbox_url):
                await until("it is refused", lambda: f"DAQ at {url}: " in caplog.text)

        asyncio.run(work())
        record(f"nats://anna:hunter2@{address}", inbox_url, [event(1)])

    assert f"connected to the DAQ at {url}" in caplog.text
    assert "hunter2" not in caplog.text
    assert "wrong-one" not in caplog.text
