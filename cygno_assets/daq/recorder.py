"""The recorder: hears the DAQ's server and writes all it hears to the inbox.

Here belongs what keeps a live stream from being lost; how the DAQ's server is met is source.py's.
No Dagster, no image is opened here. Recorders run side by side and know nothing of one another: the
inbox keeps what several of them store once, by its message id.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

import nats.errors
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from cygno_assets.daq import inbox
from cygno_assets.daq.announcement import NotAnEventError, parse_announcement
from cygno_assets.daq.reconnecting import AWAY_WAIT_S, REFUSED_WAIT_S, Reconnecting
from cygno_assets.daq.source import (
    BATCH,
    NATS_FAILURES,
    DaqClient,
    DurableConsumer,
    connect_options,
    is_jetstream_refused,
    is_subscription_refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext

    from cygno_assets.daq.announcement import Announcement
    from cygno_assets.settings import Settings

log = logging.getLogger(__name__)
_AnyClient = TypeVar("_AnyClient", bound=Client)

STATUS_SUBJECT = "cygno.status.recorder"
"""On the inbox's server: every recorder answers any request with its counts as JSON."""

_RETRY_S = 0.5
# The second connection makes room if the first has been lost for so long: servers may count them.
_LOST_S = 5.0
_CLOSE_S = 1.0
# The DAQ's server writes each refusal into its own log.
_SUBSCRIBE_AGAIN_S = 5.0
_SAY_REJECTED_EVERY_S = 60.0
_HEADER_BYTES = 65_536
_STORE_TIMEOUT_S = 5.0
_STATUS_TIMEOUT_S = 1.0
_LOOK_FOR_STREAM_EVERY_S = 60.0
_CANCEL_AGAIN_S = 0.5
# What waits here bridges the time in which the inbox cannot be reached: an hour and more at the
# school's highest rate. What overflows it is counted as dropped.
_WAITING_MESSAGES = 1_000_000
_WAITING_BYTES = 1024**3
_BATCH_BYTES = 8 * 1024**2
_REASON_MAX = 500
_ID = "Nats-Msg-Id"
_LOOKED_AT = 20
"""Announcements of an event that are looked through for one: who floods an event with more has it
stored again, which does no harm."""


@dataclass
class RecorderCounts:
    """What happened since the recorder started; messages unless said otherwise.

    Attributes:
        name: of the recorder.
        started: when it was, in s since 1970.
        received: from the DAQ, by either connection.
        stored: as events, for the first time.
        duplicate: that the inbox already had, be it from another recorder, by another connection,
            or from a first try of ours that was not answered in time.
        rejected: that could not be events, for the first time.
        dropped: that overflowed the memory while the inbox was away.
        daq_reconnects: how often the connection to the DAQ's server came back.
        inbox_reconnects: how often that to the inbox did.
        daq_connected: whether the DAQ is heard now.
        durable: whether its server keeps our place in a stream, and deals messages out to recorders
            instead of giving each to all.
        refused_s: for how long the inbox has answered and has not stored; 0 if it stores.
    """

    name: str = "recorder"
    started: float = 0.0
    received: int = 0
    stored: int = 0
    duplicate: int = 0
    rejected: int = 0
    dropped: int = 0
    daq_reconnects: int = 0
    inbox_reconnects: int = 0
    daq_connected: bool = False
    durable: bool = False
    refused_s: float = 0.0


def received_together(counts: Iterable[RecorderCounts]) -> int:
    """How many messages the DAQ has sent, as far as recorders side by side know.

    What each of them heard counts once. A recorder that is started again counts from 0: their other
    counts stand each for themselves, and add up to nothing.
    """
    each = list(counts)
    heard = [c.received for c in each if not c.durable]
    return max([*heard, sum(c.received for c in each if c.durable)])


@dataclass
class _Outgoing:
    """A message on its way into the inbox.

    Attributes:
        message: as it came from the DAQ.
        subject: it is stored by.
        headers: it is stored with.
        heard: when it came from the DAQ.
        event: that it announces; None if it is rejected.
        tried: it may be stored already, longer ago than the inbox remembers ids.
    """

    message: Msg
    subject: str
    headers: dict[str, str]
    heard: datetime
    event: Announcement | None
    tried: bool

    @property
    def may_be_stored(self) -> bool:
        """Whether to look before it is stored: another recorder may have done it long ago."""
        waited = datetime.now(UTC) - self.heard
        return self.tried or waited > timedelta(seconds=inbox.DUPLICATE_WINDOW_S / 2)


class _Rejections:
    """What is logged of rejected messages: the first, then their number, once a minute."""

    def __init__(self) -> None:
        self._since_said: int | None = None

    def say(self, reason: str) -> None:
        self._reason = reason
        if self._since_said is None:
            log.warning("rejected a message: %s", reason)
            self._begin()
        else:
            self._since_said += 1

    def _begin(self) -> None:
        self._since_said = 0
        asyncio.get_running_loop().call_later(_SAY_REJECTED_EVERY_S, self._sum_up)

    def _sum_up(self) -> None:
        if not self._since_said:
            self._since_said = None
            return
        log.warning("rejected %d more messages; the last: %s", self._since_said, self._reason)
        self._begin()


class Recorder:
    """Copies `daq/data` into the inbox, verbatim and in order, for ever.

    Args:
        settings: where the DAQ is and how its messages are read.
        inbox_url: NATS server of the inbox.
        name: tells it from the others beside it.
    """

    def __init__(self, settings: Settings, inbox_url: str, name: str = "recorder") -> None:
        self._settings = settings
        self._inbox_url = inbox_url
        self._timezone = ZoneInfo(settings.daq_timezone)
        self._inbox: Client | None = None
        self._readying_inbox = asyncio.Lock()
        self._waiting: asyncio.Queue[tuple[Msg, datetime]] = asyncio.Queue(_WAITING_MESSAGES)
        self._waiting_bytes = 0
        self._daq: DaqClient | None = None
        self._second_hears = False
        self._plain: Subscription | None = None
        self._subscription_refused = False
        self._durable: DurableConsumer | None = None
        self._jetstream_refused = False
        self._look_again = asyncio.Event()
        self._refused_since: float | None = None
        self._rejections = _Rejections()
        self.counts = RecorderCounts(name, started=time.time())

    async def run(self) -> None:
        """Runs until cancelled; waits for either server as long as it takes."""
        try:
            await cancellable(self._ready_inbox())
            async with asyncio.TaskGroup() as group:
                group.create_task(cancellable(self._record_waiting()))
                group.create_task(cancellable(self._listen_for_ever()))
        finally:
            if self._inbox is not None:
                await self._inbox.close()

    async def _listen_for_ever(self) -> None:
        while True:
            await self._listen()
            # nats-py reconnects by itself, but closes for good when a server says so.
            log.warning("the DAQ's server closed the connection; beginning anew")
            await asyncio.sleep(_RETRY_S)

    async def _listen(self) -> None:
        """Hears the DAQ's server until the connection is closed for good."""
        url = self._settings.daq_nats_url
        daq = await self._connect(url, "DAQ", DaqClient, partial(connect_options, self._settings))
        self._daq = daq
        async with asyncio.TaskGroup() as group:
            standing_in = group.create_task(cancellable(self._stand_in_for(daq)))
            try:
                while not daq.is_closed:
                    self._look_again.clear()
                    await _wait_for(self._look_again, await self._listen_to(daq))
            finally:
                standing_in.cancel()
                self._daq = self._plain = None
                self._note_connected()
                await daq.close()

    async def _listen_to(self, daq: DaqClient) -> float:
        """Subscribes, and reads a stream as long as there is one; returns when to look again."""
        try:
            # In this order, so that nothing is missed while we ask for a stream; what comes both
            # ways is stored once.
            await self._subscribe(daq)
            found = await self._read_stream(daq)
            await self._subscribe(daq)
        except NATS_FAILURES as error:
            log.warning("the DAQ's server: %s; trying on", inbox.said_of(error))
            return _RETRY_S
        if self._plain is None:
            return _SUBSCRIBE_AGAIN_S
        return _RETRY_S if found else _LOOK_FOR_STREAM_EVERY_S

    async def _stand_in_for(self, daq: DaqClient) -> None:
        """Hears the DAQ by a second connection too, whenever the first does not answer.

        After a failure of power or network the kernel may leave the first alone for minutes. It is
        kept all the same: by it comes what a server that only stood still holds for us.
        """
        while True:
            await asyncio.sleep(_RETRY_S)
            self._note_connected()
            if daq.answers or not daq.is_connected:
                continue
            log.warning("the DAQ's server does not answer; connecting once more")
            second = asyncio.ensure_future(cancellable(self._hear_beside(daq)))
            try:
                lost_s = 0.0
                while not daq.answers and lost_s < _LOST_S:
                    await asyncio.sleep(_RETRY_S)
                    self._note_connected()
                    lost_s = 0.0 if daq.is_connected else lost_s + _RETRY_S
                await asyncio.sleep(_RETRY_S)  # what is on its way by the second comes by none else
            finally:
                second.cancel()
                await asyncio.wait({second})

    async def _hear_beside(self, daq: DaqClient) -> None:
        """Hears what is announced by a connection of its own, until cancelled."""
        refused = False

        async def failed(error: Exception) -> None:
            nonlocal refused  # and no word of it: it may be tried as long as the first is silent
            refused |= is_subscription_refused(error, self._settings.daq_subject)

        while True:
            second, refused = DaqClient(), False
            try:
                await second.connect(
                    [server.geturl() for server in daq.servers],
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=REFUSED_WAIT_S,  # type: ignore[arg-type]  # any number will do
                    error_cb=failed,
                    **connect_options(self._settings),
                )
                await second.subscribe(self._settings.daq_subject, cb=self._hear)
                await second.flush()
                log.info("connected to the DAQ once more")
                while second.answers:
                    self._second_hears = not refused
                    self._note_connected()
                    await asyncio.sleep(_RETRY_S)
            # As with the first: no error ends this.
            except Exception as error:  # noqa: BLE001
                log.warning("the DAQ's server: %s; trying on", inbox.said_of(error))
            finally:
                self._second_hears = False
                self._note_connected()
                with suppress(Exception):  # of a connection that is dead, or was never made
                    async with asyncio.timeout(_CLOSE_S):
                        await second.close()
            await asyncio.sleep(_RETRY_S)

    @property
    def _subscribed(self) -> bool:
        return self._plain is not None and not self._subscription_refused

    def _note_connected(self) -> None:
        first_hears = (
            self._daq is not None
            and self._daq.answers
            and (self._subscribed or self.counts.durable)
        )
        self.counts.daq_connected = first_hears or self._second_hears

    async def _subscribe(self, daq: Client) -> None:
        if self._subscribed:
            return
        if self._plain is not None:  # it was permitted, and is not any more
            plain, self._plain = self._plain, None
            await plain.unsubscribe()
        self._subscription_refused = False
        plain = await daq.subscribe(self._settings.daq_subject, cb=self._hear)
        try:
            await daq.flush()  # a refusal comes before the answer to this
        except NATS_FAILURES:
            await plain.unsubscribe()  # or each try would leave one more behind
            raise
        if self._subscription_refused:
            await plain.unsubscribe()
            return
        self._plain = plain
        self._note_connected()
        log.info("recording %s", self._settings.daq_subject)

    async def _read_stream(self, daq: Client) -> bool:
        """Reads from the DAQ's stream as long as it lets us; returns False if there is none."""
        subject = self._settings.daq_subject
        if self._jetstream_refused:
            return False
        self._durable = await DurableConsumer.find(daq, subject)
        if self._durable is None:
            return False
        try:
            async with aclosing(self._durable.batches()) as batches:
                async for batch in batches:
                    now = datetime.now(UTC)
                    await self._record([(each, now) for each in batch], from_stream=True)
                    if self._jetstream_refused:
                        break
                    if self.counts.durable:
                        continue
                    if self._plain is not None:
                        plain, self._plain = self._plain, None
                        await plain.drain()  # type: ignore[no-untyped-call]  # nats-py's
                    self.counts.durable = True
                    self._note_connected()
                    log.info("recording %s from stream %s", subject, self._durable.stream)
        finally:
            self._durable = None
            self.counts.durable = False
            self._note_connected()
        return True

    async def _hear(self, message: Msg) -> None:
        if self._waiting.full() or self._waiting_bytes > _WAITING_BYTES:
            self.counts.dropped += 1
            return
        self._waiting.put_nowait((message, datetime.now(UTC)))
        self._waiting_bytes += len(message.data)

    async def _record_waiting(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            size = len(batch[0][0].data)
            while len(batch) < BATCH and size < _BATCH_BYTES and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                size += len(batch[-1][0].data)
            self._waiting_bytes -= size
            await self._record(batch)

    async def _ready_inbox(self) -> Client:
        """The connection to the inbox, made anew if it is closed, and its stream, made if missing.

        An inbox that lost its disk comes back without its stream.
        """
        async with self._readying_inbox:
            while True:
                if self._inbox is None or self._inbox.is_closed:
                    self._inbox = await self._connect(self._inbox_url, "inbox", Client)
                    await self._inbox.subscribe(STATUS_SUBJECT, cb=self._answer_status)
                try:
                    await inbox.ensure_stream(
                        self._inbox.jetstream(timeout=_STORE_TIMEOUT_S),
                        max_age_days=self._settings.inbox_max_age_days,
                        max_bytes=self._settings.inbox_max_bytes,
                    )
                except NATS_FAILURES as error:
                    log.warning("the inbox has no stream (%s); trying on", inbox.said_of(error))
                    await asyncio.sleep(_RETRY_S)
                else:
                    return self._inbox

    async def _connect(
        self,
        url: str,
        what: str,
        client_type: type[_AnyClient],
        options: Callable[[], Mapping[str, Any]] = dict,
    ) -> _AnyClient:
        """Connects and stays connected, for ever; nats-py itself tries on in between."""
        where = f"{what} at {inbox.without_credentials(url)}"
        daq = what == "DAQ"
        quiet = False
        reconnecting = Reconnecting()

        async def lost() -> None:
            reconnecting.lost()
            log.warning("lost the connection to the %s", where)
            if daq:
                self._subscription_refused = False
                self._note_connected()

        async def back() -> None:
            nonlocal quiet
            quiet = False
            log.info("connected to the %s again", where)
            if not daq:
                self.counts.inbox_reconnects += 1
                return
            # nats-py has subscribed again by now; a refusal was said before this.
            self._note_connected()
            self.counts.daq_reconnects += 1
            self._jetstream_refused = False
            self._look_again.set()
            if self._durable is not None:
                await self._durable.ask()  # what it had asked for is forgotten

        async def closed() -> None:
            self._look_again.set()

        async def failed(error: Exception) -> None:
            nonlocal quiet
            if isinstance(error, nats.errors.SlowConsumerError):
                self.counts.dropped += 1
            if daq and is_subscription_refused(error, self._settings.daq_subject):
                self._subscription_refused = True
                self._note_connected()
                if self._plain is not None:  # taken away, and so worth a word again
                    quiet = False
                    self._look_again.set()
            if daq and is_jetstream_refused(error):
                if not self._jetstream_refused:
                    log.warning("%s: %s; a plain subscription then", where, inbox.said_of(error))
                self._jetstream_refused = True
            elif not quiet:  # once an outage is enough
                log.warning("%s: %s; trying on", where, inbox.said_of(error))
                quiet = True
            if not client.is_connected and reconnecting.failed(error):
                await asyncio.sleep(REFUSED_WAIT_S)  # nats-py tries on when this returns

        while True:
            client = client_type()
            try:
                await client.connect(
                    url,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=AWAY_WAIT_S,  # type: ignore[arg-type]  # any number will do
                    reconnect_to_server_handler=reconnecting.next_try,
                    disconnected_cb=lost,
                    reconnected_cb=back,
                    closed_cb=closed,
                    error_cb=failed,
                    **options(),
                )
            # A server that refuses us today may let us in tomorrow: no error ends this.
            except Exception as error:  # noqa: BLE001
                await failed(error)
                await asyncio.sleep(_RETRY_S)
            else:
                log.info("connected to the %s", where)
                quiet = False
                if daq:
                    self._jetstream_refused = False
                return client

    async def _record(
        self, messages: list[tuple[Msg, datetime]], *, from_stream: bool = False
    ) -> None:
        """Stores messages, in order and however long that takes; then acknowledges them.

        With each is when it was heard. Several are under way to the inbox at once. If it dies then,
        those may change places.
        """
        waiting = [self._outgoing(*each, from_stream=from_stream) for each in messages]
        client = self._inbox or await self._ready_inbox()
        said = False
        while waiting:
            jetstream = client.jetstream(timeout=_STORE_TIMEOUT_S)
            # Only a message that is no event can be longer than this.
            most = min(inbox.MAX_REJECTED_BYTES, client.max_payload - _HEADER_BYTES)
            answers = await asyncio.gather(
                *(self._store(jetstream, outgoing, most) for outgoing in waiting),
                return_exceptions=True,
            )
            failed = []
            for outgoing, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, NATS_FAILURES):
                    outgoing.tried = True
                    failed.append(outgoing)
                    if not said:
                        log.warning(
                            "the inbox does not store (%s); trying on", inbox.said_of(answer)
                        )
                        said = True
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    self._count(outgoing, repeated=answer)
                    if from_stream:
                        with suppress(*NATS_FAILURES):  # it comes again then
                            await outgoing.message.ack()
            waiting = failed
            self._note_refusal(refused=len(failed) == len(answers) and client.is_connected)
            if failed:
                await asyncio.sleep(_RETRY_S)
                client = await self._ready_inbox()

    def _note_refusal(self, *, refused: bool) -> None:
        if not refused:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = time.monotonic()

    def _outgoing(self, message: Msg, heard: datetime, *, from_stream: bool) -> _Outgoing:
        redelivered = from_stream and message.metadata.num_delivered > 1
        self.counts.received += not redelivered
        headers = {inbox.RECEIVED_HEADER: heard.isoformat()}
        try:
            event = self._parse(message.data)
        except NotAnEventError as error:
            reason = _header_text(str(error))
            self._rejections.say(reason)
            headers |= {
                inbox.REASON_HEADER: reason,
                _ID: hashlib.sha256(message.data).hexdigest(),
            }
            return _Outgoing(message, inbox.REJECTED_SUBJECT, headers, heard, None, redelivered)
        subject = f"{inbox.EVENT_SUBJECT}.{event.event_id}"
        headers |= {_ID: event.message_id}
        return _Outgoing(message, subject, headers, heard, event, redelivered)

    def _parse(self, payload: bytes) -> Announcement:
        return parse_announcement(
            payload,
            timezone=self._timezone,
            names_without_md5=self._settings.names_without_md5,
        )

    async def _store(
        self, jetstream: JetStreamContext, outgoing: _Outgoing, most_bytes: int
    ) -> bool:
        """Stores one message; returns whether it was there before."""
        if outgoing.may_be_stored and await self._is_stored(jetstream, outgoing):
            return True
        payload, headers = outgoing.message.data, dict(outgoing.headers)
        if len(payload) > most_bytes:
            headers[inbox.SIZE_HEADER] = str(len(payload))
        ack = await jetstream.publish(
            outgoing.subject, payload[:most_bytes], stream=inbox.STREAM, headers=headers
        )
        return bool(ack.duplicate)

    async def _is_stored(self, jetstream: JetStreamContext, outgoing: _Outgoing) -> bool:
        """Whether its event has this announcement already.

        A later one tells nothing: anybody may have sent it, and this one be known to us alone.
        """
        if outgoing.event is None:
            return False
        sequence = 0
        with suppress(NotFoundError):
            for _ in range(_LOOKED_AT):
                kept = await jetstream.get_msg(
                    inbox.STREAM, sequence + 1, outgoing.subject, direct=True, next=True
                )
                sequence = kept.seq or 0
                with suppress(NotAnEventError):  # by settings that have changed since
                    if self._parse(kept.data or b"").message_id == outgoing.event.message_id:
                        return True
        return False

    def _count(self, outgoing: _Outgoing, *, repeated: bool) -> None:
        if repeated:
            self.counts.duplicate += 1
        elif outgoing.event is None:
            self.counts.rejected += 1
        else:
            self.counts.stored += 1

    async def _answer_status(self, message: Msg) -> None:
        since = self._refused_since
        self.counts.refused_s = 0.0 if since is None else time.monotonic() - since
        if message.reply:
            await message.respond(json.dumps(asdict(self.counts)).encode())


async def recorder_status(inbox_url: str, *, expected: int = 1) -> list[RecorderCounts]:
    """Asks all recorders for their counts; returns those of the ones that answer, by name.

    Args:
        inbox_url: NATS server of the inbox.
        expected: so many answers are not waited for any longer than they take.

    Raises:
        InboxUnavailableError: the inbox itself does not answer.
    """
    client = await inbox.connect(inbox_url)
    counts: list[RecorderCounts] = []
    try:
        reply = client.new_inbox()
        answers = await client.subscribe(reply)
        await client.publish(STATUS_SUBJECT, b"", reply=reply)
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            while len(counts) < expected:
                answer = await answers.next_msg(_STATUS_TIMEOUT_S)
                if not answer.data:  # the server's word for: nobody listens
                    break
                counts.append(RecorderCounts(**json.loads(answer.data)))
    except NATS_FAILURES:
        pass  # not all have answered
    finally:
        await client.close()
    return sorted(counts, key=lambda count: count.name)


async def cancellable(work: Coroutine[Any, Any, Any]) -> None:
    """Awaits some work; when cancelled, cancels it again and again until it has ended.

    `asyncio.wait_for` of Python 3.11, on which nats-py is built, drops a cancellation that comes
    in the same moment as what it waits for (https://github.com/python/cpython/issues/86296).
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
        await task  # whatever it raised
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _header_text(text: str) -> str:
    """Text that fits on one header line, whatever the sender put into it."""
    return (
        text.encode("ascii", "backslashreplace")
        .decode()
        .replace("\r", "\\r")
        .replace("\n", "\\n")[:_REASON_MAX]
    )
