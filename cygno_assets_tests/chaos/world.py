"""The running system, a DAQ that announces, and what is found out about each event.

What was announced is what a subscriber of the DAQ's own server has heard, beside the recorders.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import nats
import psutil
from dagster import (
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    RunsFilter,
)

from cygno_assets.daq.inbox import Inbox, InboxUnavailableError
from cygno_assets.daq.recorder import recorder_status
from cygno_assets.daq.simulator.bucket import Bucket
from cygno_assets.daq.simulator.truth import TruthTable
from cygno_assets.names import FINAL_TAG, PARTITION_TAG, PREPROCESSED_TENSOR
from cygno_assets.records.cursors import read_by_sensor, waiting_to_be_made_again
from cygno_assets.records.history import unfinished_runs
from cygno_assets.records.reconciliation import Reconciliation, reconcile
from cygno_assets.services.guardian import pause
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import Service, free_port
from cygno_assets.services.s3_server import BucketAccess, S3Server
from cygno_assets.services.stack import RECORDERS, Stack, running_stack
from cygno_assets.services.supervisor import Supervisor
from cygno_assets.storage.locations import data_root, local_path
from cygno_assets_tests.chaos.account import Account, Expected
from cygno_assets_tests.chaos.files import damaged, half_files, secrets_in
from cygno_assets_tests.chaos.store import FaultyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from dagster import DagsterRun
    from nats.aio.msg import Msg

SUBJECT = "daq/data"
_POLL_S = 0.2
_NO_TRAINING_SET = "/no/training-set.zip"
_EVENTS_AT_ONCE = 500
_REST_S = 300.0
_MESSAGES_AT_ONCE = 1000
_DAQS_OWN = ("inbox", "daq-nats", "daq-s3", "logs/daq*", "truth-*")
"""In the home: what is not ours, or keeps announcements as they came."""
_LOUD = """import logging, sys
loud = logging.getLogger("urllib3")
loud.setLevel(logging.DEBUG)
loud.addHandler(logging.StreamHandler(sys.stderr))
"""
"""What urllib3 says at DEBUG quotes URLs: it shall be seen whether that reaches a log."""


class Witness:
    """Hears what the DAQ's server delivers, in a thread of its own."""

    def __init__(self, url: str, subject: str = SUBJECT) -> None:
        self._url = url
        self._subject = subject
        self._ready = threading.Event()
        self.messages: list[bytes] = []
        self.first_heard: dict[str, float] = {}
        threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True).start()
        if not self._ready.wait(30):
            raise TimeoutError("the witness hears nothing of the DAQ's server")

    async def _listen(self) -> None:
        async def quiet(_: Exception) -> None:
            pass  # the server is killed on purpose

        client = await nats.connect(
            self._url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=quiet
        )

        async def hear(message: Msg) -> None:
            self.first_heard.setdefault(event_of(message.data), time.monotonic())
            self.messages.append(message.data)

        await client.subscribe(self._subject, cb=hear)
        await client.flush()
        self._ready.set()
        await asyncio.Event().wait()


def event_of(message: bytes) -> str:
    """The event that a message announces."""
    return str(json.loads(message)["filename"]).rpartition(".")[0]


@dataclass
class Row:
    """What one fault has seen so far.

    Attributes:
        since: number of the first message of the witness that belongs to it.
        began: when, in seconds since 1970.
        log_sizes: of our logs then.
        daqs: that announce its events.
        truths: their own tables of what they announced.
        requested: how many events they are to announce.
        hit: what the fault hit: events, requests, processes.
        trouble: what was wrong beside what becomes of events.
    """

    since: int = 0
    began: float = 0.0
    log_sizes: dict[Path, int] = field(default_factory=dict)
    daqs: list[Service] = field(default_factory=list)
    truths: list[Path] = field(default_factory=list)
    requested: int = 0
    hit: set[str] = field(default_factory=set)
    trouble: list[str] = field(default_factory=list)


@dataclass
class World:
    """Everything that runs.

    Attributes:
        stack: the system.
        s3: the real object store of the DAQ.
        access: to its bucket.
        store: what stands before it.
        daq_nats: the DAQ's server.
        witness: of what it delivers.
        instance: Dagster's.
        home: folder of it all.
        others: the DAQ's servers, started again as the system's are: a DAQ has people too.
        row: of the fault that is under way.
        rows: all of them so far.
    """

    stack: Stack
    s3: S3Server
    access: BucketAccess
    store: FaultyStore
    daq_nats: NatsServer
    witness: Witness
    instance: DagsterInstance
    home: Path
    others: Supervisor = field(default_factory=lambda: Supervisor(_say))
    row: Row = field(default_factory=Row)
    rows: list[Row] = field(default_factory=list)
    _made: dict[str, float] = field(default_factory=dict)
    _seen: int = 0
    _seeds: int = 0
    _stored: set[bytes] = field(default_factory=set)
    _stored_to: tuple[str, int] = ("", 0)

    def begin(self) -> None:
        """A new row of the table."""
        sizes = {log: log.stat().st_size for log in self._logs()}
        self.row = Row(len(self.witness.messages), time.time(), sizes)
        self.rows.append(self.row)

    def announce(self, events: int, *options: str) -> Service:
        """Has a new DAQ announce so many events, and returns at once; another seed each time."""
        self._seeds += 1
        bucket = self.s3.bucket(self.access)
        truth = self.home / f"truth-{self._seeds}.sqlite"
        daq = Service(
            f"daq-{self._seeds}",
            [
                *(sys.executable, "-m", "cygno_assets.cli", "simulate", "daq"),
                *("--nats", self.daq_nats.url, "--timezone", "UTC"),
                *("--s3-endpoint", self.store.endpoint, "--bucket", self.access.bucket),
                *("--ca-file", str(self.store.ca_file)),
                *("--events", str(events), "--seed", str(self._seeds), *options),
                *("--truth", str(truth)),
            ],
            self.home / "logs" / "daq.log",
            {
                "AWS_ACCESS_KEY_ID": bucket.access_key_id,
                "AWS_SECRET_ACCESS_KEY": bucket.secret_access_key,
            },
        )
        self.row.daqs.append(daq)
        self.row.truths.append(truth)
        self.row.requested += events
        return daq.start()

    @property
    def daq(self) -> Service:
        """The last one that was started."""
        return self.row.daqs[-1]

    def announcing(self) -> bool:
        """Whether a DAQ still runs."""
        return any(daq.status is None for daq in self.row.daqs)

    @property
    def truth(self) -> Path:
        """The table of the last one."""
        return self.row.truths[-1]

    def truly_announced(self) -> set[str]:
        """The events that DAQs have announced in this row, by their own tables."""
        events: set[str] = set()
        for path in filter(lambda path: path.exists(), self.row.truths):
            with closing(TruthTable(path)) as table:
                events |= {row.filename.rpartition(".")[0] for row in table.rows()}
        return events

    def messages(self) -> list[bytes]:
        """What the witness has heard in this row."""
        return self.witness.messages[self.row.since :]

    def heard(self) -> dict[str, float]:
        """The events of this row, and when each was announced first."""
        first = self.witness.first_heard
        return {event: first[event] for event in map(event_of, self.messages())}

    def announced_anew(self, message: bytes) -> bytes:
        """The same image's announcement with another time and a fresh URL."""
        fields = json.loads(message)
        bucket = replace(
            self.s3.bucket(self.access), endpoint=self.store.endpoint, ca_file=self.store.ca_file
        )
        url = Bucket(bucket).presigned_url(fields["filename"], timedelta(hours=1))
        taken = str(datetime.now(UTC).replace(tzinfo=None))
        return json.dumps(fields | {"url": url, "time": taken}).encode()

    def publish(self, messages: Iterable[bytes]) -> None:
        """Says these on the DAQ's server."""

        async def say() -> None:
            client = await nats.connect(self.daq_nats.url)
            for message in messages:
                await client.publish(SUBJECT, message)
            await client.flush()
            await client.close()

        asyncio.run(say())

    def service(self, name: str) -> Service:
        """One of the system's, by its name."""
        [found] = [service for service in self.stack.services if service.name == name]
        return found

    def recorder(self) -> Service:
        """One of them."""
        return self.service(RECORDERS[0])

    def workers(self) -> list[psutil.Process]:
        """The processes that execute runs."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.service("daemon").pid).children(recursive=True):
                # One that was killed idle is a zombie until its place is wanted.
                with suppress(psutil.NoSuchProcess):
                    if "spawn_main" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def pause(self, seconds: float) -> None:
        """Lets time go by; what has died is started again meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.keep_alive()
            pause(min(left, _POLL_S))

    def wait_for(self, what: str, happened: Callable[[], object], timeout_s: float) -> bool:
        """Lets time go by until it has happened; if it has not in time, the row is bad."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            self.keep_alive()
            if time.monotonic() > deadline:
                self.row.trouble.append(f"after {timeout_s:g} s still not: {what}")
                return False
            pause(_POLL_S)
        return True

    def keep_alive(self) -> None:
        """Starts again what has died, as `up` does."""
        self.stack.keep_alive()
        self.others.look([self.daq_nats.service, self.s3.service])

    def wait_until_settled(self, events: Iterable[str], timeout_s: float) -> None:
        """Waits until each of these is made or has failed for good; else the row is bad."""
        left: set[str] = set()

        def settled() -> bool:
            nonlocal left
            left = self.unsettled(events)
            return not left

        if not self.wait_for("all is settled", settled, timeout_s):
            self.row.trouble[-1] += f", for {len(left)} events are not; {self._state_of(min(left))}"

    def wait_for_rest(self, timeout_s: float) -> None:
        """Waits until nothing is on its way any more; if that takes too long, the row is bad."""
        why = ""

        def at_rest() -> bool:
            nonlocal why
            why = self.under_way()
            return not why

        if not self.wait_for("all is at rest", at_rest, timeout_s):
            self.row.trouble[-1] += f", for {why}"

    def _state_of(self, event: str) -> str:
        """Whatever is known of an event that nothing comes of."""
        waits = waiting_to_be_made_again(self.instance).get(event)
        runs = [
            f"{record.dagster_run.run_id} {record.dagster_run.status.value} since "
            f"{record.update_timestamp:%H:%M:%S} {record.dagster_run.tags}"
            for record in self.instance.get_run_records(RunsFilter(tags={PARTITION_TAG: event}))
        ]
        return f"{event}: waits to be made again: {waits}; runs: {runs}; {self.under_way()}"

    def under_way(self) -> str:
        """What is, of all that was announced; an empty text if nothing is."""
        if self.announcing():
            return "a DAQ announces"
        if events := self.unsettled(self.heard()):
            return f"{len(events)} events are unsettled, such as {min(events)}"
        try:
            return self._unread() or self._unfinished()
        except InboxUnavailableError:
            return "the inbox does not answer"

    def _unread(self) -> str:
        """Of messages: what a recorder still holds, what none has stored, what is not read."""
        url = self.stack.settings.resolve_inbox_url()
        recorders = asyncio.run(recorder_status(url, expected=len(RECORDERS)))
        if len(recorders) < len(RECORDERS):
            return f"{len(recorders)} recorders answer"
        for counts in recorders:
            if counts.received > counts.stored + counts.duplicate + counts.rejected:
                return f"{counts.name} has not stored all"
        if left := set(self.messages()) - self._stored_messages():
            return f"{len(left)} messages are not in the inbox"
        state = self._inbox().state()
        if read_by_sensor(self.instance, state.created) < state.last_sequence:
            return "the sensor has not read all"
        return ""

    def _unfinished(self) -> str:
        if waiting := waiting_to_be_made_again(self.instance):
            return f"{len(waiting)} events wait to be made again, such as {min(waiting)}"
        if runs := unfinished_runs(self.instance):
            return f"{len(runs)} runs are unfinished"
        return ""

    def _inbox(self) -> Inbox:
        return Inbox(self.stack.settings.resolve_inbox_url)

    def _stored_messages(self) -> set[bytes]:
        """All that the inbox has been seen to hold, in streams that are gone too."""
        created, sequence = self._stored_to
        while True:
            state, found = self._inbox().read_after(sequence, limit=_MESSAGES_AT_ONCE)
            if state.created != created:
                created, sequence = state.created, 0
                continue
            if not found:
                return self._stored
            self._stored |= {message.payload for message in found}
            sequence = found[-1].sequence
            self._stored_to = created, sequence

    def tensors(self) -> dict[str, float]:
        """When each event's tensor was materialized first."""
        while True:
            page = self.instance.fetch_materializations(
                AssetRecordsFilter(asset_key=PREPROCESSED_TENSOR, after_storage_id=self._seen),
                limit=1000,
                ascending=True,
            )
            if not page.records:
                return self._made
            for record in page.records:
                self._made.setdefault(str(record.partition_key), record.timestamp)
            self._seen = page.records[-1].storage_id

    def failed(self, events: Iterable[str]) -> dict[str, str]:
        """The kind of failure of those that failed for good and have no tensor."""
        runs = self._runs(set(events) - self.tensors().keys(), DagsterRunStatus.FAILURE)
        return {
            run.tags[PARTITION_TAG]: run.tags[FINAL_TAG] for run in runs if FINAL_TAG in run.tags
        }

    def unsettled(self, events: Iterable[str]) -> set[str]:
        """Those that have neither a tensor nor failed for good."""
        left = set(events) - self.tensors().keys()
        return left - self.failed(left).keys()

    def successes(self, events: Iterable[str]) -> Mapping[str, int]:
        """How many successful runs each of these has."""
        runs = self._runs(events, DagsterRunStatus.SUCCESS)
        return Counter(run.tags[PARTITION_TAG] for run in runs)

    def _runs(self, events: Iterable[str], *statuses: DagsterRunStatus) -> Iterator[DagsterRun]:
        wanted = sorted(events)
        for first in range(0, len(wanted), _EVENTS_AT_ONCE):
            part = wanted[first : first + _EVENTS_AT_ONCE]
            yield from self.instance.get_runs(
                RunsFilter(tags={PARTITION_TAG: part}, statuses=list(statuses))
            )

    def failed_saying(self, words: str) -> set[str]:
        """Events of this row in a run of which a step failed, or was tried again, on these."""
        kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.STEP_UP_FOR_RETRY}
        return {
            run.tags[PARTITION_TAG]
            for run in self._runs(self.heard())
            if any(words in repr(log) for log in self.instance.all_logs(run.run_id, of_type=kinds))
        }

    def said(self, service: str, words: str) -> set[str]:
        """Lines that have these words of logs whose name begins so, since the row began."""
        return {
            f"{log.name}: {line}"
            for log in self._logs()
            if log.name.startswith(service)
            for line in _written(log, self.row.log_sizes.get(log, 0)).splitlines()
            if words in line
        }

    def _logs(self) -> list[Path]:
        return sorted((self.home / "logs").glob("*.log"))

    def look_at_files(self) -> None:
        """What is half under a whole name just now makes the row bad, whoever would repair it."""
        settings = self.stack.settings
        data = local_path(data_root(settings))
        if data is not None:  # a put into a bucket is whole by itself
            self.row.trouble += half_files(data, settings.preprocess_spec, self.row.began - 1)

    def account(self, expected: Expected, recovered_s: float) -> Account:
        """What became of the events of this row; its hits and its trouble may still grow."""
        heard = self.heard()
        made = heard.keys() & self.tensors().keys()
        settings = self.stack.settings
        return Account(
            expected,
            self.row.requested,
            self.truly_announced(),
            heard,
            made,
            self.successes(heard),
            self.failed(heard),
            damaged(data_root(settings), sorted(made), settings.preprocess_spec),
            self.row.hit,
            self.row.trouble,
            recovered_s,
        )

    def reconciled(self) -> Reconciliation:
        """What `cygno-assets reconcile` finds."""
        return reconcile(self.instance, self._inbox(), data_root(self.stack.settings))

    def account_of_all(self, lost_before_us: int) -> Account:
        """Of all rows once more, now that all has come to rest: nothing may have failed.

        Args:
            lost_before_us: how many events the faults may have taken from us, at the most.
        """
        self.row = Row(
            since=self.rows[0].since,
            truths=[truth for row in self.rows for truth in row.truths],
            requested=sum(row.requested for row in self.rows),
        )
        self.wait_for_rest(_REST_S)
        self.row.trouble += [
            f"reconcile: {one.event_id}: {one.what}: {one.detail}"
            for one in self.reconciled().differences
        ]
        self.row.trouble += self._leaks()
        # Between the rows nothing is announced.
        return self.account(Expected(hits=False, lost_before_us=lost_before_us, rate_hz=0), 0.0)

    def _leaks(self) -> list[str]:
        secrets = {"a signature": "X-Amz-Signature", "the key": self.access.secret_access_key}
        asked = {"a request": f'"GET /{self.access.bucket}/'}
        spoken = secrets_in(self.home, asked, _DAQS_OWN)
        quiet = [] if spoken else ["urllib3 said nothing: no leak would have been seen"]
        return [*quiet, *secrets_in(self.home, secrets, _DAQS_OWN)]


def _written(log: Path, after: int) -> str:
    with log.open("rb") as file:
        file.seek(after)
        return file.read().decode(errors="replace")


@contextmanager
def running_world(home: Path) -> Iterator[World]:
    """All of it, in a home that is empty."""
    # Before the first process: by it those that are left are told.
    os.environ["CYGNO_HOME"] = str(home)
    loud = home / "python"
    loud.mkdir()
    (loud / "sitecustomize.py").write_text(_LOUD)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(loud), os.getenv("PYTHONPATH")]))
    with ExitStack() as cleanup:
        daq_nats = NatsServer(home / "daq-nats", home / "logs" / "daq-nats.log", name="DAQ's NATS")
        cleanup.callback(daq_nats.stop)
        daq_nats.start()
        access = BucketAccess("cygno-daq")
        s3 = S3Server(home / "daq-s3", home / "logs" / "daq-s3.log", [access])
        cleanup.callback(s3.stop)
        s3.start()
        store = cleanup.enter_context(FaultyStore(home / "store", s3).running())
        witness = Witness(daq_nats.url)
        settings: dict[str, object] = {
            "home": home,
            "daq_nats_url": daq_nats.url,
            "daq_timezone": "UTC",
            "download_ca_file": store.ca_file,
            "download_hosts": store.endpoint,
            "training_archive": _NO_TRAINING_SET,
            "webserver_port": free_port(),
        }
        stack = cleanup.enter_context(running_stack(settings, _say))
        instance = cleanup.enter_context(DagsterInstance.get())
        yield World(stack, s3, access, store, daq_nats, witness, instance, home)


def _say(line: str) -> None:
    print(f"    {line}", file=sys.stderr, flush=True)
