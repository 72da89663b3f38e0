"""A site of several machines: worker hosts that share nothing but database, broker, inbox and S3.

Each host is a process tree with a home of its own. The rest, the DAQ and the account of what
became of its events are those of the chaos (chaos/world.py).
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dagster import DagsterInstance

from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import Service, free_port
from cygno_assets.services.s3_server import BucketAccess, S3Server
from cygno_assets.services.stack import running_stack
from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.chaos.store import FaultyStore
from cygno_assets_tests.chaos.world import Witness, World
from cygno_assets_tests.end_to_end.running import PROGRAM, processes_of
from cygno_assets_tests.scale.servers import PostgresServer, RabbitServer, server_folder
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import psutil

    from cygno_assets.daq.simulator.bucket import BucketSettings

ARCHIVE = "training_set.zip"
"""Key of the training set in the store's bucket, where nobody has put one yet."""
WORKER = (str(PROGRAM), "worker", "--live", "2", "--background", "1")


@dataclass
class Host:
    """One machine of workers.

    Attributes:
        home: its own.
        service: `cygno-assets worker`.
    """

    home: Path
    service: Service

    @property
    def log(self) -> str:
        """What its workers have written."""
        return "".join(file.read_text() for file in sorted((self.home / "logs").glob("*.log")))

    @property
    def backfilled(self) -> int:
        """Runs of backfills that it has begun, or been given."""
        return (self.home / "logs" / "background-worker.log").read_text().count("] received")

    @property
    def executed(self) -> int:
        """Runs that it has begun, or been given."""
        return self.log.count("] received")

    def processes(self) -> list[psutil.Process]:
        """All of it."""
        return processes_of(self.home)

    def is_ready(self) -> bool:
        """Whether it takes runs."""
        return " ready." in self.log

    def kill(self) -> None:
        """As if its power were cut."""
        for process in self.processes():
            process.kill()
        self.service.stop()


@dataclass
class Site(World):
    """The machine with daemon and web UI, what all machines share, and the hosts.

    Attributes:
        postgres: Dagster's state.
        broker: brings the runs.
        s3_store: of images and tensors; the DAQ has its own.
        bucket: in it.
        environ: settings that all machines have.
        worker: what a host runs.
        hosts: the machines of workers.
    """

    postgres: PostgresServer = field(kw_only=True)
    broker: RabbitServer = field(kw_only=True)
    s3_store: S3Server = field(kw_only=True)
    bucket: BucketSettings = field(kw_only=True)
    environ: Mapping[str, str] = field(kw_only=True)
    worker: Sequence[str] = field(kw_only=True)
    hosts: list[Host] = field(kw_only=True, default_factory=list)

    def add_host(self) -> Host:
        """Starts a machine of workers, and waits until it takes runs."""
        home = self.home / f"host-{len(self.hosts) + 1}"
        service = Service(
            home.name,
            self.worker,
            home / "logs" / "worker.log",
            {**self.environ, "CYGNO_HOME": str(home)},
        )
        host = Host(home, service.start())
        self.hosts.append(host)
        wait_until(f"{home.name} takes runs", host.is_ready, 60)
        return host


@contextmanager
def running_site(
    home: Path,
    *,
    hosts: int = 2,
    config: Path = CHECKOUT / "deploy",
    worker: Sequence[str] = WORKER,
    more: Mapping[str, str] | None = None,
) -> Iterator[Site]:
    """All of it, in a home that is empty.

    Args:
        home: of the machine with the daemon; below it are those of the hosts.
        hosts: so many.
        config: folder of dagster.yaml.
        worker: what a host runs; two processes for events.
        more: settings of all machines.
    """
    with ExitStack() as cleanup:
        logs = home / "logs"
        daq_nats = NatsServer(home / "daq-nats", logs / "daq-nats.log", name="DAQ's NATS")
        inbox = NatsServer(home / "inbox-server", logs / "inbox.log", name="inbox", jetstream=True)
        daq_access, store_access = BucketAccess("cygno-daq"), BucketAccess("cygno-store")
        s3 = S3Server(home / "daq-s3", logs / "daq-s3.log", [daq_access])
        s3_store = S3Server(home / "store-s3", logs / "store-s3.log", [store_access])
        postgres = PostgresServer(cleanup.enter_context(server_folder()))
        broker = RabbitServer(home / "broker", logs / "broker.log")
        for server in (daq_nats, inbox, s3, s3_store, postgres, broker):
            cleanup.callback(server.stop)
            server.start()
        store = cleanup.enter_context(FaultyStore(home / "store", s3).running())
        bucket = s3_store.bucket(store_access)
        environ = {
            "CYGNO_DAGSTER_CONFIG": str(config),
            "DAGSTER_HOME": str(config),
            # By the driver's name, for dagster-postgres' own storage, which benchmarks compare.
            "CYGNO_POSTGRES_URL": postgres.url(scheme="postgresql+psycopg2"),
            "CYGNO_BROKER_URL": broker.url,
            "CYGNO_INBOX_URL": inbox.url,
            "CYGNO_STORAGE_URL": f"s3://{store_access.bucket}/cygno",
            "CYGNO_STORAGE_S3_ENDPOINT": bucket.endpoint,
            "CYGNO_STORAGE_S3_REGION": bucket.region,
            "CYGNO_STORAGE_S3_ACCESS_KEY_ID": bucket.access_key_id,
            "CYGNO_STORAGE_S3_SECRET_ACCESS_KEY": bucket.secret_access_key,
            "CYGNO_STORAGE_S3_CA_FILE": str(bucket.ca_file),
            "CYGNO_DAQ_NATS_URL": daq_nats.url,
            "CYGNO_DOWNLOAD_CA_FILE": str(store.ca_file),
            "CYGNO_DOWNLOAD_HOSTS": store.endpoint,
            "CYGNO_TRAINING_ARCHIVE": f"s3://{store_access.bucket}/{ARCHIVE}",
            "CYGNO_TRAINING_ARCHIVE_CHECK_S": "1",
            **(more or {}),
        }
        cleanup.callback(
            _put_back,
            {name: os.environ.get(name) for name in (*environ, "CYGNO_HOME")},
        )
        os.environ.update(environ, CYGNO_HOME=str(home))
        stack = cleanup.enter_context(running_stack({"webserver_port": free_port()}, _say))
        instance = cleanup.enter_context(DagsterInstance.get())
        site = Site(
            stack,
            s3,
            daq_access,
            store,
            daq_nats,
            Witness(daq_nats.url),
            instance,
            home,
            postgres=postgres,
            broker=broker,
            s3_store=s3_store,
            bucket=bucket,
            environ=environ,
            worker=worker,
        )
        cleanup.callback(_end, site)
        for _ in range(hosts):
            site.add_host()
        yield site


def _end(site: Site) -> None:
    for host in site.hosts:
        host.service.stop()
        host.kill()


def _put_back(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _say(line: str) -> None:
    print(f"    {line}", file=sys.stderr, flush=True)
