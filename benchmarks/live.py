"""The whole live side, on servers of its own, with events announced as a benchmark wants them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from cygno_assets.services.process import Service, free_port
from cygno_assets.services.stack import Stack, running_daq_servers, running_stack
from cygno_assets.settings import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dagster import DagsterInstance

    from cygno_assets.services.stack import DaqServers

ENGINE_BLOCKS = ("run_launcher", "storage", "compute_logs")
STOCK_LIMITS = {"dagster/backfill": 1, "cygno/live": 3}
NO_TRAINING_SET = "/no/training-set.zip"


def stock(config: dict[str, Any]) -> None:
    """Takes the engine out of what dagster.yaml says, as docs/engine.md tells how."""
    for block in ENGINE_BLOCKS:
        del config[block]
    queue = config["run_coordinator"]["config"]
    queue["max_concurrent_runs"] = 4
    for limit in queue["tag_concurrency_limits"]:
        limit["limit"] = STOCK_LIMITS[limit["key"]]


def dagster_home(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A DAGSTER_HOME whose dagster.yaml is ours with a change."""
    config = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())
    change(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    return folder


@dataclass
class Live:
    """A running system and the simulated DAQ's servers.

    Attributes:
        stack: the system.
        daq: the servers.
        instance: Dagster's, in this process.
        home: folder of it all.
        seen: storage id of the last materialization that was read.
        made: when each tensor of this session was materialized, as far as it was read.
    """

    stack: Stack
    daq: DaqServers
    instance: DagsterInstance
    home: Path
    seen: int
    made: dict[str, float] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        """Dagster's, with the engine's storage."""
        return self.stack.settings.dagster_state / "dagster.db"

    def announce(self, events: int, seed: int, *options: str) -> None:
        """Has the DAQ announce so many events; returns when it has."""
        service = Service(
            f"daq-{seed}",
            [
                *(sys.executable, "-m", "cygno_assets.cli", "simulate", "daq"),
                *("--nats", self.daq.nats_url, "--timezone", "UTC"),
                *("--s3-endpoint", self.daq.bucket.endpoint, "--bucket", self.daq.bucket.bucket),
                *("--ca-file", str(self.daq.bucket.ca_file)),
                *("--events", str(events), "--seed", str(seed), *options),
                *("--truth", str(self.home / f"truth-{seed}.sqlite")),
            ],
            self.home / "logs" / "daq.log",
            {
                "AWS_ACCESS_KEY_ID": self.daq.bucket.access_key_id,
                "AWS_SECRET_ACCESS_KEY": self.daq.bucket.secret_access_key,
            },
        )
        try:
            service.start()
            while not service.ended_well:
                service.check_alive(may_end=True)
                time.sleep(0.02)
        finally:
            service.stop()

    def announced(self, seed: int) -> dict[str, float]:
        """When each event was acquired, by event: the DAQ's own table."""
        return announced_by(self.home / f"truth-{seed}.sqlite")

    def tensors(self) -> dict[str, float]:
        """When each event's tensor was materialized in this session, by event."""
        from dagster import AssetRecordsFilter

        from cygno_assets.names import PREPROCESSED_TENSOR

        while True:  # only what is new is asked for, for the asking is measured with the rest
            page = self.instance.fetch_materializations(
                AssetRecordsFilter(asset_key=PREPROCESSED_TENSOR, after_storage_id=self.seen),
                limit=1000,
                ascending=True,
            )
            if not page.records:
                return self.made
            for record in page.records:
                self.made.setdefault(str(record.partition_key), record.timestamp)
            self.seen = page.records[-1].storage_id

    def check_alive(self) -> None:
        """Raises ServiceError if a process has ended by itself: nothing is measured then."""
        for service in self.stack.services:
            service.check_alive()

    def wait_for(self, events: int, timeout_s: float) -> None:
        """Waits until so many events have a tensor, counted from the start of this session.

        Raises:
            TimeoutError: they have not in time.
        """
        deadline = time.monotonic() + timeout_s
        while (done := len(self.tensors())) < events:
            self.check_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{done} of {events} events after {timeout_s:g} s")
            time.sleep(0.5)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds spent so far: daemon, code server, workers (whatever executes runs), rest."""
        dagster = self.stack.dagster
        daemon, workers = cpu_with_children(dagster.daemon.pid)
        code_server, runs = cpu_with_children(dagster.code_server.pid, own_children=2)
        rest = sum(
            sum(cpu_with_children(service.pid))
            for service in self.stack.services
            if service not in (dagster.daemon, dagster.code_server)
        )
        return {
            "daemon": daemon,
            "code server": code_server,
            "workers": workers + runs,
            "rest": rest,
        }


def announced_by(truth: Path) -> dict[str, float]:
    """When each event was acquired, by a simulated DAQ's table; s since 1970."""
    from datetime import UTC, datetime

    from cygno_assets.daq.simulator.truth import TruthTable

    return {
        row.filename.rpartition(".")[0]: datetime.fromisoformat(str(row.time))
        .replace(tzinfo=UTC)
        .timestamp()
        for row in TruthTable(truth).rows()
    }


def cpu_with_children(pid: int, own_children: int = 0) -> tuple[float, float]:
    """CPU of a process with its first generations of children, and of all below, dead or alive."""
    own = below = 0.0
    generations = [(psutil.Process(pid), 0)]
    while generations:
        process, depth = generations.pop()
        try:
            times = process.cpu_times()
            children = process.children()
        except psutil.Error:
            continue
        mine = times.user + times.system
        gone = times.children_user + times.children_system
        if depth <= own_children:
            own += mine
        else:
            below += mine
        below += gone
        generations += [(child, depth + 1) for child in children]
    return own, below


@contextmanager
def running_live(
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
    definitions: str = "cygno_assets.definitions",
    home: Path | None = None,
    **overrides: Any,
) -> Iterator[Live]:
    """The whole live side; the training set stays out of it.

    Args:
        change: of what dagster.yaml says; `stock` takes the engine out.
        definitions: module that holds them.
        home: a home that stays; None: a new one that is deleted in the end.
        overrides: settings by field name.
    """
    from dagster import AssetRecordsFilter, DagsterInstance

    from cygno_assets.names import PREPROCESSED_TENSOR

    before = {name: os.environ.get(name) for name in ("DAGSTER_HOME", "CYGNO_HOME")}
    with ExitStack() as cleanup:
        if home is None:
            folder = tempfile.TemporaryDirectory(
                prefix="cygno-benchmark-", ignore_cleanup_errors=True
            )
            home = Path(cleanup.enter_context(folder))
        cleanup.callback(_restore_environment, before)
        daq = cleanup.enter_context(running_daq_servers(home))
        settings = {
            "home": home,
            "daq_nats_url": daq.nats_url,
            "daq_timezone": "UTC",
            "download_hosts": daq.bucket.endpoint,
            "download_ca_file": daq.bucket.ca_file,
            "training_archive": NO_TRAINING_SET,
            "webserver_port": free_port(),  # 3000 is for people
            **overrides,
        }
        if change is not None:
            settings["dagster_config"] = dagster_home(home / "configured", change)
        stack = cleanup.enter_context(
            running_stack(settings, lambda _: None, definitions=definitions)
        )
        stack.services.extend(daq.services)
        instance = cleanup.enter_context(DagsterInstance.get())
        last = instance.fetch_materializations(
            AssetRecordsFilter(asset_key=PREPROCESSED_TENSOR), limit=1
        ).records
        yield Live(stack, daq, instance, home, last[0].storage_id if last else 0)


def _restore_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
