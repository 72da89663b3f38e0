"""What is broken, one thing after the other, and for how long."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from cygno_assets.daq import inbox
from cygno_assets_tests.chaos.account import Account, Expected
from cygno_assets_tests.chaos.files import write_folders
from cygno_assets_tests.chaos.world import Witness, event_of
from cygno_assets_tests.wire import with_jetstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nats.js import JetStreamContext

    from cygno_assets.services.process import Service
    from cygno_assets_tests.chaos.store import Download
    from cygno_assets_tests.chaos.world import World

RATE = 8.0
"""Events/s on average."""
UNDER_WAY = 16
"""So many events are announced before anything is broken: two seconds'."""
SETTLED_S = 420.0
"""Longer than anything is tried again that can pass."""
_AFTERWARDS_S = 8.0
_OUTAGE_S = 15.0
_STILL_S = 30.0
_SHORT_S = 3.0
_MANY = 1000
_SOME = 30
_SLICES, _SLICE_S = 100, 0.0002
_HELD = "daq/held"


def events_for(seconds: float) -> int:
    """So many events that they arrive before a fault, as long as it lasts, and for a while after.

    Args:
        seconds: that the fault lasts.
    """
    return UNDER_WAY + round(RATE * (seconds + _AFTERWARDS_S))


_PASSES = Expected()


def _nothing_more(_: World, __: Account) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: what is done.
        does: it, while events arrive; returns when it is over.
        expected: what may come of it, and must.
        then: what is done, and looked at, after the account is taken.
        short: part of the short version.
        events: how many are announced.
        options: of the DAQ.
        loaded: events must still arrive when it is over.
    """

    name: str
    does: Callable[[World], None]
    expected: Expected = _PASSES
    then: Callable[[World, Account], None] = _nothing_more
    short: bool = False
    events: int = events_for(0)
    options: Sequence[str] = ("--rate", str(RATE))
    loaded: bool = True


def _nothing(_: World) -> None:
    pass


def _kill(find: Callable[[World], Service]) -> Callable[[World], None]:
    def kill(world: World) -> None:
        service = find(world)
        pid = service.pid
        os.kill(pid, signal.SIGKILL)
        if world.wait_for(
            f"{service.name} is dead", lambda: service.status is not None or service.pid != pid, 10
        ):
            world.row.hit.add(f"{service.name} {pid}")

    return kill


def _stop(find: Callable[[World], Service], seconds: float = _STILL_S) -> Callable[[World], None]:
    def stop(world: World) -> None:
        with _still(world, find(world).pid):
            world.pause(seconds)

    return stop


@contextmanager
def _still(world: World, pid: int) -> Iterator[None]:
    """A process, with all below it, stands still."""
    first = psutil.Process(pid)
    processes = [first, *first.children(recursive=True)]
    try:
        for process in processes:
            process.suspend()
        yield
        with suppress(psutil.NoSuchProcess):
            if first.status() == psutil.STATUS_STOPPED:
                world.row.hit.add(f"process {pid}")
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _own(name: str) -> Callable[[World], Service]:
    return lambda world: world.service(name)


def _kill_the_daq(world: World) -> None:
    """It is killed, and somebody starts another."""
    _kill(_daq)(world)
    world.row.requested = len(world.truly_announced())  # it was to announce more, and will not
    world.announce(events_for(0), "--rate", str(RATE))


def _stop_a_worker(world: World) -> None:
    """The one that works most: there are some for backfills, too, which do nothing here."""
    if world.wait_for("there are workers", world.workers, 30):
        before = {worker: _processor_s(worker) for worker in world.workers()}
        world.pause(_SHORT_S)
        busiest = max(before, key=lambda worker: _processor_s(worker) - before[worker])
        with _still(world, busiest.pid):
            world.pause(_STILL_S)


def _processor_s(process: psutil.Process) -> float:
    """0 of one that has ended."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _kill_a_worker_in_a_download(world: World) -> None:
    """Who holds the connection on which half an image has come is killed."""
    half, killed = threading.Event(), threading.Event()
    port: list[int] = []
    first = itertools.count()

    def half_an_image(download: Download) -> None:
        status, body = download.fetch()
        port.append(download.client_address[1])
        download.send_response(status)
        download.send_header("Content-Length", str(len(body)))
        download.end_headers()
        download.wfile.write(body[: len(body) // 2])
        download.wfile.flush()
        half.set()
        killed.wait(30)
        download.close_connection = True

    with world.store.answering(half_an_image, world.row.hit, lambda _: next(first) == 0):
        world.wait_for("a download", half.is_set, 60)
        holders = [worker for worker in world.workers() if port and _holds(worker, port[0])]
        if len(holders) != 1:
            world.row.trouble.append(f"{len(holders)} workers hold the connection")
        _signal(holders, signal.SIGKILL)
        killed.set()


def _holds(worker: psutil.Process, port: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any(c.laddr and c.laddr.port == port for c in worker.net_connections("tcp"))
    return False


def _kill_workers_in_a_write(world: World) -> None:
    """While a file is half written, all workers are killed; three times."""
    for _ in range(3):
        if not world.wait_for("a file is half written", lambda: _stopped_in_a_write(world), 20):
            return
        _kill_workers(world)
        world.look_at_files()


def _kill_workers(world: World) -> None:
    """All of them, and others take their place."""
    workers = world.workers()
    _signal(workers, signal.SIGKILL)
    world.row.hit |= {f"worker {worker.pid}" for worker in workers}
    world.wait_for("there are other workers", lambda: {*world.workers()} - {*workers}, 30)


def _stopped_in_a_write(world: World) -> bool:
    """Lets workers run in slices shorter than a write; true if one stands still in the middle."""
    workers = world.workers()
    for _ in range(_SLICES):
        _signal(workers, signal.SIGCONT)
        time.sleep(_SLICE_S)
        _signal(workers, signal.SIGSTOP)
        if any(_half_written(world)):
            return True
    _signal(workers, signal.SIGCONT)
    return False


def _signal(workers: Sequence[psutil.Process], number: signal.Signals) -> None:
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


def _half_written(world: World) -> Iterator[str]:
    for folder in write_folders(world.home / "data"):
        with suppress(FileNotFoundError), os.scandir(folder) as files:
            yield from (file.name for file in files if file.name.endswith(".partial"))


def _answering(answer: Callable[[Download], None], seconds: float) -> Callable[[World], None]:
    def does(world: World) -> None:
        with world.store.answering(answer, world.row.hit):
            world.pause(seconds)

    return does


def _answering_for_ever(answer: Callable[[Download], None]) -> Callable[[World], None]:
    """Of some events, until nobody asks any more."""

    def does(world: World) -> None:
        with world.store.answering(answer, world.row.hit, _is_chosen):
            world.wait_for("all are announced", lambda: not world.announcing(), 60)
            # Not from the witness alone: it may be a moment behind.
            world.wait_until_settled(world.truly_announced(), SETTLED_S)

    return does


def _is_chosen(event: str) -> bool:
    """Every eighth, by its md5."""
    return int(event[-2:], 16) % 8 == 0


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
    """Each object is there only 3 s after its announcement."""
    heard = world.witness.first_heard

    def young(event: str) -> bool:
        return time.monotonic() - heard.get(event, time.monotonic()) < 3

    def absent(download: Download) -> None:
        download.send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    with world.store.answering(absent, world.row.hit, young):
        world.pause(_OUTAGE_S)


def _again(world: World) -> None:
    """Each announcement comes four times, the last time in reverse order."""
    heard = _all_heard(world)
    world.publish([*heard, *heard, *reversed(heard)])
    world.row.hit |= {event_of(message) for message in heard}


def _again_with_a_new_url(world: World) -> None:
    """Everything is announced anew, with another time and another signature."""
    _announce_anew(world, _all_heard(world))


def _announce_anew(world: World, messages: Sequence[bytes]) -> None:
    world.publish([world.announced_anew(message) for message in messages])
    world.row.hit |= {event_of(message) for message in messages}


def _again_while_runs_fail(world: World) -> None:
    """The store answers 500 and workers are killed, while all is announced anew, three times."""
    with world.store.answering(_status(500), world.row.hit):
        for _ in range(3):
            world.pause(_OUTAGE_S / 3)
            _announce_anew(world, world.messages())
            _kill_workers(world)


def _wait_for_all(world: World) -> None:
    """Until all are announced: what is then counted as recovery is the time to make them."""
    _all_heard(world)


def _all_heard(world: World) -> list[bytes]:
    """All that is announced until the DAQ has ended."""
    world.wait_for("all are announced", lambda: not world.announcing(), 60)
    events = world.truly_announced()
    world.wait_for("all are heard", lambda: events <= world.heard().keys(), 10)
    return world.messages()


def _out_of_order(world: World) -> None:
    """Announcements are held back, and come shuffled, of many an event the newer one first."""
    holder = Witness(world.daq_nats.url, _HELD)
    daq = world.announce(_SOME, "--burst", "--subject", _HELD)
    ended = world.wait_for("all are held back", lambda: len(holder.messages) == _SOME, 60)
    world.wait_for("their DAQ has ended", lambda: daq.status is not None, 30)
    if not ended:
        return
    both = [*holder.messages, *map(world.announced_anew, holder.messages)]
    random.Random(6).shuffle(both)  # noqa: S311 – no secret
    world.publish(both)
    world.row.hit |= {event_of(message) for message in holder.messages}


def _recreated_stream(world: World) -> None:
    """It is deleted when all that was in it has been read; what comes after goes into another.

    What is deleted before it was read is lost by design: docs/failure-modes.md says so.
    """
    world.wait_for("all are announced", lambda: not world.announcing(), 60)
    world.wait_for_rest(SETTLED_S)

    async def delete(jetstream: JetStreamContext) -> None:
        world.row.hit.add(f"stream of {(await jetstream.stream_info(inbox.STREAM)).created}")
        await jetstream.delete_stream(inbox.STREAM)

    with_jetstream(world.stack.settings.resolve_inbox_url(), delete)
    world.announce(events_for(0), "--rate", str(RATE))


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


def _runs_met_it(world: World, _: Account) -> None:
    world.row.hit |= world.failed_saying("No space left")


def _recorders_met_it(world: World, _: Account) -> None:
    world.row.hit |= world.said("recorder", "does not store")


def _the_daemon_met_it(world: World, _: Account) -> None:
    world.row.hit |= world.said("daemon", "database or disk is full")


def _outlived_urls(world: World) -> None:
    """No event is made while the last ones are announced, and then for longer than URLs live."""
    _stop(_own("daemon"), _OUTAGE_S)(world)
    if world.announcing():
        world.row.trouble.append("events were announced after the outage")
    world.row.hit |= world.truly_announced()


def _made_when_announced_anew(world: World, account: Account) -> None:
    """`reconcile` lists what has failed; a fresh URL makes it, once."""
    heard = account.heard.keys()
    listed = {
        one.event_id: one.detail
        for one in world.reconciled().differences
        if one.event_id in heard and one.what == "failed"
    }
    if listed != dict(account.failed):
        world.row.trouble.append(
            f"reconcile lists {len(listed)} failed events, not the {len(account.failed)} that are"
        )
    newest = {event_of(message): message for message in world.messages()}
    world.publish([world.announced_anew(newest[event]) for event in account.failed])
    world.wait_for(
        "what had failed is made when it is announced anew",
        lambda: account.failed.keys() <= world.tensors().keys(),
        SETTLED_S,
    )
    world.wait_for_rest(SETTLED_S)
    runs = world.successes(account.failed)
    world.row.trouble += [
        f"announced anew: {event}: {runs.get(event, 0)} successful runs"
        for event in account.failed
        if runs.get(event) != 1
    ]


def _recorder(world: World) -> Service:
    return world.recorder()


def _daq(world: World) -> Service:
    return world.daq


def _object_store(world: World) -> Service:
    return world.s3.service


def _daq_nats(world: World) -> Service:
    return world.daq_nats.service


_ON_THE_WAY = Expected(lost_before_us=10)
"""What the DAQ was just storing or sending, as it or a server of its was away, nobody else had."""


def _kills() -> list[Fault]:
    return [
        Fault("kill -9 daemon", _kill(_own("daemon")), short=True),
        Fault("kill -9 web UI", _kill(_own("web UI"))),
        Fault("kill -9 code server", _kill(_own("code server")), short=True),
        Fault("kill -9 worker in a download", _kill_a_worker_in_a_download, short=True),
        Fault(
            "kill -9 workers in a write",
            _kill_workers_in_a_write,
            short=True,
            events=events_for(_OUTAGE_S),
        ),
        Fault("kill -9 a recorder", _kill(_recorder), short=True),
        Fault("kill -9 inbox", _kill(_own("inbox")), short=True),
        Fault("kill -9 object store", _kill(_object_store), _ON_THE_WAY),
        Fault("kill -9 DAQ's NATS", _kill(_daq_nats), _ON_THE_WAY),
        Fault("kill -9 DAQ", _kill_the_daq, _ON_THE_WAY),
    ]


def _stops() -> list[Fault]:
    return [
        Fault(
            f"stop {name} 30 s",
            does,
            _ON_THE_WAY if name == "object store" else _PASSES,
            events=events_for(_STILL_S),
        )
        for name, does in (
            ("daemon", _stop(_own("daemon"))),
            ("web UI", _stop(_own("web UI"))),
            ("code server", _stop(_own("code server"))),
            ("a worker", _stop_a_worker),
            ("a recorder", _stop(_recorder)),
            ("inbox", _stop(_own("inbox"))),
            ("object store", _stop(_object_store)),
            ("DAQ's NATS", _stop(_daq_nats)),
            ("DAQ", _stop(_daq)),
        )
    ]


def _disks() -> list[Fault]:
    events = events_for(_OUTAGE_S)
    return [
        Fault("disk full: storage", _full("data"), then=_runs_met_it, short=True, events=events),
        Fault("disk full: inbox", _full("inbox"), then=_recorders_met_it, events=events),
        Fault(
            "disk full: Dagster",
            _full("dagster"),
            then=_the_daemon_met_it,
            short=True,
            events=events,
        ),
    ]


def _answers() -> list[Fault]:
    long, brief = events_for(_OUTAGE_S), events_for(_SHORT_S)
    answers = (
        ("500", _status(500), _OUTAGE_S),
        ("403 for 3 s", _status(403), _SHORT_S),
        ("404 for 3 s", _status(404), _SHORT_S),
        ("wrong bytes for 3 s", _wrong, _SHORT_S),
        ("slow", _slowly, _OUTAGE_S),
        ("truncated", _truncated, _OUTAGE_S),
    )
    for_ever = (
        ("403", _status(403), "forbidden"),
        ("404", _status(404), "missing"),
        ("wrong bytes", _wrong, "wrong_content"),
    )
    return [
        *(
            Fault(
                f"object store: {name}",
                _answering(answer, seconds),
                events=long if seconds == _OUTAGE_S else brief,
            )
            for name, answer, seconds in answers
        ),
        *(
            Fault(
                f"object store: {name} for ever",
                _answering_for_ever(answer),
                Expected(fails=kind, fails_all=True),
                _made_when_announced_anew,
                loaded=False,
            )
            for name, answer, kind in for_ever
        ),
        Fault("objects there only after 3 s", _absent_for_3_s, events=long),
        Fault(
            "an outage longer than URLs live",
            _outlived_urls,
            Expected(fails="expired"),
            _made_when_announced_anew,
            events=events_for(0),
            options=("--rate", str(RATE), "--url-lifetime", "5"),
            loaded=False,
        ),
    ]


def _announcements() -> list[Fault]:
    return [
        Fault("each announced four times", _again, loaded=False),
        Fault("all announced anew", _again_with_a_new_url, loaded=False),
        Fault(
            "announced anew while runs fail",
            _again_while_runs_fail,
            short=True,
            events=events_for(_OUTAGE_S),
            loaded=False,  # it goes on announcing by itself
        ),
        Fault("announced out of order", _out_of_order, short=True, events=events_for(_SHORT_S)),
        Fault(
            "1000 at once",
            _wait_for_all,
            Expected(hits=False),
            events=_MANY,
            options=("--burst",),
            loaded=False,
        ),
        Fault(
            "stream deleted, all of it read",
            _recreated_stream,
            Expected(rate_hz=0),  # between two bursts all comes to rest
        ),
    ]


def all_faults() -> list[Fault]:
    """In the order of the table."""
    nothing = Fault("nothing", _nothing, Expected(hits=False), short=True)
    return [nothing, *_kills(), *_stops(), *_disks(), *_answers(), *_announcements()]
