"""The DAQ's server as a client meets it: how to connect, and its JetStream where it has one.

Here belongs how messages reach the recorder; what becomes of them is recorder.py's to say.
Nothing is created or changed on that server but one consumer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from typing import TYPE_CHECKING, Any, Self, cast

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from cygno_assets.daq.inbox import said_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from cygno_assets.settings import Settings

log = logging.getLogger(__name__)

DURABLE = "cygno-recorder"
"""The consumer that all recorders share."""
BATCH = 256
"""Messages asked for at a time, and so those that a recorder which dies holds up."""
ACK_WAIT_S = 10.0
"""After so long a message that one recorder was given and did not store is given to another."""

NATS_FAILURES = (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError)
"""A subclass of these is what nats-py raises while a server is away or refuses."""

_REPLY_TIMEOUT_S = 2.0
# A host that died without a word resets a connection that it does not know any more as soon as we
# write to it. One that only stands still keeps for us what it has, and is given six minutes, as
# nats-py gives.
_PING_S = 0.5
_PINGS_UNANSWERED = 720
_PINGS_OVERDUE = 3
_PULL_S = 5.0
_NOTHING_NOW = {"404", "408"}


def connect_options(settings: Settings) -> dict[str, Any]:
    """What `DaqClient.connect` needs besides the URL. Holds secrets: not to be printed."""
    ca_file = settings.daq_nats_ca_file
    password, token = settings.daq_nats_password, settings.daq_nats_token
    return {
        "user": settings.daq_nats_user,
        "password": password and password.get_secret_value(),
        "token": token and token.get_secret_value(),
        "user_credentials": settings.daq_nats_credentials_file,
        "tls": ca_file and ssl.create_default_context(cafile=ca_file),
        "ping_interval": _PING_S,
        "max_outstanding_pings": _PINGS_UNANSWERED,
    }


def is_jetstream_refused(error: Exception) -> bool:
    """Whether this is the server's word that we may not use its JetStream."""
    said = str(error).lower()
    return "permissions violation" in said and "$js." in said


def is_subscription_refused(error: Exception, subject: str) -> bool:
    """Whether this is the server's word that we may not subscribe to this subject."""
    return f'permissions violation for subscription to "{subject.lower()}"' in str(error).lower()


class DaqClient(Client):
    """nats-py's client, which also knows whether the server answers, with three promises more.

    One that was told to use TLS sends nothing secret without. When `flush` returns, the server has
    answered all that was sent before, and has complained where it had to. A late answer to one that
    has given up does no harm.
    """

    async def flush(self, timeout: int = 10) -> None:
        """Waits for the server; nats-py's first ping overtakes what is not on the wire yet."""
        for _ in range(2):
            await super().flush(timeout)

    @property
    def answers(self) -> bool:
        """Whether there is a connection and a server that answers by it, as of some pings ago."""
        return self.is_connected and self._pings_outstanding <= _PINGS_OVERDUE

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = (
                asyncio.Future()
            )  # nats-py would set it again, and end reading for ever
        await super()._process_pong()

    def _connect_command(self) -> bytes:
        server = self._current_server
        wanted = "tls" in self.options or (server is not None and server.uri.scheme == "tls")
        if wanted and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


class DurableConsumer:
    """Our place in a stream of the DAQ's, kept by its server while no recorder runs.

    Args:
        daq: connection to the DAQ's server.
        stream: that holds the DAQ's subject.
    """

    def __init__(self, daq: Client, stream: str) -> None:
        self.stream = stream
        self._daq = daq
        self._deliver = daq.new_inbox()
        self._asked = 0

    @classmethod
    async def find(cls, daq: Client, subject: str) -> Self | None:
        """The consumer of the stream that holds this subject, created if it is missing.

        It begins with what is announced from then on: a first start is owed no history.

        Returns:
            None if there is no such stream, or we may not use it.
        """
        jetstream = daq.jetstream(timeout=_REPLY_TIMEOUT_S)
        try:
            stream = await jetstream.find_stream_name_by_subject(subject)
        except NATS_FAILURES:  # no JetStream, no such stream, or we may not ask
            return None
        wanted = ConsumerConfig(
            name=DURABLE,
            durable_name=DURABLE,
            filter_subject=subject,
            deliver_policy=DeliverPolicy.NEW,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
        )
        try:
            config = await _ensure_consumer(jetstream, stream, wanted)
        except nats.js.errors.APIError as error:
            log.warning("stream %s: no consumer %s (%s)", stream, DURABLE, said_of(error))
            return None
        except NATS_FAILURES:  # the server has complained meanwhile, if we may not
            return None
        if (config.filter_subject, config.ack_policy, config.deliver_subject) != (
            *(subject, AckPolicy.EXPLICIT),
            None,
        ):
            log.warning("consumer %s of stream %s is none of ours: left alone", DURABLE, stream)
            return None
        return cls(daq, stream)

    async def ask(self, *, wait: bool = True) -> None:
        """Asks for the next messages; to be done again when the connection has come back.

        Args:
            wait: for messages, if there are none now.
        """
        until = {"expires": int(_PULL_S * 1e9)} if wait else {"no_wait": True}
        self._asked = BATCH
        await self._daq.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{DURABLE}",
            json.dumps({"batch": BATCH, **until}).encode(),
            reply=self._deliver,
        )

    async def batches(self) -> AsyncGenerator[list[Msg]]:
        """Messages as they come, each to be acknowledged when it is stored.

        The first batch, which may be empty, tells that the server lets us read. Ends when it does
        not, or not any more.
        """
        subscription = await self._daq.subscribe(self._deliver)
        try:
            await self._try_to_acknowledge()
            await self.ask(wait=False)
            while True:
                batch: list[Msg] = []
                message = await subscription.next_msg(_PULL_S + _REPLY_TIMEOUT_S)
                while True:
                    if message.reply:  # what comes from the stream has one, a status has not
                        self._asked -= 1
                        batch.append(message)
                    elif (message.headers or {}).get("Status") in _NOTHING_NOW:
                        self._asked = 0
                    else:
                        return
                    if not subscription.pending_msgs:
                        break
                    message = await subscription.next_msg(_REPLY_TIMEOUT_S)
                yield batch
                if self._asked <= 0:
                    await self.ask()
        except NATS_FAILURES:
            return
        finally:
            if not self._daq.is_closed:
                await subscription.unsubscribe()

    async def _try_to_acknowledge(self) -> None:
        """Says of no message that it is being worked on: the server complains if we may not."""
        await self._daq.publish(f"$JS.ACK.{self.stream}.{DURABLE}.1.0.0.0.0", b"+WPI")
        await self._daq.flush()


async def _ensure_consumer(
    jetstream: JetStreamContext, stream: str, wanted: ConsumerConfig
) -> ConsumerConfig:
    try:
        info = await jetstream.consumer_info(stream, DURABLE)
    except NotFoundError:
        info = await jetstream.add_consumer(stream, wanted)
    return cast("ConsumerConfig", info.config)
