"""The inbox: our JetStream stream of announcements, and the calls that read and write it.

Here belong the stream's name, subjects and limits, and how to ask it; not when (the recorder
writes, the sensor and `raw_image` read).

Each synchronous call connects for itself: a client that is used from another event loop than
its own times out for ever after, and connecting costs about two milliseconds.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from cygno_assets.daq.announcement import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from nats.aio.client import Client
    from nats.js import JetStreamContext

    from cygno_assets.daq.announcement import Announcement

T = TypeVar("T")

STREAM = "CYGNO_DAQ"
EVENT_SUBJECT = "cygno.daq.event"
"""Followed by `.<event id>`, so that an event's newest announcement is one look-up."""
REJECTED_SUBJECT = "cygno.daq.rejected"
_ALL_SUBJECTS = "cygno.daq.>"
RECEIVED_HEADER = "Cygno-Received"
REASON_HEADER = "Cygno-Reason"
SIZE_HEADER = "Cygno-Bytes"
"""With a message of which only the beginning is kept: how long it was."""

MAX_REJECTED_BYTES = MAX_MESSAGE_BYTES
"""What is kept of a message that cannot be an event; a longer one never can, whatever is set."""
DUPLICATE_WINDOW_S = 600.0
"""For so long the server remembers message ids, at the most: longer than a recorder is behind the
other. Each costs it some 100 bytes for as long."""
_HEADER_BYTES = 1024
_REJECTED_SHARE = 8

_CONNECT_TIMEOUT_S = 3.0
_REPLY_TIMEOUT_S = 5.0
_READ_AT_ONCE = 1000


class InboxUnavailableError(ConnectionError):
    """Nobody answers at the inbox's address, or it has no stream yet; trying again may help."""


@dataclass(frozen=True)
class StreamState:
    """What the inbox holds.

    Attributes:
        created: tells one stream from another of the same name.
        first_sequence: of the oldest message kept; last_sequence + 1 if none is.
        last_sequence: of the newest message ever stored; 0 if there was none.
        events: announcements kept.
        rejected: messages kept that could not be events.
    """

    created: str
    first_sequence: int
    last_sequence: int
    events: int
    rejected: int


@dataclass(frozen=True)
class StoredMessage:
    """One message of the inbox.

    Attributes:
        sequence: its place in the stream.
        subject: EVENT_SUBJECT.<event id> or REJECTED_SUBJECT.
        payload: as received from the DAQ, byte for byte; of a rejected one the beginning.
        size: of the whole, in bytes.
        received: when the recorder had it from the DAQ: the announced time, as near as it is known.
        reason: why it cannot be an event; None if it is one.
    """

    sequence: int
    subject: str
    payload: bytes
    size: int
    received: datetime | None
    reason: str | None = None

    @property
    def event_id(self) -> str | None:
        """The event announced, None for a rejected message."""
        prefix = EVENT_SUBJECT + "."
        return self.subject.removeprefix(prefix) if self.subject.startswith(prefix) else None


async def connect(url: str) -> Client:
    """Connects once, for one call; the connection is not kept up.

    Args:
        url: of the NATS server; never printed with what it holds before the host.

    Raises:
        InboxUnavailableError: nobody answers there.
    """
    import nats

    errors: list[Exception] = []

    async def remember(error: Exception) -> None:
        errors.append(error)

    try:
        return await nats.connect(
            url,
            error_cb=remember,
            allow_reconnect=False,
            # nats-py tries so often and once more before it gives up; 0 would mean for ever.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_TIMEOUT_S,
        )
    # nats-py raises anything from OSError to its own, and whatever ssl and asyncio add.
    except Exception as error:  # noqa: BLE001
        cause = errors[-1] if errors else error
        raise InboxUnavailableError(
            f"no inbox answers at {without_credentials(url)} ({said_of(cause)}): "
            "is `cygno-assets up`, `demo` or `inbox` running?"
        ) from None


def said_of(error: BaseException) -> str:
    """An error of a NATS connection as it may be printed.

    NATS' own words, such as 'Authorization Violation', name no address and no secret; of any
    other error only the kind is said.
    """
    import nats.errors
    import nats.js.errors

    said = isinstance(error, nats.errors.Error | nats.js.errors.Error)
    return (str(error) if said else "") or type(error).__name__


def without_credentials(url: str) -> str:
    """A NATS URL as it may be printed."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def ensure_stream(
    jetstream: JetStreamContext, *, max_age_days: float, max_bytes: int
) -> None:
    """Creates the stream, or sets the limits of the one that is there.

    Args:
        jetstream: of the inbox's server.
        max_age_days: how long messages are kept.
        max_bytes: how much is kept; the oldest messages go first. Rejected ones take an eighth of
            it at the most, or junk would push out what is not read yet.
    """
    from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
    from nats.js.errors import NotFoundError

    config = StreamConfig(
        name=STREAM,
        subjects=[f"{EVENT_SUBJECT}.*", REJECTED_SUBJECT],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_age=max_age_days * 86_400,
        max_bytes=max_bytes,
        # All that is rejected has one subject; an event's announcements are never so many.
        max_msgs_per_subject=max(
            1, max_bytes // _REJECTED_SHARE // (MAX_REJECTED_BYTES + _HEADER_BYTES)
        ),
        # Two recorders of one announcement, or a client that sends twice: kept once.
        duplicate_window=min(DUPLICATE_WINDOW_S, max_age_days * 86_400),
        allow_direct=True,
    )
    try:
        await jetstream.stream_info(STREAM)
    except NotFoundError:
        await jetstream.add_stream(config)
    else:
        await jetstream.update_stream(config)


async def store_event(
    url: str, event: Announcement, payload: bytes, received: datetime | None
) -> None:
    """Stores one announcement, as the recorder does.

    Args:
        url: of the inbox's server.
        event: that the payload announces.
        payload: as the DAQ sent it.
        received: when it came from the DAQ; None if that is not known.

    Raises:
        InboxUnavailableError: nobody answers, or there is no stream.
    """
    headers = {"Nats-Msg-Id": event.message_id}
    if received is not None:
        headers[RECEIVED_HEADER] = received.isoformat()
    client = await connect(url)
    try:
        await client.jetstream(timeout=_REPLY_TIMEOUT_S).publish(
            f"{EVENT_SUBJECT}.{event.event_id}", payload, stream=STREAM, headers=headers
        )
    except _failures() as error:
        raise InboxUnavailableError(
            f"the inbox does not store: {type(error).__name__}: {error}"
        ) from None
    finally:
        await client.close()


class Inbox:
    """Synchronous access to the inbox.

    Args:
        find_url: tells the address of its NATS server; asked on each call, for an inbox that is
            started anew may listen elsewhere.
    """

    def __init__(self, find_url: Callable[[], str]) -> None:
        self._find_url = find_url

    def state(self) -> StreamState:
        """What the inbox holds now.

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def ask() -> StreamState:
            async with self._jetstream() as jetstream:
                return await _stream_state(jetstream)

        return _run(ask())

    def newest_announcement(self, event_id: str) -> StoredMessage | None:
        """The newest announcement of an event; None if the inbox holds none (any more).

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """
        return self.newest_announcements([event_id]).get(event_id)

    def newest_announcements(self, events: Iterable[str]) -> dict[str, StoredMessage]:
        """The newest announcements of these events, as far as the inbox holds any (any more).

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def ask() -> dict[str, StoredMessage]:
            async with self._jetstream() as jetstream:
                return {
                    event_id: found[-1]
                    for event_id in events
                    if (found := await _of_event(jetstream, event_id, newest=True))
                }

        return _run(ask())

    def announcements(self, event_id: str) -> list[StoredMessage]:
        """All announcements of an event that the inbox holds, the oldest first.

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def ask() -> list[StoredMessage]:
            async with self._jetstream() as jetstream:
                return await _of_event(jetstream, event_id, newest=False)

        return _run(ask())

    def read_after(self, sequence: int, *, limit: int) -> tuple[StreamState, list[StoredMessage]]:
        """Reads on in the stream: events and rejected messages, in order, without gaps.

        Args:
            sequence: the last one already read; 0 for the beginning.
            limit: how many messages at the most.

        Returns:
            The stream's state before reading, and the messages.

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def read() -> tuple[StreamState, list[StoredMessage]]:
            async with self._jetstream() as jetstream:
                state = await _stream_state(jetstream)
                return state, await _read(jetstream, sequence, limit, state)

        return _run(read())

    def read_rejected(self, after: int, *, limit: int) -> list[StoredMessage]:
        """Reads on in the rejected messages alone, in order.

        Args:
            after: sequence of the last one already read; 0 for the beginning.
            limit: how many messages at the most.

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def read() -> list[StoredMessage]:
            async with self._jetstream() as jetstream:
                state = await _stream_state(jetstream)
                return await _read(jetstream, after, limit, state, subject=REJECTED_SUBJECT)

        return _run(read())

    def rejected_message(self, sequence: int) -> StoredMessage | None:
        """The rejected message of this sequence; None if that is no such message (any more).

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """
        found = self.read_rejected(sequence - 1, limit=1)
        return next((message for message in found if message.sequence == sequence), None)

    def delete(self, sequence: int) -> None:
        """Takes the message of this sequence out of the inbox.

        Raises:
            InboxUnavailableError: nobody answers, or there is no such message.
        """

        async def work() -> None:
            async with self._jetstream() as jetstream:
                await jetstream.delete_msg(STREAM, sequence)

        _run(work())

    def announced_until(self, sequence: int) -> tuple[list[str], int]:
        """What the inbox holds up to a place in the stream; without reading messages before it.

        Args:
            sequence: of the last message that counts.

        Returns:
            The events announced, and how many messages could not be events.

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def ask() -> tuple[list[str], int]:
            async with self._jetstream() as jetstream:
                # First all: what arrives meanwhile is then taken off once too often, and is found
                # next time; the other way round it would seem to have been read.
                await _stream_state(jetstream)  # or there is no stream
                held = await _messages_by_subject(jetstream)
                state, read_to = await _stream_state(jetstream), sequence
                while later := await _read(jetstream, read_to, _READ_AT_ONCE, state):
                    held -= Counter(message.subject for message in later)
                    read_to = later[-1].sequence
            rejected = held.pop(REJECTED_SUBJECT, 0)
            return [subject.removeprefix(f"{EVENT_SUBJECT}.") for subject in held], rejected

        return _run(ask())

    def announced_since(self, *times: datetime) -> list[int]:
        """How many announcements were stored since each of these times; none of them is read.

        Raises:
            InboxUnavailableError: nobody answers, or there is no stream yet.
        """

        async def ask() -> list[int]:
            async with self._jetstream() as jetstream:
                await _stream_state(jetstream)  # or there is no stream
                return [await _stored_since(jetstream, time) for time in times]

        return _run(ask())

    @asynccontextmanager
    async def _jetstream(self) -> AsyncIterator[JetStreamContext]:
        client = await connect(self._find_url())
        try:
            yield client.jetstream(timeout=_REPLY_TIMEOUT_S)
        finally:
            await client.close()


def _failures() -> tuple[type[Exception], ...]:
    """What nats-py raises while a server is away or refuses."""
    import nats.errors
    import nats.js.errors

    return nats.errors.Error, nats.js.errors.Error, TimeoutError


def _run(call: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(call)
    except _failures() as error:
        raise InboxUnavailableError(
            f"the inbox does not answer as it should: {type(error).__name__}: {error}"
        ) from error


async def _stream_state(jetstream: JetStreamContext) -> StreamState:
    from nats.js.errors import NotFoundError

    try:
        info = await jetstream.stream_info(STREAM, subjects_filter=REJECTED_SUBJECT)
    except NotFoundError:
        raise InboxUnavailableError(
            f"the inbox has no stream {STREAM} yet: the recorder creates it"
        ) from None
    rejected = (info.state.subjects or {}).get(REJECTED_SUBJECT, 0)
    return StreamState(
        created=str(info.created),
        first_sequence=info.state.first_seq,
        last_sequence=info.state.last_seq,
        events=info.state.messages - rejected,
        rejected=rejected,
    )


async def _of_event(
    jetstream: JetStreamContext, event_id: str, *, newest: bool
) -> list[StoredMessage]:
    """An event's announcements in order, or the newest alone; each a direct look-up."""
    from nats.errors import NoRespondersError
    from nats.js.errors import NotFoundError

    subject = f"{EVENT_SUBJECT}.{event_id}"
    found: list[StoredMessage] = []
    try:
        while not (newest and found):
            if newest:
                message = await jetstream.get_last_msg(STREAM, subject, direct=True)
            else:
                after = found[-1].sequence if found else 0
                message = await jetstream.get_msg(
                    STREAM, seq=after + 1, subject=subject, direct=True, next=True
                )
            headers = getattr(message, "headers", None)
            found.append(_stored(message.seq, message.subject, message.data, headers))
    except (NotFoundError, NoRespondersError):
        if not found:
            await _stream_state(jetstream)  # no such message, or no stream at all?
    return found


async def _messages_by_subject(jetstream: JetStreamContext) -> Counter[str]:
    """How many messages of each subject are kept; nats-py asks for the first 100,000 alone."""
    held: Counter[str] = Counter()
    while True:
        answer = await jetstream._api_request(  # no public call takes an offset
            f"$JS.API.STREAM.INFO.{STREAM}",
            json.dumps({"subjects_filter": _ALL_SUBJECTS, "offset": len(held)}).encode(),
            timeout=_REPLY_TIMEOUT_S,
        )
        subjects = answer["state"].get("subjects") or {}
        held.update(subjects)
        if not subjects or len(held) >= answer.get("total", 0):
            return held


async def _read(
    jetstream: JetStreamContext,
    sequence: int,
    limit: int,
    state: StreamState,
    *,
    subject: str = _ALL_SUBJECTS,
) -> list[StoredMessage]:
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    read_to = max(sequence, state.first_sequence - 1)
    if limit <= 0 or read_to >= state.last_sequence:
        return []
    subscription = await jetstream.pull_subscribe(
        subject,
        stream=STREAM,
        config=ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=read_to + 1,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            inactive_threshold=30.0,
        ),
    )
    messages: list[StoredMessage] = []
    info = await subscription.consumer_info()
    # A fetch waits for as many as it asks for, so it must not ask for more than there are; which
    # sequences do not tell, for rejected messages are taken out between others.
    wanted = min(limit, info.num_pending or 0)
    try:
        while len(messages) < wanted:
            batch = await subscription.fetch(wanted - len(messages), timeout=_REPLY_TIMEOUT_S)
            messages += [_fetched(message) for message in batch]
    except TimeoutError:
        pass  # nats-py's word for an empty fetch: what was there has aged out meanwhile
    finally:
        # Unsubscribing alone would leave the consumer behind until it times out.
        await jetstream.delete_consumer(STREAM, info.name)
    return messages


async def _stored_since(jetstream: JetStreamContext, time: datetime) -> int:
    """What a consumer that begins at that time would be given: the server counts it at once."""
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    info = await jetstream.add_consumer(
        STREAM,
        ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_TIME,
            opt_start_time=time,
            filter_subject=f"{EVENT_SUBJECT}.*",
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            inactive_threshold=30.0,
        ),
    )
    await jetstream.delete_consumer(STREAM, info.name)
    return int(info.num_pending or 0)


def _fetched(message: Any) -> StoredMessage:
    return _stored(message.metadata.sequence.stream, message.subject, message.data, message.headers)


def _stored(
    sequence: int | None, subject: str | None, payload: bytes | None, headers: Any
) -> StoredMessage:
    headers, payload = headers or {}, payload or b""
    size, received = len(payload), None
    with suppress(KeyError, ValueError):  # not there, or not written by us
        size = int(headers[SIZE_HEADER])
    with suppress(KeyError, ValueError, OverflowError):
        received = datetime.fromisoformat(headers[RECEIVED_HEADER]).astimezone(UTC)
    return StoredMessage(
        sequence=sequence or 0,
        subject=subject or "",
        payload=payload,
        size=size,
        received=received,
        reason=headers.get(REASON_HEADER),
    )
