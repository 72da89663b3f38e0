"""What is broken, one thing after the other, and for how long."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from cygno_assets.daq import inbox
from cygno_assets_tests.chaos.world import event_of
from cygno_assets_tests.wire import with_jetstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nats.js import JetStreamContext

    from cygno_assets.services.process import Service
    from cygno_assets_tests.chaos.store import Download
    from cygno_assets_tests.chaos.world import World

EVENTS, RATE = 50, 5.0
_OUTAGE_S = 15.0
_STILL_S = 30.0
_MANY = 1000
_SLICES, _SLICE_S = 100, 0.0002


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: what is done.
        does: it, while events arrive; returns when it is over.
        may_fail: kinds of failure for good that it may cause.
        short: part of the short version.
        events: how many are announced.
        options: of the DAQ.
    """

    name: str
    does: Callable[[World], None]
    may_fail: frozenset[str] = frozenset()
    short: bool = False
    events: int = EVENTS
    options: Sequence[str] = ("--rate", str(RATE))


def _nothing(_: World) -> None:
    pass


def _kill(find: Callable[[World], Service]) -> Callable[[World], None]:
    def kill(world: World) -> None:
        os.kill(find(world).pid, signal.SIGKILL)

    return kill


def _stop(find: Callable[[World], Service], seconds: float = _STILL_S) -> Callable[[World], None]:
    def stop(world: World) -> None:
        with _still(find(world).pid):
            world.pause(seconds)

    return stop


@contextmanager
def _still(pid: int) -> Iterator[None]:
    """A process, with all below it, stands still."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _own(name: str) -> Callable[[World], Service]:
    return lambda world: world.service(name)


def _kill_the_daq(world: World) -> None:
    """It is killed, and somebody starts another."""
    os.kill(world.daq.pid, signal.SIGKILL)
    world.pause(3)
    world.announce(EVENTS // 2, "--rate", str(RATE))


def _stop_a_worker(world: World) -> None:
    [worker, *_] = world.workers()
    with _still(worker.pid):
        world.pause(_STILL_S)


def _kill_a_worker_in_a_download(world: World) -> None:
    """Who holds the connection on which half an image has come is killed."""
    half = threading.Event()
    port: list[int] = []

    def half_an_image(download: Download) -> None:
        status, body = download.fetch()
        if half.is_set() or status != 200:
            download.send(status, body)
            return
        half.set()
        port.append(download.client_address[1])
        download.send_response(200)
        download.send_header("Content-Length", str(len(body)))
        download.end_headers()
        download.wfile.write(body[: len(body) // 2])
        download.wfile.flush()
        killed.wait(30)
        download.close_connection = True

    killed = threading.Event()
    with world.store.answering(half_an_image):
        assert world.wait_for("a download", half.is_set, 60)
        [worker] = [
            worker
            for worker in world.workers()
            if any(c.laddr.port == port[0] for c in worker.net_connections("tcp"))
        ]
        worker.kill()
        killed.set()


def _kill_workers_in_a_write(world: World) -> None:
    """While a file is half written, all workers are killed; three times."""
    for _ in range(3):
        _stop_workers_in_a_write(world)
        _signal(world.workers(), signal.SIGKILL)
        world.pause(3)


def _stop_workers_in_a_write(world: World, timeout_s: float = 20) -> None:
    """Lets workers run in slices shorter than a write, until one stands still in the middle."""
    folders = [world.home / "data" / name for name in ("raw_image", "preprocessed_tensor")]
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        workers = world.workers()
        for _ in range(_SLICES):
            _signal(workers, signal.SIGCONT)
            time.sleep(_SLICE_S)
            _signal(workers, signal.SIGSTOP)
            if any(_partial(folder) for folder in folders):
                return
        _signal(workers, signal.SIGCONT)
    raise TimeoutError(f"no file was seen while it was written, in {timeout_s:g} s")


def _signal(workers: Sequence[psutil.Process], number: signal.Signals) -> None:
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


def _partial(folder: Path) -> bool:
    try:
        with os.scandir(folder) as files:
            return any(file.name.endswith(".partial") for file in files)
    except FileNotFoundError:
        return False


def _answering(answer: Callable[[Download], None], seconds: float) -> Callable[[World], None]:
    def does(world: World) -> None:
        with world.store.answering(answer):
            world.pause(seconds)

    return does


def _status(status: int) -> Callable[[Download], None]:
    return lambda download: download.send(status, b"<Error/>")


def _slowly(download: Download) -> None:
    status, body = download.fetch()
    download.send_response(status)
    download.send_header("Content-Length", str(len(body)))
    download.end_headers()
    for start in range(0, len(body), 8192):
        download.wfile.write(body[start : start + 8192])
        download.wfile.flush()
        time.sleep(0.2)


def _wrong(download: Download) -> None:
    status, body = download.fetch()
    download.send(status, body[:-100] + bytes(100))


def _truncated(download: Download) -> None:
    status, body = download.fetch()
    download.send(status, body[: len(body) // 2], len(body))


def _absent_for_3_s(world: World) -> None:
    """Each object is there only 3 s after it was asked for first."""
    asked: dict[str, float] = {}

    def answer(download: Download) -> None:
        first = asked.setdefault(download.event, time.monotonic())
        if time.monotonic() - first < 3:
            download.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            download.send(*download.fetch())

    with world.store.answering(answer):
        world.pause(EVENTS / RATE)


def _again(world: World) -> None:
    """Each announcement comes four times, the last time in reverse order."""
    heard = _heard(world)
    world.publish(*heard, *heard, *reversed(heard))


def _again_with_a_new_url(world: World) -> None:
    """Everything is announced anew, with another time and another signature."""
    world.publish(*(world.announced_anew(message) for message in _heard(world)))


def _heard(world: World) -> list[bytes]:
    """All that is announced, from now until the DAQ has ended."""
    since = len(world.witness.messages)
    world.wait_for("the DAQ has ended", lambda: world.daq.status is not None, 60)
    return world.witness.messages[since:]


def _recreated_stream(world: World) -> None:
    """It is deleted when all that was in it has been read; what comes after goes into another."""
    events = {event_of(message) for message in _heard(world)}
    world.wait_for("all is read", lambda: not world.unsettled(events), 60)

    async def delete(jetstream: JetStreamContext) -> None:
        await jetstream.delete_stream(inbox.STREAM)

    with_jetstream(world.stack.settings.resolve_inbox_url(), delete)
    world.announce(EVENTS // 2, "--rate", str(RATE))


def _full(folder: str) -> Callable[[World], None]:
    """The disk of one folder is full; needs the small file systems of `running_world`."""

    def does(world: World) -> None:
        ballast = world.home / folder / "ballast"
        # Unbuffered: what no longer fits must not be tried again when the file is closed.
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65_536))
        try:
            world.pause(_OUTAGE_S)
        finally:
            ballast.unlink()

    return does


def _recorder(world: World) -> Service:
    return world.recorder()


def _daq(world: World) -> Service:
    return world.daq


def _object_store(world: World) -> Service:
    return world.s3.service


def _daq_nats(world: World) -> Service:
    return world.daq_nats.service


def all_faults() -> list[Fault]:
    """In the order of the table."""
    return [
        Fault("nothing", _nothing, short=True),
        Fault("kill -9 daemon", _kill(_own("daemon")), short=True),
        Fault("kill -9 web UI", _kill(_own("web UI"))),
        Fault("kill -9 code server", _kill(_own("code server")), short=True),
        Fault("kill -9 worker in a download", _kill_a_worker_in_a_download, short=True),
        Fault("kill -9 workers in a write", _kill_workers_in_a_write, short=True),
        Fault("kill -9 a recorder", _kill(_recorder), short=True),
        Fault("kill -9 inbox", _kill(_own("inbox")), short=True),
        Fault("kill -9 object store", _kill(_object_store)),
        Fault("kill -9 DAQ's NATS", _kill(_daq_nats)),
        Fault("kill -9 DAQ", _kill_the_daq),
        Fault("stop daemon 30 s", _stop(_own("daemon"))),
        Fault("stop web UI 30 s", _stop(_own("web UI"))),
        Fault("stop code server 30 s", _stop(_own("code server"))),
        Fault("stop a worker 30 s", _stop_a_worker),
        Fault("stop a recorder 30 s", _stop(_recorder)),
        Fault("stop inbox 30 s", _stop(_own("inbox"))),
        Fault("stop object store 30 s", _stop(_object_store)),
        Fault("stop DAQ's NATS 30 s", _stop(_daq_nats)),
        Fault("stop DAQ 30 s", _stop(_daq)),
        Fault(
            "an outage longer than URLs live",
            _stop(_own("daemon"), _OUTAGE_S),
            frozenset({"expired"}),
            options=("--rate", str(RATE), "--url-lifetime", "5"),
        ),
        Fault("disk full: storage", _full("data"), short=True),
        Fault("disk full: inbox", _full("inbox")),
        Fault("object store: 500", _answering(_status(500), _OUTAGE_S), short=True),
        Fault("object store: 403", _answering(_status(403), 3), frozenset({"forbidden"})),
        Fault("object store: 404", _answering(_status(404), 3), frozenset({"missing"})),
        Fault("object store: slow", _answering(_slowly, _OUTAGE_S)),
        Fault(
            "object store: wrong bytes",
            _answering(_wrong, 3),
            frozenset({"wrong_content"}),
            short=True,
        ),
        Fault("object store: truncated", _answering(_truncated, _OUTAGE_S)),
        Fault("objects there only after 3 s", _absent_for_3_s),
        Fault("each announced four times", _again, short=True),
        Fault("all announced anew", _again_with_a_new_url),
        Fault("1000 at once", _nothing, events=_MANY, options=("--burst",)),
        Fault("stream created anew", _recreated_stream),
    ]
