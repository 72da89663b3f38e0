"""The running system, a DAQ that announces, and the account of what became of each event.

What was announced is what a subscriber of the DAQ's own server has heard, beside the recorders.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import nats
import numpy as np
import psutil
from dagster import AssetRecordsFilter, DagsterInstance, DagsterRunStatus, RunsFilter

from cygno_assets.daq.download import content_md5
from cygno_assets.daq.simulator.bucket import Bucket
from cygno_assets.names import FINAL_TAG, PARTITION_TAG, PREPROCESSED_TENSOR
from cygno_assets.records.history import unfinished_runs
from cygno_assets.services.guardian import pause
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import Service, free_port
from cygno_assets.services.s3_server import BucketAccess, S3Server
from cygno_assets.services.stack import Stack, running_stack
from cygno_assets.services.supervisor import Supervisor
from cygno_assets_tests.chaos.store import FaultyStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nats.aio.msg import Msg

SUBJECT = "daq/data"
_POLL_S = 0.2
_NO_TRAINING_SET = "/no/training-set.zip"
_SIDE = 128


class Witness:
    """Hears what the DAQ's server delivers, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ready = threading.Event()
        self.messages: list[bytes] = []
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
            self.messages.append(message.data)

        await client.subscribe(SUBJECT, cb=hear)
        await client.flush()
        self._ready.set()
        await asyncio.Event().wait()

    def events(self, since: int) -> dict[str, bytes]:
        """The newest message of each event, from the message of this number on."""
        return {event_of(message): message for message in self.messages[since:]}


def event_of(message: bytes) -> str:
    """The event that a message announces."""
    return str(json.loads(message)["filename"]).rpartition(".")[0]


@dataclass
class Account:
    """What became of the events of one fault.

    Attributes:
        announced: by the DAQ's server.
        materialized: with a tensor.
        failed: for good, by kind.
        duplicated: with more than one successful run.
        lost: neither materialized nor failed for good.
        broken: files that are whole by their name and are not.
        recovered_s: from the end of the fault until all that was announced before was settled.
    """

    announced: int
    materialized: int
    failed: dict[str, int]
    duplicated: list[str]
    lost: list[str]
    broken: list[str]
    recovered_s: float

    @property
    def good(self) -> bool:
        """Nothing lost, nothing twice, nothing half."""
        return not (self.lost or self.duplicated or self.broken)


@dataclass
class World:
    """Everything that runs.

    Attributes:
        stack: the system.
        s3: the real object store of the DAQ.
        store: what stands before it.
        daq_nats: the DAQ's server.
        witness: of what it delivers.
        instance: Dagster's.
        home: folder of it all.
        others: the DAQ's servers, started again as the system's are: a DAQ has people too.
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
    _daq: Service | None = None
    _made: dict[str, float] = field(default_factory=dict)
    _seen: int = 0
    _seeds: int = 0

    def announce(self, events: int, *options: str) -> Service:
        """Has a new DAQ announce so many events, and returns at once; another seed each time."""
        self._seeds += 1
        bucket = self.s3.bucket(self.access)
        self._daq = Service(
            f"daq-{self._seeds}",
            [
                *(sys.executable, "-m", "cygno_assets.cli", "simulate", "daq"),
                *("--nats", self.daq_nats.url, "--timezone", "UTC"),
                *("--s3-endpoint", self.store.endpoint, "--bucket", self.access.bucket),
                *("--ca-file", str(self.store.ca_file)),
                *("--events", str(events), "--seed", str(self._seeds), *options),
                *("--truth", str(self.truth)),
            ],
            self.home / "logs" / "daq.log",
            {
                "AWS_ACCESS_KEY_ID": bucket.access_key_id,
                "AWS_SECRET_ACCESS_KEY": bucket.secret_access_key,
            },
        )
        return self._daq.start()

    @property
    def truth(self) -> Path:
        """What the last one has written of what it announced."""
        return self.home / f"truth-{self._seeds}.sqlite"

    @property
    def daq(self) -> Service:
        """The last one that was started."""
        assert self._daq is not None
        return self._daq

    def announced_anew(self, message: bytes) -> bytes:
        """The same image's announcement with another time and a fresh URL."""
        fields = json.loads(message)
        bucket = replace(
            self.s3.bucket(self.access), endpoint=self.store.endpoint, ca_file=self.store.ca_file
        )
        url = Bucket(bucket).presigned_url(fields["filename"], timedelta(hours=1))
        taken = str(datetime.now(UTC).replace(tzinfo=None))
        return json.dumps(fields | {"url": url, "time": taken}).encode()

    def publish(self, *messages: bytes) -> None:
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
        return next(s for s in self.stack.services if s.name.startswith("recorder"))

    def idle(self) -> bool:
        """Whether no run is under way."""
        return not unfinished_runs(self.instance)

    def workers(self) -> list[psutil.Process]:
        """The processes that execute runs."""
        children = psutil.Process(self.service("daemon").pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def pause(self, seconds: float) -> None:
        """Lets time go by; what has died is started again meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.keep_alive()
            pause(min(left, _POLL_S))

    def wait_for(self, what: str, happened: Any, timeout_s: float) -> bool:
        """Lets time go by until it has happened; False if it has not in time."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            self.keep_alive()
            if time.monotonic() > deadline:
                _say(f"after {timeout_s:g} s still not: {what}")
                return False
            pause(_POLL_S)
        return True

    def keep_alive(self) -> None:
        """Starts again what has died, as `up` does."""
        self.stack.keep_alive()
        self.others.look([self.daq_nats.service, self.s3.service])

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

    def failed(self, events: set[str]) -> dict[str, str]:
        """The kind of failure of those that failed for good and have no tensor."""
        if not events:
            return {}
        runs = self.instance.get_runs(
            RunsFilter(tags={PARTITION_TAG: sorted(events)}, statuses=[DagsterRunStatus.FAILURE])
        )
        return {
            run.tags[PARTITION_TAG]: run.tags[FINAL_TAG] for run in runs if FINAL_TAG in run.tags
        }

    def unsettled(self, events: set[str]) -> set[str]:
        """Those that have neither a tensor nor failed for good."""
        left = events - self.tensors().keys()
        return left - self.failed(left).keys()

    def account(self, events: set[str], recovered_s: float) -> Account:
        """What became of these events."""
        made = events & self.tensors().keys()
        failed = self.failed(events - made)
        kinds: dict[str, int] = {}
        for kind in failed.values():
            kinds[kind] = kinds.get(kind, 0) + 1
        good: dict[str, int] = {}
        for run in self.instance.get_runs(
            RunsFilter(tags={PARTITION_TAG: sorted(events)}, statuses=[DagsterRunStatus.SUCCESS])
        ):
            good[run.tags[PARTITION_TAG]] = good.get(run.tags[PARTITION_TAG], 0) + 1
        return Account(
            len(events),
            len(made),
            kinds,
            sorted(event for event, runs in good.items() if runs > 1),
            sorted(events - made - failed.keys()),
            [*self._broken_images(events), *self._broken_tensors(events)],
            recovered_s,
        )

    def _broken_images(self, events: set[str]) -> Iterator[str]:
        for event in events:
            file = self.home / "data" / "raw_image" / f"{event}.jpg"
            if file.exists() and not event.endswith(content_md5(file.read_bytes())):
                yield str(file)

    def _broken_tensors(self, events: set[str]) -> Iterator[str]:
        for event in events:
            file = self.home / "data" / "preprocessed_tensor" / f"{event}.npy"
            try:
                whole = not file.exists() or np.load(file).shape == (_SIDE, _SIDE)
            except (ValueError, EOFError):
                whole = False
            if not whole:
                yield str(file)


@contextmanager
def running_world(home: Path) -> Iterator[World]:
    """All of it, in a home that is empty."""
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
        os.environ["CYGNO_HOME"] = str(home)
        stack = cleanup.enter_context(running_stack(settings, _say))
        instance = cleanup.enter_context(DagsterInstance.get())
        yield World(stack, s3, access, store, daq_nats, witness, instance, home)


def _say(line: str) -> None:
    print(f"    {line}", file=sys.stderr, flush=True)
