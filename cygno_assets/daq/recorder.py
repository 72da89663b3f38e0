"""The recorder: the only subscriber of the DAQ's server, which writes all it hears to the inbox.

Here belongs what keeps a live stream from being lost; no Dagster, no image is opened here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import nats
import nats.errors
import nats.js.errors

from cygno_assets.daq import inbox
from cygno_assets.daq.announcement import NotAnEventError, parse_announcement

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from cygno_assets.settings import Settings

log = logging.getLogger(__name__)

STATUS_SUBJECT = "cygno.status.recorder"
"""On the inbox's server: any request is answered with the counts as JSON."""

MAX_REJECTED_BYTES = 4_000_000
"""What is kept of a message that cannot be an event; NATS servers allow 1 MB unless told."""

# A subclass of these is what nats-py raises while a server is away or refuses.
_FAILURES = (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError)
_RETRY_S = 0.5
_HEADER_BYTES = 65_536
_STORE_TIMEOUT_S = 5.0
# The client's own queue bridges the time in which the inbox cannot be reached: an hour and more
# at the school's highest rate. What overflows it is counted as dropped.
_PENDING_MESSAGES = 1_000_000
_PENDING_BYTES = 1024**3
_REASON_MAX = 500


@dataclass
class RecorderCounts:
    """What happened since the recorder started; messages unless said otherwise.

    Attributes:
        received: from the DAQ.
        stored: as events, for the first time.
        duplicate: that the inbox already had.
        rejected: that could not be events.
        dropped: that overflowed the client's queue while the inbox was away.
        daq_reconnects: how often the connection to the DAQ's server came back.
        daq_connected: whether it stands now.
    """

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    rejected: int = 0
    dropped: int = 0
    daq_reconnects: int = 0
    daq_connected: bool = False


class Recorder:
    """Copies `daq/data` into the inbox, verbatim and in order, for ever.

    Args:
        settings: where the DAQ is and how its messages are read.
        inbox_url: NATS server of the inbox.
    """

    def __init__(self, settings: Settings, inbox_url: str) -> None:
        self._settings = settings
        self._inbox_url = inbox_url
        self._timezone = ZoneInfo(settings.daq_timezone)
        self._inbox: Client | None = None
        self.counts = RecorderCounts()

    async def run(self) -> None:
        """Runs until cancelled; waits for either server as long as it takes."""
        try:
            await self._ready_inbox()
            while True:
                await self._record_all()
                # nats-py reconnects by itself, but closes for good when a server says so.
                log.warning("the DAQ's server closed the connection; beginning anew")
                await asyncio.sleep(_RETRY_S)
        finally:
            if self._inbox is not None:
                await self._inbox.close()

    async def _record_all(self) -> None:
        daq = await self._connect(self._settings.daq_nats_url, "DAQ")
        try:
            subscription = await daq.subscribe(
                self._settings.daq_subject,
                pending_msgs_limit=_PENDING_MESSAGES,
                pending_bytes_limit=_PENDING_BYTES,
            )
            await daq.flush()
            self.counts.daq_connected = True
            log.info("recording %s", self._settings.daq_subject)
            async for message in subscription.messages:
                await self._record(message)
        finally:
            self.counts.daq_connected = False
            await daq.close()

    async def _ready_inbox(self) -> Client:
        """The connection to the inbox, made anew if it is closed, and its stream, made if missing.

        An inbox that lost its disk comes back without its stream.
        """
        while True:
            if self._inbox is None or self._inbox.is_closed:
                self._inbox = await self._connect(self._inbox_url, "inbox")
                await self._inbox.subscribe(STATUS_SUBJECT, cb=self._answer_status)
            try:
                await inbox.ensure_stream(
                    self._inbox.jetstream(timeout=_STORE_TIMEOUT_S),
                    max_age_days=self._settings.inbox_max_age_days,
                    max_bytes=self._settings.inbox_max_bytes,
                )
            except _FAILURES as error:
                log.warning("the inbox has no stream (%s); trying on", type(error).__name__)
                await asyncio.sleep(_RETRY_S)
            else:
                return self._inbox

    async def _connect(self, url: str, what: str) -> Client:
        """Connects and stays connected, for ever; nats-py itself tries on in between."""
        where = f"{what} at {inbox.without_credentials(url)}"
        quiet = False

        async def lost() -> None:
            log.warning("lost the connection to the %s", where)
            if what == "DAQ":
                self.counts.daq_connected = False

        async def back() -> None:
            nonlocal quiet
            quiet = False
            log.info("connected to the %s again", where)
            if what == "DAQ":
                self.counts.daq_connected = True
                self.counts.daq_reconnects += 1

        async def failed(error: Exception) -> None:
            nonlocal quiet
            if isinstance(error, nats.errors.SlowConsumerError):
                self.counts.dropped += 1
            if not quiet:  # once an outage is enough
                log.warning("%s: %s; trying on", where, type(error).__name__)
                quiet = True

        while True:
            try:
                client = await nats.connect(
                    url,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RETRY_S,
                    disconnected_cb=lost,
                    reconnected_cb=back,
                    error_cb=failed,
                )
            # A server that refuses us today may let us in tomorrow: no error ends this.
            except Exception as error:  # noqa: BLE001
                await failed(error)
                await asyncio.sleep(_RETRY_S)
            else:
                log.info("connected to the %s", where)
                quiet = False
                return client

    async def _record(self, message: Msg) -> None:
        self.counts.received += 1
        headers = {inbox.RECEIVED_HEADER: datetime.now(UTC).isoformat()}
        try:
            event = parse_announcement(
                message.data,
                timezone=self._timezone,
                names_without_md5=self._settings.names_without_md5,
            )
        except NotAnEventError as error:
            reason = _header_text(str(error))
            log.warning("rejected a message: %s", reason)
            subject = inbox.REJECTED_SUBJECT
            headers[inbox.REASON_HEADER] = reason
            message_id = hashlib.sha256(message.data).hexdigest()
        else:
            subject = f"{inbox.EVENT_SUBJECT}.{event.event_id}"
            message_id = event.message_id
        repeated = await self._store(subject, message.data, headers | {"Nats-Msg-Id": message_id})
        if repeated:
            self.counts.duplicate += 1
        elif subject == inbox.REJECTED_SUBJECT:
            self.counts.rejected += 1
        else:
            self.counts.stored += 1

    async def _store(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
        """Stores one message, however long that takes; returns whether it was there already."""
        client = self._inbox or await self._ready_inbox()
        said = False
        while True:
            # Only a message that is no event can be larger than the inbox takes.
            most = min(MAX_REJECTED_BYTES, client.max_payload - _HEADER_BYTES)
            try:
                ack = await client.jetstream(timeout=_STORE_TIMEOUT_S).publish(
                    subject, payload[:most], stream=inbox.STREAM, headers=headers
                )
            except _FAILURES as error:
                if not said:
                    log.warning("the inbox does not store (%s); trying on", type(error).__name__)
                    said = True
                await asyncio.sleep(_RETRY_S)
                client = await self._ready_inbox()
            else:
                return bool(ack.duplicate)

    async def _answer_status(self, message: Msg) -> None:
        if message.reply:
            await message.respond(json.dumps(asdict(self.counts)).encode())


async def recorder_status(inbox_url: str) -> RecorderCounts | None:
    """Asks the recorder for its counts; None if none answers.

    Raises:
        InboxUnavailableError: the inbox itself does not answer.
    """
    client = await inbox.connect(inbox_url)
    try:
        reply = await client.request(STATUS_SUBJECT, b"", timeout=1.0)
    except (nats.errors.NoRespondersError, TimeoutError):
        return None
    finally:
        await client.close()
    return RecorderCounts(**json.loads(reply.data))


def _header_text(text: str) -> str:
    """Text that fits on one header line, whatever the sender put into it."""
    return (
        text.encode("ascii", "backslashreplace")
        .decode()
        .replace("\r", "\\r")
        .replace("\n", "\\n")[:_REASON_MAX]
    )
