"""What a live event's run costs on Postgres, stock and ours, beside our SQLite: in a warm process.

The image is stored already, so that what is measured is decoding, two files and Dagster. Each
storage has a process of its own, and they take turns, so that a machine that is slower for a while
is so for all of them. Needs Debian's packages `postgresql` and `pgbouncer`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.live import dagster_home
from cygno_assets.services.guardian import guarded
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import Service, free_port
from cygno_assets_tests.scale.servers import PostgresServer, as_user, own_folder, server_folder
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SQLITE, STOCK, BOUNCER, BATCHED, OURS, ON_DISK = (
    "pooled SQLite",
    "dagster-postgres",
    "dagster-postgres, PgBouncer",
    "dagster-postgres, batched events",
    "pooled Postgres",
    "pooled Postgres, commits on disk",
)
WARM_UP = 10
_URL = "BENCHMARK_POSTGRES_URL"
_ON_DISK = "?options=-csynchronous_commit%3Don"
_BATCH = {"DAGSTER_EVENT_BATCH_SIZE": "50"}


def work() -> None:
    """In a process of its own: executes as many runs as each line of stdin says, and tells."""
    import sqlalchemy as db
    from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
    from dagster._core.code_pointer import ModuleCodePointer
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    from cygno_assets.engine.worker import execute
    from cygno_assets.names import LIVE_JOB
    from cygno_assets.partitions import daq_event_partitions

    counts = {"statements": 0, "connections": 0}

    def count(what: str) -> Any:
        def one_more(*_: object) -> None:
            counts[what] += 1

        return one_more

    db.event.listen(db.Engine, "before_cursor_execute", count("statements"))
    db.event.listen(db.pool.Pool, "connect", count("connections"))
    pointer = ModuleCodePointer("cygno_assets.definitions", "defs")
    job = ReconstructableRepository(pointer).get_reconstructable_job(LIVE_JOB)
    events = [path.stem for path in REAL_IMAGES]
    with DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(daq_event_partitions.name or "", events)
        for line in sys.stdin:
            runs = [
                instance.create_run_for_job(
                    job.get_definition(),
                    tags={"dagster/partition": events[n % len(events)]},
                    job_code_origin=job.get_python_origin(),
                ).run_id
                for n in range(int(line))
            ]
            before = dict(counts)
            began, cpu = time.monotonic(), time.process_time()
            for run_id in runs:
                execute(instance, run_id)
            took, spent = time.monotonic() - began, time.process_time() - cpu
            answer = {
                "wall_ms": 1000 * took / len(runs),
                "cpu_ms": 1000 * spent / len(runs),
                **{what: (counts[what] - before[what]) / len(runs) for what in counts},
            }
            done = instance.get_runs_count(
                RunsFilter(run_ids=runs, statuses=[DagsterRunStatus.SUCCESS])
            )
            print(json.dumps(answer if done == len(runs) else {"failed": len(runs) - done}))
            sys.stdout.flush()


@dataclass
class Peer:
    """A storage that is measured.

    Attributes:
        name: of it.
        process: that executes runs on it.
        servers: processes whose CPU is its, too.
        turns: what was measured.
    """

    name: str
    process: subprocess.Popen[str]
    servers: list[Service]
    turns: list[dict[str, float]] = field(default_factory=list)

    def turn(self, runs: int) -> None:
        """Has it execute so many runs.

        Raises:
            RuntimeError: one of them failed.
        """
        assert self.process.stdin is not None  # noqa: S101 – both are pipes
        assert self.process.stdout is not None  # noqa: S101
        before = _cpu_s(self.servers)
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline() or '{"failed": "all"}')
        if "failed" in found:
            raise RuntimeError(f"{self.name}: {found['failed']} runs failed")
        found["server_cpu_ms"] = 1000 * (_cpu_s(self.servers) - before) / runs
        self.turns.append(found)


def _cpu_s(servers: list[Service]) -> float:
    """CPU of these with their children, dead or alive."""
    processes = [psutil.Process(server.pid) for server in servers]
    processes += [child for process in processes for child in process.children(recursive=True)]
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def pgbouncer(folder: Path, server: PostgresServer) -> Service:
    """Starts a PgBouncer before a server, and waits until it listens; its port is in `argv`."""
    port = free_port()
    own_folder("postgres", folder)
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres"
        f" password={server.password}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n"
        "auth_type=any\npool_mode=transaction\nmax_client_conn=200\n"
    )
    service = Service(
        f"PgBouncer {port}",
        as_user("postgres", [shutil.which("pgbouncer") or "/usr/sbin/pgbouncer", str(config)]),
        folder.parent / "pgbouncer.log",
    )
    service.start().wait_ready(lambda: service.listens_on(port), 15)
    return service


@contextmanager
def running_peers(folder: Path) -> Iterator[list[Peer]]:
    """All of them, each with a process, a home and a database of its own."""
    with ExitStack() as cleanup:
        inbox = NatsServer(folder / "inbox", folder / "inbox.log", name="inbox", jetstream=True)
        server = PostgresServer(folder / "postgres")
        for needed in (inbox, server):
            cleanup.callback(needed.stop)
            needed.start()
        fill_inbox(
            inbox.url,
            [message(path.name, f"https://127.0.0.1/{path.name}") for path in REAL_IMAGES],
        )
        bouncer = pgbouncer(folder / "pgbouncer", server)
        cleanup.callback(bouncer.stop)
        bouncer_port = bouncer.name.rpartition(" ")[2]

        def peer(
            name: str, storage: Mapping[str, Any] | None, url: str, environ: Mapping[str, str]
        ) -> Peer:
            home = folder / name
            raw = home / "data" / "raw_image"
            raw.mkdir(parents=True)
            for path in REAL_IMAGES:
                shutil.copy(path, raw)
            configured = dagster_home(
                home / "configured",
                lambda config: config.update({"storage": storage} if storage else {}),
            )
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.postgres", "--work"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=os.environ
                    | {
                        "CYGNO_HOME": str(home),
                        "CYGNO_INBOX_URL": inbox.url,
                        "DAGSTER_HOME": str(configured),
                        _URL: url,
                    }
                    | dict(environ),
                )
            cleanup.callback(process.wait)
            cleanup.callback(process.kill)
            return Peer(name, process, [])

        def database() -> str:
            return server.url(server.make_database(), "postgresql+psycopg2")

        stock = {"postgres": {"postgres_url": {"env": _URL}}}
        ours = {
            "custom": {
                "module": "cygno_assets.engine.pooled_postgres",
                "class": "PooledPostgresStorage",
                "config": {"postgres_url": {"env": _URL}},
            }
        }
        through = database().replace(f":{server.port}/", f":{bouncer_port}/")
        peers = [
            peer(SQLITE, None, "", {}),
            peer(STOCK, stock, database(), {}),
            peer(BOUNCER, stock, through, {}),
            peer(BATCHED, stock, database(), _BATCH),
            peer(OURS, ours, database(), {}),
            peer(ON_DISK, ours, database() + _ON_DISK, {}),
        ]
        for one in peers[1:]:
            one.servers.append(server.service)
        peers[2].servers.append(bouncer)
        yield peers


def run(runs: int, turns: int, *, as_json: bool) -> int:
    """Measures them in turns, and prints."""
    with server_folder() as folder, running_peers(folder) as peers:
        for one in peers:
            one.turn(WARM_UP)
            one.turns.clear()
        for turn in range(turns):
            for one in peers if turn % 2 == 0 else peers[::-1]:
                one.turn(runs)
    [sqlite] = [one for one in peers if one.name == SQLITE]
    rows = [
        {
            "storage": one.name,
            **{
                f"{what}_ratio": median(
                    mine[what] / theirs[what]
                    for mine, theirs in zip(one.turns, sqlite.turns, strict=True)
                )
                for what in ("wall_ms", "cpu_ms")
            },
            **{what: median(turn[what] for turn in one.turns) for what in one.turns[0]},
        }
        for one in peers
    ]
    print(
        f"{'to pooled SQLite':36}{'wall':>6}{'CPU':>6}   a run: {'wall ms':>8}{'CPU ms':>8}"
        f"{'server ms':>10}{'statements':>12}{'connections':>13}"
    )
    for row in rows:
        print(
            f"{row['storage']:36}{row['wall_ms_ratio']:>6.2f}{row['cpu_ms_ratio']:>6.2f}"
            f"{'':10}{row['wall_ms']:>8.0f}{row['cpu_ms']:>8.0f}{row['server_cpu_ms']:>10.1f}"
            f"{row['statements']:>12.0f}{row['connections']:>13.0f}"
        )
    if as_json:
        print(json.dumps({"runs": runs, "turns": turns, "storages": rows}))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="in each turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return
    sys.exit(guarded(lambda: run(arguments.runs, arguments.turns, as_json=arguments.json)))


if __name__ == "__main__":
    main()
