"""Recorders side by side, as processes: killed, stopped, and beside a DAQ that keeps a stream."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from nats.js.api import ConsumerConfig

from cygno_assets.daq import inbox
from cygno_assets.daq import recorder as recorder_module
from cygno_assets.daq.recorder import RecorderCounts, received_together, recorder_status
from cygno_assets.daq.source import DURABLE, DurableConsumer
from cygno_assets.services.nats_server import NatsServer
from cygno_assets_tests.daq.recording import (
    SUBJECT,
    Host,
    announce,
    daq,
    event,
    other_server,
    publish,
    recorders,
    recording,
    stored,
    stored_payloads,
    until,
)
from cygno_assets_tests.wire import fill_inbox, wait_until, with_jetstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nats.js import JetStreamContext

STREAM = "DAQ"


@contextmanager
def announcing(url: str, payloads: list[bytes], rate_hz: float) -> Iterator[threading.Thread]:
    """A DAQ that announces meanwhile; it has ended afterwards."""
    thread = threading.Thread(target=announce, args=(url, payloads, rate_hz))
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def stored_at_least(url: str, number: int) -> None:
    wait_until(f"{number} are stored", lambda: len(stored_payloads(url)) >= number)


# --- two side by side


def test_nothing_is_lost_or_stored_twice_while_each_is_killed_and_started_again(
    tmp_path: Path, daq_nats_url: str, inbox_url: str
) -> None:
    payloads = [event(number) for number in range(10_000)]

    with recorders(tmp_path, daq_nats_url, inbox_url) as both:
        both.start()
        with announcing(daq_nats_url, payloads, 1000) as the_daq:
            for number, name in ((500, "one"), (3000, "two")):
                stored_at_least(inbox_url, number)
                both.kill(name)
                stored_at_least(inbox_url, number + 500)
                both.start(name)
            assert the_daq.is_alive(), "it was over before both had been killed"
        stored_at_least(inbox_url, len(payloads))

    assert sorted(stored_payloads(inbox_url)) == sorted(payloads)


def test_one_that_is_stopped_for_a_while_stores_nothing_twice(
    tmp_path: Path, daq_nats_url: str, inbox_url: str
) -> None:
    payloads = [event(number) for number in range(3000)]

    with recorders(tmp_path, daq_nats_url, inbox_url) as both:
        both.start()
        stopped = both.services["one"]._process
        assert stopped is not None
        with announcing(daq_nats_url, payloads, 1000):
            stored_at_least(inbox_url, 500)
            stopped.send_signal(signal.SIGSTOP)
            stored_at_least(inbox_url, 2000)
            assert list(both.counts()) == ["two"]
            stopped.send_signal(signal.SIGCONT)
        wait_until(
            "the one that was stopped has caught up",
            lambda: (
                len(both.counts()) == 2
                and all(c.stored + c.duplicate == 3000 for c in both.counts().values())
            ),
        )
        each = both.counts().values()

    assert stored_payloads(inbox_url) == payloads
    assert received_together(each) == 3000


def test_one_that_is_started_again_counts_from_nothing_and_by_itself(
    tmp_path: Path, daq_nats_url: str, inbox_url: str
) -> None:
    payloads = [event(number) for number in range(1000)]

    with recorders(tmp_path, daq_nats_url, inbox_url) as both:
        both.start()
        announce(daq_nats_url, payloads[:400])
        stored_at_least(inbox_url, 400)
        both.kill("one")
        both.start("one")
        announce(daq_nats_url, payloads[400:])
        wait_until(
            "both have stored what they heard",
            lambda: [c.stored + c.duplicate for c in both.counts().values()] == [600, 1000],
        )
        one, two = both.counts().values()

    assert (one.received, two.received) == (600, 1000)
    assert one.started > two.started
    assert received_together([one, two]) == 1000
    assert stored_payloads(inbox_url) == payloads


@pytest.mark.parametrize(
    ("counts", "received"),
    [
        ([RecorderCounts("a", received=9), RecorderCounts("b", received=10)], 10),
        (
            [
                RecorderCounts("a", received=5, durable=True),
                RecorderCounts("b", received=6, durable=True),
            ],
            11,
        ),
    ],
    ids=["each hears all", "dealt out"],
)
def test_what_they_have_received_together(counts: list[RecorderCounts], received: int) -> None:
    assert received_together(counts) == received


# --- a DAQ whose server keeps a stream


@pytest.fixture
def streaming_daq(tmp_path: Path) -> Iterator[NatsServer]:
    """A DAQ's server that keeps what is announced."""
    server = NatsServer(tmp_path / "jsdaq", tmp_path / "jsdaq.log", name="DAQ", jetstream=True)
    try:
        server.start()
        with_jetstream(server.url, add_stream)
        yield server
    finally:
        server.stop()


async def add_stream(jetstream: JetStreamContext) -> None:
    await jetstream.add_stream(name=STREAM, subjects=[SUBJECT])


def test_what_is_announced_while_no_recorder_runs_is_stored_afterwards(
    tmp_path: Path, streaming_daq: NatsServer, inbox_url: str
) -> None:
    payloads = [event(number) for number in range(1000)]
    announce(streaming_daq.url, [event(9999)])  # a first start is owed no history

    with recorders(tmp_path, streaming_daq.url, inbox_url) as both:
        both.start()
        wait_until("both read it", lambda: all(c.durable for c in both.counts().values()))
        announce(streaming_daq.url, payloads[:300])
        stored_at_least(inbox_url, 300)
        both.kill()
        announce(streaming_daq.url, payloads[300:])
        both.start()
        stored_at_least(inbox_url, 1000)
        wait_until("both read it", lambda: all(c.durable for c in both.counts().values()))
        announce(streaming_daq.url, [b"no event"])
        stored_at_least(inbox_url, 1001)

    assert sorted(stored_payloads(inbox_url)) == sorted([*payloads, b"no event"])

    async def unchanged(jetstream: JetStreamContext) -> None:
        assert [stream.config.name for stream in await jetstream.streams_info()] == [STREAM]
        consumers = await jetstream.consumers_info(STREAM)
        assert [consumer.name for consumer in consumers] == [DURABLE]
        assert consumers[0].num_ack_pending == 0

    with_jetstream(streaming_daq.url, unchanged)


def test_what_a_killed_recorder_was_given_is_stored_by_the_other(
    tmp_path: Path, streaming_daq: NatsServer, inbox_url: str
) -> None:
    payloads = [event(number) for number in range(3000)]

    with recorders(tmp_path, streaming_daq.url, inbox_url) as both:
        both.start()
        wait_until("both read it", lambda: all(c.durable for c in both.counts().values()))
        with announcing(streaming_daq.url, payloads, 1000):
            stored_at_least(inbox_url, 1000)
            both.kill("one")
        stored_at_least(inbox_url, 3000)

    assert sorted(stored_payloads(inbox_url)) == sorted(payloads)


def test_a_restart_of_the_daqs_server_and_of_the_inbox(
    tmp_path: Path, streaming_daq: NatsServer
) -> None:
    inbox = NatsServer(tmp_path / "js", tmp_path / "js.log", name="inbox", jetstream=True)

    async def work() -> None:
        async with recording(streaming_daq.url, inbox.start().url) as recorder:
            counts = recorder.counts
            await until("it reads the stream", lambda: counts.durable)
            streaming_daq.stop()
            await until("the loss is noticed", lambda: not counts.daq_connected)
            streaming_daq.start()
            await until("it is heard again", lambda: counts.daq_connected)
            async with daq(streaming_daq.url) as client:
                await publish(client, event(1))
                await until("it is stored", lambda: counts.stored == 1)
                inbox.stop()
                await publish(client, *(event(number) for number in range(2, 600)))
                await until("it meets the outage", lambda: counts.received > 1)
                inbox.start()
                await until("all is stored", lambda: counts.stored + counts.duplicate >= 599)
            assert (counts.daq_reconnects, counts.durable) == (1, True)
            assert counts.inbox_reconnects == 1

    try:
        asyncio.run(work())
        assert sorted(stored_payloads(inbox.url)) == sorted(event(n) for n in range(1, 600))
    finally:
        inbox.stop()


def test_a_host_with_a_stream_that_died_without_a_word_is_heard_beside(
    streaming_daq: NatsServer, inbox_url: str
) -> None:
    """The stream is asked by the first connection alone, which the kernel may bring back late."""

    async def work() -> None:
        host = Host(streaming_daq.url, resets=False)
        async with (
            host.running() as url,
            recording(url, inbox_url) as recorder,
            daq(streaming_daq.url) as client,
        ):
            counts = recorder.counts
            await until("it reads the stream", lambda: counts.durable)
            host.power_fails()
            await until("it connects once more", lambda: host.connections == 2)
            await until("it listens again", lambda: counts.daq_connected)
            await publish(client, event(1))
            await until("it is stored", lambda: counts.stored == 1)
            await until("the stream does not answer", lambda: not counts.durable)
            assert counts.daq_connected

    asyncio.run(work())


def test_a_stream_that_is_deleted_and_made_anew(
    tmp_path: Path, streaming_daq: NatsServer, inbox_url: str
) -> None:
    async def work() -> None:
        async with (
            recording(streaming_daq.url, inbox_url) as recorder,
            daq(streaming_daq.url) as client,
        ):
            counts, jetstream = recorder.counts, client.jetstream()
            await until("it reads the stream", lambda: counts.durable)
            await jetstream.delete_stream(STREAM)
            await until("it is a plain subscriber", lambda: not counts.durable)
            await until("it has subscribed", lambda: recorder._plain is not None)
            await client.flush()
            await publish(client, event(1))
            await until("it is stored", lambda: counts.stored == 1)
            await add_stream(jetstream)
            recorder._look_again.set()  # it would look within the minute
            await until("it reads the stream", lambda: counts.durable)
            await publish(client, event(2))
            await until("it is stored", lambda: counts.stored == 2)

    asyncio.run(work())

    assert stored_payloads(inbox_url) == [event(1), event(2)]


@pytest.mark.parametrize(
    "denied",
    [
        "$JS.>",
        "$JS.API.STREAM.NAMES",
        "$JS.API.CONSUMER.INFO.>",
        "$JS.API.CONSUMER.CREATE.>",
        "$JS.API.CONSUMER.MSG.NEXT.>",
        "$JS.ACK.>",
    ],
)
def test_without_permission_it_is_a_plain_subscriber_and_says_so(
    tmp_path: Path, inbox_url: str, denied: str, caplog: pytest.LogCaptureFixture
) -> None:
    with other_server(
        tmp_path / "daq",
        f"jetstream {{ store_dir: {json.dumps(str(tmp_path / 'store'))} }}",
        "authorization { users: [",
        '{ user: "admin", password: "admin" }',
        '{ user: "anna", password: "hunter2",',
        f'permissions: {{ publish: {{ deny: ["{denied}"] }} }} }}',
        "] }",
    ) as url:
        as_admin = url.replace("nats://", "nats://admin:admin@")
        with_jetstream(as_admin, add_stream)

        async def work() -> None:
            async with (
                recording(
                    url, inbox_url, daq_nats_user="anna", daq_nats_password="hunter2"
                ) as recorder,
                daq(as_admin) as client,
            ):
                counts = recorder.counts
                await until("it says so", lambda: "a plain subscription then" in caplog.text)
                await publish(client, event(1))
                await until("it is stored", lambda: counts.stored == 1)
                assert not counts.durable
                assert recorder._plain is not None

        asyncio.run(work())

    assert stored_payloads(inbox_url) == [event(1)]
    assert caplog.text.count("a plain subscription then") == 1
    assert f'permissions violation for publish to "{denied.lower().rstrip(">")}' in caplog.text


class Permitting:
    """A server whose permissions for us change while it runs.

    Args:
        folder: of its files.
        config: lines of its configuration, beside users.
    """

    def __init__(self, folder: Path, *config: str) -> None:
        self._folder = folder
        self._pid_file = folder / "nats.pid"
        self._config = [f"pid_file: {json.dumps(str(self._pid_file))}", *config]

    @contextmanager
    def running(self, permissions: str) -> Iterator[str]:
        """Its address, with these for our login, such as `publish: { deny: ["x"] }`."""
        with other_server(self._folder, *self._config, *self._users(permissions)) as url:
            yield url

    def let(self, permissions: str) -> None:
        """Changes them and has the configuration read again."""
        config = self._folder / "nats.conf"
        listen = config.read_text().splitlines()[0]
        config.write_text("\n".join([listen, *self._config, *self._users(permissions)]) + "\n")
        os.kill(int(self._pid_file.read_text()), signal.SIGHUP)

    @staticmethod
    def _users(permissions: str) -> list[str]:
        return [
            "authorization { users: [",
            '{ user: "admin", password: "admin" }',
            f'{{ user: "anna", password: "hunter2", permissions: {{ {permissions} }} }}',
            "] }",
        ]


LOGINS = ("anna:hunter2", "admin:admin")
DENIED = f'subscribe: {{ deny: ["{SUBJECT}"] }}'
PERMITTED = f'subscribe: {{ allow: ["{SUBJECT}", "_INBOX.>"] }}'


def test_a_refused_subscription_is_said_and_tried_again_until_it_is_permitted(
    tmp_path: Path,
    inbox_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder_module, "_SUBSCRIBE_AGAIN_S", 0.1)
    server = Permitting(tmp_path / "daq")
    caplog.set_level("INFO")

    async def work(url: str) -> None:
        async with (
            recording(
                url, inbox_url, daq_nats_user="anna", daq_nats_password="hunter2"
            ) as recorder,
            daq(url.replace("nats://", "nats://admin:admin@")) as client,
        ):
            counts, refused = recorder.counts, "permissions violation for subscription"
            for number in (1, 2):
                await until("it says so", lambda n=number: caplog.text.count(refused) == n)
                assert not counts.daq_connected
                assert caplog.text.count(f"recording {SUBJECT}") == number - 1
                server.let(PERMITTED)
                await until("it is heard", lambda: counts.daq_connected)
                await publish(client, event(number))
                await until("it is stored", lambda n=number: counts.stored == n)
                server.let(DENIED)
                await until("it is not heard any more", lambda: not counts.daq_connected)

    with server.running(DENIED) as url:
        asyncio.run(work(url))


def test_a_consumer_of_that_name_that_is_not_ours_is_left_alone(
    streaming_daq: NatsServer, inbox_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def of_others(jetstream: JetStreamContext) -> None:
        await jetstream.add_consumer(STREAM, ConsumerConfig(durable_name=DURABLE, name=DURABLE))

    with_jetstream(streaming_daq.url, of_others)

    async def work() -> None:
        async with (
            recording(streaming_daq.url, inbox_url) as recorder,
            daq(streaming_daq.url) as client,
        ):
            await until("it says so", lambda: "is none of ours" in caplog.text)
            await publish(client, event(1))
            await until("it is stored", lambda: recorder.counts.stored == 1)

    asyncio.run(work())

    assert stored_payloads(inbox_url) == [event(1)]


@pytest.mark.parametrize("premade", [False, True], ids=["creates it", "made by the DAQ's people"])
def test_the_documented_permissions_are_enough(
    tmp_path: Path, inbox_url: str, premade: bool
) -> None:
    consumer = f"{STREAM}.{DURABLE}"
    allowed = [
        "$JS.API.STREAM.NAMES",
        f"$JS.API.CONSUMER.INFO.{consumer}",
        f"$JS.API.CONSUMER.MSG.NEXT.{consumer}",
        f"$JS.ACK.{consumer}.>",
        *([] if premade else [f"$JS.API.CONSUMER.CREATE.{consumer}.>"]),
    ]
    with other_server(
        tmp_path / "daq",
        f"jetstream {{ store_dir: {json.dumps(str(tmp_path / 'store'))} }}",
        "authorization { users: [",
        '{ user: "admin", password: "admin" }',
        '{ user: "anna", password: "hunter2",',
        f"permissions: {{ publish: {{ allow: {json.dumps(allowed)} }}, ",
        f'subscribe: {{ allow: ["_INBOX.>", "{SUBJECT}"] }} }} }}',
        "] }",
    ) as url:
        as_admin = url.replace("nats://", "nats://admin:admin@")
        with_jetstream(as_admin, add_stream)

        async def work() -> None:
            async with daq(as_admin) as client:
                if premade:
                    assert await DurableConsumer.find(client, SUBJECT)
                async with recording(
                    url, inbox_url, daq_nats_user="anna", daq_nats_password="hunter2"
                ) as recorder:
                    await until("it reads the stream", lambda: recorder.counts.durable)
                    await publish(client, event(1))
                    await until("it is stored", lambda: recorder.counts.stored == 1)
                    info = client.jetstream().consumer_info
                    async with asyncio.timeout(10):
                        while (await info(STREAM, DURABLE)).num_ack_pending:
                            await asyncio.sleep(0.01)

        asyncio.run(work())

    assert stored_payloads(inbox_url) == [event(1)]


async def forgotten(inbox_url: str, **changes: object) -> None:
    """Waits until the inbox has forgotten all message ids of before."""
    client = await inbox.connect(inbox_url)
    jetstream = client.jetstream()
    if changes:
        config = (await jetstream.stream_info(inbox.STREAM)).config
        await jetstream.update_stream(config.evolve(**changes))
    probe = {"Nats-Msg-Id": "probe"}
    async with asyncio.timeout(20):
        for _ in range(2):  # the second time, all ids from before the first are forgotten
            while (
                await jetstream.publish(inbox.REJECTED_SUBJECT, b"probe", headers=probe)
            ).duplicate:
                await asyncio.sleep(0.05)
    await client.close()


def test_what_comes_again_long_after_it_was_stored_is_not_stored_twice(
    streaming_daq: NatsServer, inbox_url: str
) -> None:
    """As if the acknowledgement had been lost in a long outage of the DAQ's server.

    The event has been announced anew meanwhile, and that remains its newest announcement.
    """
    anew = event(1, time="2024-11-27 15:00:00")

    async def given_and_taken_back() -> None:
        async with daq(streaming_daq.url) as client:
            jetstream = client.jetstream()
            await publish(client, event(1))
            mine = await jetstream.pull_subscribe_bind(DURABLE, STREAM)
            [given] = await mine.fetch(1)
            await given.nak()
            await client.flush()

    async def work() -> None:
        async with recording(streaming_daq.url, inbox_url) as recorder:
            await until("it reads the stream", lambda: recorder.counts.durable)
            async with daq(streaming_daq.url) as client:
                await publish(client, event(1), anew)
                await until("both are stored", lambda: recorder.counts.stored == 2)

        await given_and_taken_back()
        await forgotten(inbox_url, duplicate_window=0.1)

        async with recording(streaming_daq.url, inbox_url) as recorder:
            await until("it comes again", lambda: recorder.counts.duplicate == 1)
            assert (recorder.counts.stored, recorder.counts.received) == (0, 0)

    asyncio.run(work())

    assert [kept.payload for kept in stored(inbox_url) if kept.event_id] == [event(1), anew]


def test_what_one_could_not_store_for_long_and_another_has_is_not_stored_twice(
    tmp_path: Path, daq_nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recorder may not publish into the inbox for longer than that remembers ids."""
    monkeypatch.setattr(inbox, "DUPLICATE_WINDOW_S", 0.5)
    monkeypatch.setattr(recorder_module, "_STORE_TIMEOUT_S", 1.0)
    store = json.dumps(str(tmp_path / "store"))
    server = Permitting(tmp_path / "inbox", f"jetstream {{ store_dir: {store} }}")
    old = [event(number) for number in (1, 2)]
    anew = [event(number, time="2024-11-27 15:00:00") for number in (1, 2)]

    async def work(url: str) -> None:
        mine, others = (url.replace("nats://", f"nats://{who}@") for who in LOGINS)
        async with (
            recording(daq_nats_url, others) as other,
            recording(daq_nats_url, mine) as recorder,
            daq(daq_nats_url) as client,
        ):
            for each in (other, recorder):
                await until("it listens", lambda each=each: each.counts.daq_connected)
            await publish(client, old[0])
            await until("it is under way", lambda: recorder.counts.received == 1)
            await publish(client, old[1])  # this one waits in memory
            await until("both are stored", lambda: other.counts.stored == 2)
            await publish(client, *anew)
            await until("these are stored, too", lambda: other.counts.stored == 4)
            await forgotten(others)
            assert recorder.counts.duplicate == 0
            server.let("")
            await until("it has caught up", lambda: recorder.counts.received == 4)
            await until(
                "all is settled", lambda: recorder.counts.stored + recorder.counts.duplicate == 4
            )
            assert recorder.counts.stored == 0

    with server.running('publish: { deny: ["cygno.daq.event.>"] }') as url:
        asyncio.run(work(url))
        kept = stored(url.replace("nats://", f"nats://{LOGINS[1]}@"))
    assert [message.payload for message in kept if message.event_id] == [*old, *anew]


def test_a_later_announcement_of_an_event_does_not_keep_another_out(
    tmp_path: Path,
    daq_nats_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has sent it may be anybody; the other, one recorder alone has heard."""
    monkeypatch.setattr(recorder_module, "_STORE_TIMEOUT_S", 1.0)
    store = json.dumps(str(tmp_path / "store"))
    server = Permitting(tmp_path / "inbox", f"jetstream {{ store_dir: {store} }}")
    later = event(1, time="2024-11-27 23:00:00")

    async def work(url: str) -> None:
        async with (
            recording(daq_nats_url, url.replace("nats://", f"nats://{LOGINS[0]}@")) as recorder,
            daq(daq_nats_url) as client,
        ):
            await until("it listens", lambda: recorder.counts.daq_connected)
            await publish(client, event(1))
            await until("it was tried", lambda: "does not store" in caplog.text)
            await asyncio.to_thread(fill_inbox, others, [later])
            server.let("")
            await until("it is stored", lambda: recorder.counts.stored == 1)

    with server.running('publish: { deny: ["cygno.daq.event.>"] }') as url:
        others = url.replace("nats://", f"nats://{LOGINS[1]}@")
        asyncio.run(work(url))
        kept = stored(others)
    assert [message.payload for message in kept if message.event_id] == [later, event(1)]


def test_what_overflows_the_memory_is_counted_as_dropped(
    tmp_path: Path, daq_nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_WAITING_MESSAGES", 5)
    store = json.dumps(str(tmp_path / "store"))
    server = Permitting(tmp_path / "inbox", f"jetstream {{ store_dir: {store} }}")

    async def work(url: str) -> None:
        async with (
            recording(daq_nats_url, url.replace("nats://", f"nats://{LOGINS[0]}@")) as recorder,
            daq(daq_nats_url) as client,
        ):
            await until("it listens", lambda: recorder.counts.daq_connected)
            await publish(client, event(0))
            await until("it is under way", lambda: recorder.counts.received == 1)
            await publish(client, *(event(number) for number in range(1, 16)))
            await until("ten are dropped", lambda: recorder.counts.dropped == 10)
            server.let("")
            await until("the others are stored", lambda: recorder.counts.stored == 6)
            [told] = await recorder_status(url.replace("nats://", f"nats://{LOGINS[1]}@"))
            assert told.dropped == 10

    with server.running('publish: { deny: ["cygno.daq.event.>"] }') as url:
        asyncio.run(work(url))
