"""The inbox's reading side, on a real nats-server."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from cygno_assets.daq import inbox
from cygno_assets.daq.inbox import Inbox, InboxUnavailableError, without_credentials
from cygno_assets.services.nats_server import program
from cygno_assets.services.process import Service, accepts_connections, free_port
from cygno_assets_tests.wire import fill_inbox, message, with_jetstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nats.js import JetStreamContext
    from nats.js.api import StreamInfo

NAMES = ["run-1", "run-2", "run-3"]
PAYLOADS = [message(f"{name}.jpg", f"https://minio/{name}.jpg") for name in NAMES]


def inbox_at(url: str) -> Inbox:
    return Inbox(lambda: url)


def stream_info(url: str) -> StreamInfo:
    found = []

    async def ask(jetstream: JetStreamContext) -> None:
        found.append(await jetstream.stream_info(inbox.STREAM))

    with_jetstream(url, ask)
    return found[0]


def purge(url: str, *, below: int) -> None:
    """Takes away the oldest messages, as age does."""

    async def work(jetstream: JetStreamContext) -> None:
        await jetstream.purge_stream(inbox.STREAM, seq=below)

    with_jetstream(url, work)


def reject(url: str, payload: bytes, reason: str) -> None:
    async def work(jetstream: JetStreamContext) -> None:
        await jetstream.publish(
            inbox.REJECTED_SUBJECT, payload, headers={inbox.REASON_HEADER: reason}
        )

    with_jetstream(url, work)


# --- the stream


def test_the_stream_has_the_limits_asked_for_and_then_the_new_ones(inbox_url: str) -> None:
    for max_age_days, max_bytes in ((7.0, 2**30), (0.5, 2**20)):

        async def ensure(
            jetstream: JetStreamContext, days: float = max_age_days, bytes_: int = max_bytes
        ) -> None:
            await inbox.ensure_stream(jetstream, max_age_days=days, max_bytes=bytes_)

        with_jetstream(inbox_url, ensure)

        config = stream_info(inbox_url).config
        assert config.subjects == ["cygno.daq.event.*", "cygno.daq.rejected"]
        assert (config.max_age, config.max_bytes) == (max_age_days * 86_400, max_bytes)
        assert (config.storage, config.discard) == ("file", "old")


def test_new_limits_keep_what_is_there(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS[:1])
    created = inbox_at(inbox_url).state().created
    fill_inbox(inbox_url, PAYLOADS[1:], max_age_days=1.0)

    state, messages = inbox_at(inbox_url).read_after(0, limit=10)

    assert [stored.payload for stored in messages] == PAYLOADS
    assert state.created == created


# --- reading


def test_what_was_taken_out_in_between_is_not_waited_for(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS)

    async def delete(jetstream: JetStreamContext) -> None:
        await jetstream.delete_msg(inbox.STREAM, 2)

    with_jetstream(inbox_url, delete)
    began = time.monotonic()
    _, messages = inbox_at(inbox_url).read_after(0, limit=10)

    assert [stored.sequence for stored in messages] == [1, 3]
    assert time.monotonic() - began < inbox._REPLY_TIMEOUT_S


def test_messages_are_read_as_they_were_stored(inbox_url: str) -> None:
    before = datetime.now(UTC)
    fill_inbox(inbox_url, PAYLOADS)
    reject(inbox_url, b"\xffnonsense\n", "message is not UTF-8")

    state, messages = inbox_at(inbox_url).read_after(0, limit=10)

    assert [stored.sequence for stored in messages] == [1, 2, 3, 4]
    assert [stored.event_id for stored in messages] == [*NAMES, None]
    assert [stored.payload for stored in messages] == [*PAYLOADS, b"\xffnonsense\n"]
    assert [stored.reason for stored in messages] == [None, None, None, "message is not UTF-8"]
    assert messages[0].received is not None
    assert before <= messages[0].received <= datetime.now(UTC)
    assert messages[3].received is None
    assert state == inbox_at(inbox_url).state()
    assert (state.events, state.rejected, state.first_sequence, state.last_sequence) == (3, 1, 1, 4)


@pytest.mark.parametrize(
    ("after", "limit", "sequences"),
    [
        pytest.param(0, 2, [1, 2], id="limited"),
        pytest.param(1, 10, [2, 3], id="from the middle"),
        pytest.param(1, 1, [2], id="one from the middle"),
        pytest.param(0, 0, [], id="none wanted"),
        pytest.param(3, 10, [], id="at the end"),
        pytest.param(7, 10, [], id="beyond the end"),
    ],
)
def test_reading_on(inbox_url: str, after: int, limit: int, sequences: list[int]) -> None:
    fill_inbox(inbox_url, PAYLOADS)

    _, messages = inbox_at(inbox_url).read_after(after, limit=limit)

    assert [stored.sequence for stored in messages] == sequences
    assert stream_info(inbox_url).state.consumer_count == 0


def test_two_thousand_messages_are_read_at_once(inbox_url: str) -> None:
    async def fill(jetstream: JetStreamContext) -> None:
        await inbox.ensure_stream(jetstream, max_age_days=1, max_bytes=2**30)
        publish = jetstream.publish
        await asyncio.gather(*(publish("cygno.daq.event.e", b"%d" % n) for n in range(2000)))

    with_jetstream(inbox_url, fill)

    _, messages = inbox_at(inbox_url).read_after(0, limit=5000)

    assert [stored.sequence for stored in messages] == list(range(1, 2001))


def test_what_aged_out_is_skipped_and_can_be_noticed(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS)
    purge(inbox_url, below=3)

    state, messages = inbox_at(inbox_url).read_after(0, limit=10)

    assert [stored.sequence for stored in messages] == [3]
    assert (state.first_sequence, state.last_sequence, state.events) == (3, 3, 1)
    assert stream_info(inbox_url).state.consumer_count == 0


def test_when_all_aged_out_nothing_is_read(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS)
    purge(inbox_url, below=4)

    state, messages = inbox_at(inbox_url).read_after(0, limit=10)

    assert messages == []
    assert (state.first_sequence, state.last_sequence, state.events) == (4, 3, 0)


def test_what_was_announced_up_to_a_place_in_the_stream(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS)
    reject(inbox_url, b"{", "no JSON")
    fill_inbox(inbox_url, [message("run-1.jpg", "https://minio/again.jpg"), PAYLOADS[0]])
    asked = inbox_at(inbox_url)
    assert asked.announced_until(0) == ([], 0)
    assert asked.announced_until(1) == (NAMES[:1], 0)  # though it was announced again later
    assert sorted(asked.announced_until(2)[0]) == NAMES[:2]
    assert asked.announced_until(4)[1] == 1
    purge(inbox_url, below=3)
    events, rejected = asked.announced_until(1000)
    assert (sorted(events), rejected) == (["run-1", "run-3"], 1)


def test_more_events_than_the_server_tells_of_in_one_answer(inbox_url: str) -> None:
    announced = 100_001

    async def fill(jetstream: JetStreamContext) -> None:
        await inbox.ensure_stream(jetstream, max_age_days=1, max_bytes=2**30)
        for number in range(announced):
            await jetstream.publish_async(f"{inbox.EVENT_SUBJECT}.run-{number}", b"{}")
        await jetstream.publish_async_completed()

    with_jetstream(inbox_url, fill)
    events, rejected = inbox_at(inbox_url).announced_until(announced)
    assert (len(set(events)), rejected) == (announced, 0)


def test_an_empty_stream(inbox_url: str) -> None:
    fill_inbox(inbox_url, [])

    state, messages = inbox_at(inbox_url).read_after(0, limit=10)

    assert messages == []
    assert (state.last_sequence, state.events, state.rejected) == (0, 0, 0)


def test_a_stream_made_anew_is_told_from_the_old_one(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS)
    old = inbox_at(inbox_url).state()

    async def delete(jetstream: JetStreamContext) -> None:
        await jetstream.delete_stream(inbox.STREAM)

    with_jetstream(inbox_url, delete)
    fill_inbox(inbox_url, PAYLOADS)

    assert inbox_at(inbox_url).state().created != old.created


# --- the newest announcement of an event


def test_the_newest_announcement_of_an_event(inbox_url: str) -> None:
    again = message("run-1.jpg", "https://minio/again.jpg", "2024-11-27 15:00:00")
    fill_inbox(inbox_url, [*PAYLOADS, again])

    newest = inbox_at(inbox_url).newest_announcement("run-1")

    assert newest is not None
    assert (newest.sequence, newest.payload, newest.event_id) == (4, again, "run-1")
    assert newest.received is not None


def test_headers_that_no_recorder_wrote_are_none(inbox_url: str) -> None:
    """Whoever may publish on this machine can write them; the sensor reads on."""
    fill_inbox(inbox_url, [])
    odd = [
        {inbox.RECEIVED_HEADER: "yesterday", inbox.SIZE_HEADER: "many"},
        {inbox.RECEIVED_HEADER: "0001-01-01T00:00:00+14:00", inbox.SIZE_HEADER: ""},
        {},
    ]

    async def store(jetstream: JetStreamContext) -> None:
        for headers in odd:
            await jetstream.publish(f"{inbox.EVENT_SUBJECT}.run-1", b"{}", headers=headers)

    with_jetstream(inbox_url, store)
    _, messages = inbox_at(inbox_url).read_after(0, limit=10)
    assert [(kept.received, kept.size) for kept in messages] == [(None, 2)] * 3


def test_announcements_of_many_events_and_all_of_one(inbox_url: str) -> None:
    again = message("run-1.jpg", "https://minio/again.jpg", "2024-11-27 15:00:00")
    fill_inbox(inbox_url, [*PAYLOADS, again])
    at = inbox_at(inbox_url)

    newest = at.newest_announcements(["run-1", "run-3", "run-9"])

    assert {event: found.sequence for event, found in newest.items()} == {"run-1": 4, "run-3": 3}
    first, second = at.announcements("run-1")
    assert (first.sequence, first.payload) == (1, PAYLOADS[0])
    assert second == newest["run-1"]
    assert at.announcements("run-9") == []
    purge(inbox_url, below=2)
    assert at.announcements("run-1") == [second]


def test_an_event_that_was_never_announced_or_aged_out_has_none(inbox_url: str) -> None:
    fill_inbox(inbox_url, PAYLOADS)
    purge(inbox_url, below=2)

    assert inbox_at(inbox_url).newest_announcement("run-9") is None
    assert inbox_at(inbox_url).newest_announcement("run-1") is None


# --- what can be wrong


CALLS: list[Callable[[Inbox], object]] = [
    lambda at: at.state(),
    lambda at: at.read_after(0, limit=1),
    lambda at: at.newest_announcement("run-1"),
    lambda at: at.announcements("run-1"),
    lambda at: at.announced_until(1),
]
NAMES_OF_CALLS = ["state", "read_after", "newest", "announcements", "announced_until"]
all_calls = pytest.mark.parametrize("call", CALLS, ids=NAMES_OF_CALLS)


@all_calls
def test_nobody_listens(call: Callable[[Inbox], object]) -> None:
    address = f"127.0.0.1:{free_port()}"

    with pytest.raises(InboxUnavailableError, match=f"no inbox answers at nats://{address}") as it:
        call(inbox_at(f"nats://anna:hunter2@{address}"))

    assert "hunter2" not in str(it.value)


@all_calls
def test_there_is_no_stream_yet(call: Callable[[Inbox], object], inbox_url: str) -> None:
    with pytest.raises(InboxUnavailableError, match="has no stream CYGNO_DAQ yet: the recorder"):
        call(inbox_at(inbox_url))


@all_calls
def test_a_server_without_jetstream(call: Callable[[Inbox], object], daq_nats_url: str) -> None:
    with pytest.raises(InboxUnavailableError, match="does not answer as it should"):
        call(inbox_at(daq_nats_url))


@pytest.fixture
def guarded_port(tmp_path: Path) -> Iterator[int]:
    """A nats-server that asks for a password."""
    port = free_port()
    config = tmp_path / "nats.conf"
    users = json.dumps([{"user": "anna", "password": "p@ss:word"}])
    config.write_text(
        f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {json.dumps(str(tmp_path / 'js'))} }}\n"
        f"authorization {{ users: {users} }}\n"
    )
    server = Service("nats", [program("nats-server"), "-c", str(config)], tmp_path / "nats.log")
    try:
        server.start().wait_ready(lambda: accepts_connections(port), 15)
        yield port
    finally:
        server.stop()


def test_a_password_opens_and_is_never_shown(guarded_port: int) -> None:
    address = f"127.0.0.1:{guarded_port}"
    right, wrong = f"nats://anna:p@ss:word@{address}", f"nats://anna:hunter2@{address}"
    fill_inbox(right, PAYLOADS)

    assert inbox_at(right).state().events == 3
    with pytest.raises(InboxUnavailableError, match=f"at nats://{address}") as caught:
        inbox_at(wrong).state()
    assert "hunter2" not in str(caught.value)
    assert "Authorization" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://anna:hunter2@host:1", "nats://host:1"),
        ("nats://token@host", "nats://host"),
        ("tls://anna:p@ss@host:1", "tls://host:1"),
    ],
)
def test_addresses_are_shown_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_announcements_since_a_time_are_counted(inbox_url: str) -> None:
    before = datetime.now(UTC)
    fill_inbox(inbox_url, PAYLOADS)
    reject(inbox_url, b"?", "no JSON")  # which is no announcement
    between = datetime.now(UTC)
    fill_inbox(inbox_url, PAYLOADS[:1])
    after = datetime.now(UTC)
    assert inbox_at(inbox_url).announced_since(before, between, after) == [4, 1, 0]
    assert stream_info(inbox_url).state.consumer_count == 0
