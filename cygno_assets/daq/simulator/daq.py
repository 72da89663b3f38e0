"""The DAQ itself: puts each image into the bucket and announces it over core NATS.

Belongs here: clocks, the order of things, the messages on the wire.
Does not: what happens when (events.py), the table of the truth (truth.py), S3 (bucket.py).
"""

import asyncio
import itertools
import json
import logging
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import nats
import nats.errors
from nats.aio.client import Client
from obstore.exceptions import BaseError as StoreError

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings, check_lifetime
from cygno_assets.daq.simulator.events import (
    ImageSource,
    Season,
    SimulatedEvent,
    check_rate,
    event_stream,
)
from cygno_assets.daq.simulator.truth import TruthTable

_log = logging.getLogger(__name__)

_DEFAULT_SEASON = Season(period_s=3 * 3600)
_UPLOADS_AT_ONCE = 4
_FLUSH_TIMEOUT_S = 5
_RECONNECT_WAIT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class DaqConfig:
    """What a simulated DAQ needs to know.

    Args:
        nats_url: Server of the announcements; never shown, as it may hold a token or password.
        bucket: Where the images go.
        source: Where the images come from; one source feeds one run.
        truth_path: SQLite file of the truth table; its folder must exist.
        timezone: The zone of the clock on the DAQ's wall; not told on the wire.
        rate_hz: Mean events/s; the school's default is 300 an hour.
        limit: How many events; None goes on for ever.
        stop_after: After so many events it falls silent, but keeps running; None never does.
        seed: Decides the arrival times.
        season: How often there is signal; the school's default is a "year" of 3 h.
        burst: Upload all `limit` images first, as fast as possible, then announce them all at once.
        url_lifetime: For how long a URL is valid.
        subject: Of the announcements.
        info_subject: Of the progress lines.

    Raises:
        ValueError: A field out of its range.
    """

    nats_url: str = field(repr=False)
    bucket: BucketSettings
    source: ImageSource
    truth_path: Path
    timezone: ZoneInfo
    rate_hz: float = 300 / 3600
    limit: int | None = None
    stop_after: int | None = None
    seed: int = 0
    season: Season = _DEFAULT_SEASON
    burst: bool = False
    url_lifetime: timedelta = timedelta(hours=1)
    subject: str = "daq/data"
    info_subject: str = "daq/info"

    def __post_init__(self) -> None:
        check_rate(self.rate_hz)
        check_lifetime(self.url_lifetime)
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit = {self.limit}: must not be below 0")
        if self.stop_after is not None and self.stop_after < 0:
            raise ValueError(f"stop_after = {self.stop_after}: must not be below 0")
        if self.stop_after is not None and self.limit is not None:
            raise ValueError("limit and stop_after exclude each other: the one ends it")
        if self.burst and self.limit is None:
            raise ValueError("burst = True: needs a limit")


class SimulatedDaq:
    """A DAQ as the school's: bucket first, then `{"url", "time", "filename"}` on core NATS.

    Args:
        config: What it needs to know.

    Raises:
        ValueError: The authority's file of the bucket is not there.
    """

    def __init__(self, config: DaqConfig) -> None:
        self._config = config
        self._bucket = Bucket(config.bucket)
        self._announced = 0

    async def run(self) -> int:
        """Runs until `limit` events are done, or until cancelled; after `stop_after`, in silence.

        An image that cannot be stored is not announced, and an announcement that cannot be sent is
        lost, both with a line in the log; neither ends the run.

        Returns:
            How many events were announced.

        Raises:
            ValueError: The source or the truth table cannot be used.
        """
        config = self._config
        self._announced = 0
        with closing(TruthTable(config.truth_path)) as truth:
            client = await nats.connect(
                config.nats_url,
                name="cygno-simulated-daq",
                error_cb=_log_nats_error,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,
            )
            _log.info("the simulated DAQ announces on %s", config.subject)
            try:
                await self._produce(client, truth)
                await _flush(client)
                if config.stop_after is not None:
                    _log.info("the simulated DAQ falls silent, and keeps running")
                    await asyncio.get_running_loop().create_future()
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                with suppress(OSError):  # closing a connection that is lost
                    await client.close()
        _log.info("the simulated DAQ announced %d events", self._announced)
        return self._announced

    async def _produce(self, client: Client, truth: TruthTable) -> None:
        config = self._config
        stream = event_stream(config.source, config.season, config.rate_hz, config.seed)
        loop = asyncio.get_running_loop()
        uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        may_announce: asyncio.Future[None] = loop.create_future()
        if not config.burst:
            may_announce.set_result(None)
        before = may_announce
        due_s = loop.time()  # absolute, so that what is slow lowers no rate
        number = config.limit if config.stop_after is None else config.stop_after
        numbers = itertools.count() if number is None else range(number)
        async with asyncio.TaskGroup() as tasks:
            for _ in numbers:
                gap_s, event = await asyncio.to_thread(next, stream)
                due_s += gap_s
                if not config.burst:
                    await asyncio.sleep(due_s - loop.time())
                await uploads.acquire()
                before = tasks.create_task(self._handle(event, before, uploads, client, truth))
            if config.burst:
                for _ in range(_UPLOADS_AT_ONCE):
                    await uploads.acquire()  # all are done
                may_announce.set_result(None)

    async def _handle(
        self,
        event: SimulatedEvent,
        before: asyncio.Future[None],
        uploads: asyncio.Semaphore,
        client: Client,
        truth: TruthTable,
    ) -> None:
        """One event: uploads beside others, but is announced after the event before."""
        try:
            await asyncio.to_thread(self._bucket.put, event.filename, event.image_bytes)
            stored = True
        except StoreError as error:
            # Only the kind: the text may quote the signed request.
            _log.error("%s is lost: the bucket says %s", event.filename, type(error).__name__)
            stored = False
        finally:
            uploads.release()
        event = replace(event, image_bytes=b"")  # or a burst would keep every image in memory
        await before
        if stored:
            await self._announce(event, client, truth)

    async def _announce(self, event: SimulatedEvent, client: Client, truth: TruthTable) -> None:
        config = self._config
        time = str(datetime.now(config.timezone).replace(tzinfo=None))
        url = self._bucket.presigned_url(event.filename, config.url_lifetime)
        message = {"url": url, "time": time, "filename": event.filename}
        truth.record(time, event)
        try:
            await client.publish(config.subject, json.dumps(message).encode())
            self._announced += 1
            progress = f"{time} event {self._announced}: {event.filename}"
            await client.publish(config.info_subject, progress.encode())
        except nats.errors.Error as error:
            _log.error("%s: not announced, NATS says %s", event.filename, error)


async def _flush(client: Client) -> None:
    """Returns when the server has everything, however long it is away."""
    while True:
        try:
            await client.flush(_FLUSH_TIMEOUT_S)
        except nats.errors.Error as error:
            _log.warning("the last announcements wait for NATS: %s", error)
        else:
            if client.is_connected:  # flush says nothing while reconnecting
                return
        await asyncio.sleep(_RECONNECT_WAIT_S)


async def _log_nats_error(error: Exception) -> None:
    _log.warning("NATS: %s: %s", type(error).__name__, error)
