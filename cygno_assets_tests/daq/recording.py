"""What tests of the recorder share: servers of all kinds, a DAQ that publishes, what is stored."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nats

from cygno_assets.daq.inbox import Inbox, StoredMessage
from cygno_assets.daq.recorder import Recorder, RecorderCounts, recorder_status
from cygno_assets.services.nats_server import program
from cygno_assets.services.process import Service, accepts_connections, free_port
from cygno_assets.settings import load_settings
from cygno_assets_tests.wire import message, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from nats.aio.client import Client

SUBJECT = "daq/data"
MD5 = "13760faab087a72f66db310d167afb97"


def event(number: int, time: str = "2024-11-27 14:27:36.570564", signature: str = "1") -> bytes:
    name = f"run{number}-{MD5}.jpg"
    return message(name, f"https://minio/{name}?X-Amz-Signature={signature}", time)


async def until(what: str, happened: Callable[[], object]) -> None:
    """Waits until it has happened; fails, naming it, if it never does."""
    try:
        async with asyncio.timeout(40):
            while not happened():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"it never happened: {what}") from None


def stored(url: str) -> list[StoredMessage]:
    """All that the inbox holds."""
    return Inbox(lambda: url).read_after(0, limit=100_000)[1]


def stored_payloads(url: str) -> list[bytes]:
    return [kept.payload for kept in stored(url)]


@asynccontextmanager
async def recording(daq_url: str, inbox_url: str, **overrides: object) -> AsyncIterator[Recorder]:
    """A recorder that runs; if it ends by itself, so does the test."""
    recorder = Recorder(load_settings({"daq_nats_url": daq_url} | overrides), inbox_url)

    async def run() -> None:
        await recorder.run()
        raise AssertionError("the recorder has ended by itself")

    async with asyncio.TaskGroup() as group:
        running = group.create_task(run())
        yield recorder
        running.cancel()


@asynccontextmanager
async def daq(url: str, **options: object) -> AsyncIterator[Client]:
    """The DAQ's own connection."""
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, **options)
    try:
        yield client
    finally:
        await client.close()


async def publish(client: Client, *payloads: bytes) -> None:
    for payload in payloads:
        await client.publish(SUBJECT, payload)
    await client.flush()


def announce(url: str, payloads: list[bytes], rate_hz: float = 0) -> None:
    """Publishes as a DAQ does, in this thread, at a rate or at once."""

    async def work() -> None:
        async with daq(url) as client:
            began = time.monotonic()
            for number, payload in enumerate(payloads):
                await client.publish(SUBJECT, payload)
                ahead = number / rate_hz - (time.monotonic() - began) if rate_hz else 0
                if ahead > 0.005:
                    await asyncio.sleep(ahead)
            await client.flush()

    asyncio.run(work())


def record(
    daq_url: str, inbox_url: str, payloads: list[bytes], **overrides: object
) -> tuple[list[StoredMessage], RecorderCounts]:
    """Sends messages through a recorder; returns what is in the inbox then, and its counts."""

    async def work() -> RecorderCounts:
        async with recording(daq_url, inbox_url, **overrides) as recorder, daq(daq_url) as client:
            counts = recorder.counts
            await until("it listens", lambda: counts.daq_connected)
            await publish(client, *payloads)
            await until(
                "all is recorded",
                lambda: counts.stored + counts.duplicate + counts.rejected == len(payloads),
            )
            [status] = await recorder_status(inbox_url)
            return status

    counts = asyncio.run(work())
    return stored(inbox_url), counts


@contextmanager
def other_server(folder: Path, *config: str) -> Iterator[str]:
    """A nats-server with another configuration than ours."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    (folder / "nats.conf").write_text("\n".join([f"listen: 127.0.0.1:{port}", *config]) + "\n")
    argv = [program("nats-server"), "--config", str(folder / "nats.conf")]
    server = Service("nats-server", argv, folder / "nats.log")
    try:
        server.start().wait_ready(lambda: accepts_connections(port), 15)
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.stop()


class RecorderProcesses:
    """Recorders as the system runs them, side by side."""

    def __init__(self, folder: Path, daq_url: str, inbox_url: str, names: tuple[str, ...]) -> None:
        self._inbox_url = inbox_url
        environ = {"CYGNO_DAQ_NATS_URL": daq_url, "CYGNO_INBOX_URL": inbox_url}
        self.services = {
            name: Service(
                name,
                [sys.executable, "-m", "cygno_assets.cli", "record", "--name", name],
                folder / f"{name}.log",
                environ,
            )
            for name in names
        }

    def start(self, *names: str) -> None:
        """Starts those, or all, and waits until they hear the DAQ."""
        for name in names or self.services:
            self.services[name].restart()
        wait_until(
            f"{names or 'all'} listen",
            lambda: all(
                (heard := self.counts().get(name)) is not None and heard.daq_connected
                for name in names or self.services
            ),
        )

    def kill(self, *names: str) -> None:
        """kill -9, of those or all."""
        for name in names or self.services:
            self.services[name].stop(timeout_s=0)

    def counts(self) -> dict[str, RecorderCounts]:
        """By name, of those that answer."""
        answers = asyncio.run(recorder_status(self._inbox_url, expected=len(self.services)))
        return {counts.name: counts for counts in answers}


@contextmanager
def recorders(
    folder: Path, daq_url: str, inbox_url: str, *names: str
) -> Iterator[RecorderProcesses]:
    """Recorder processes, not started yet; none is left in the end."""
    processes = RecorderProcesses(folder, daq_url, inbox_url, names or ("one", "two"))
    try:
        yield processes
    finally:
        processes.kill()


class Host:
    """A host that a server runs on, whose power can fail for a moment.

    It forgets its connections then and tells nobody, as it cannot. In truth a TCP proxy: a real
    host's power cannot be had here.

    Args:
        server_url: what runs on it.
        resets: whoever writes to one of the forgotten connections afterwards gets a reset; or
            nothing, as until a kernel that has waited long tries again.
    """

    def __init__(self, server_url: str, *, resets: bool) -> None:
        self._server = urlsplit(server_url)
        self._resets = resets
        self._forget: list[asyncio.Event] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Yields the server's address on this host."""
        host = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with host:
            yield f"nats://127.0.0.1:{host.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many there ever were."""
        return len(self._forget)

    def power_fails(self) -> None:
        """And is back."""
        for forget in self._forget:
            forget.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        forget = asyncio.Event()
        self._forget.append(forget)
        behind, to_server = await asyncio.open_connection(self._server.hostname, self._server.port)
        passing = [
            asyncio.ensure_future(_pass_on(behind, writer)),
            asyncio.ensure_future(_pass_on(reader, to_server)),
        ]
        forgotten = asyncio.ensure_future(forget.wait())
        try:
            await asyncio.wait({*passing, forgotten}, return_when=asyncio.FIRST_COMPLETED)
            for each in passing:
                each.cancel()
            await asyncio.wait(passing)
            to_server.close()
            if forget.is_set():
                await reader.read(1 if self._resets else -1)
        finally:
            forgotten.cancel()
            reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with a reset."""
    at_once = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
