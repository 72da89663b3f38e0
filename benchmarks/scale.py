"""Events a second on a site of several machines, all of them this one, beside the single machine.

Site: Postgres, RabbitMQ, S3, an inbox, the daemon, and one or two hosts of two Celery processes
each, which share nothing else. Single machine: the warm launcher, SQLite, a folder. Beside them the
warm launcher on the site's Postgres and S3, which tells what Celery costs, and dagster-celery's own
launcher, on our storage and on dagster-postgres' own. All with real work, announced at once; they
take turns, so that a machine that is slower for a while is so for all of them. In the end a host of
two is killed amid a burst.

Needs Debian's packages `postgresql` and `rabbitmq-server`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml
from dagster import DagsterRunStatus, RunsFilter

from benchmarks import live_throughput
from benchmarks.live import announced_by, cpu_with_children
from cygno_assets.names import PARTITION_TAG
from cygno_assets.services.guardian import guarded
from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.scale.site import WORKER, running_site

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cygno_assets_tests.scale.site import Site

SINGLE, WARM, ONE, TWO, STOCK_LAUNCHER, STOCK = (
    "single machine",
    "warm, Postgres and S3",
    "Celery, 1 host",
    "Celery, 2 hosts",
    "dagster-celery's launcher",
    "and dagster-postgres",
)
WARM_UP = 20
_MADE_S = 600.0
_BACKEND = "rpc://"
"""Of results: the broker; dagster-celery's default."""
_STOCK_WORKER = (
    *(sys.executable, "-m", "celery", "-A", "dagster_celery.app", "worker", "-Q", "dagster"),
    *("--concurrency", "2", "--loglevel", "INFO"),
)


@contextmanager
def site_of(hosts: int, which: str = TWO) -> Iterator[Site]:
    """A site whose hosts have executed something already."""
    with tempfile.TemporaryDirectory(
        prefix="cygno-benchmark-", ignore_cleanup_errors=True
    ) as folder:
        home = Path(folder)
        stock = which in {STOCK_LAUNCHER, STOCK}
        with running_site(
            home,
            hosts=hosts,
            config=configured(home / "configured", which),
            worker=_STOCK_WORKER if stock else WORKER,
            more={"PYTHONPATH": str(home / "configured")} if stock else {},
        ) as site:
            make(site, WARM_UP)
            yield site


def configured(folder: Path, which: str) -> Path:
    """A folder with the dagster.yaml of `deploy/`, but with parts of it taken out."""
    config = yaml.safe_load((CHECKOUT / "deploy" / "dagster.yaml").read_text())
    if which == WARM:
        single = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())
        config["run_launcher"] = single["run_launcher"]
    if which in {STOCK_LAUNCHER, STOCK}:
        config["run_launcher"] = {
            "module": "dagster_celery.launcher",
            "class": "CeleryRunLauncher",
            "config": {
                "broker": {"env": "CYGNO_BROKER_URL"},
                "backend": _BACKEND,
            },
        }
    if which == STOCK:
        config["storage"] = {"postgres": {"postgres_url": {"env": "CYGNO_POSTGRES_URL"}}}
    folder.mkdir(parents=True)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    # What dagster-celery's workers look for, by this name.
    (folder / "dagster_celery_config.py").write_text(
        f"import os\nbroker_url = os.environ['CYGNO_BROKER_URL']\nresult_backend = {_BACKEND!r}\n"
    )
    return folder


def make(site: Site, events: int) -> dict[str, tuple[float, float]]:
    """Has the DAQ announce so many at once; when each was announced and made, s since 1970.

    Raises:
        TimeoutError: not all of them were made.
    """
    announce(site, events)
    announced = announced_in(site)
    made = await_tensors(site, announced)
    return {event: (when, made[event]) for event, when in announced.items()}


def announce(site: Site, events: int) -> None:
    """Returns when all of them are announced."""
    site.begin()
    site.announce(events, "--burst")
    site.wait_for("they are announced", lambda: len(site.heard()) >= events, _MADE_S)


def announced_in(site: Site) -> dict[str, float]:
    """When each of them was, s since 1970, by the DAQ's own table."""
    [truth] = site.row.truths
    return announced_by(truth)


def await_tensors(site: Site, events: Collection[str]) -> dict[str, float]:
    """Waits for them; when each was made, s since 1970.

    Raises:
        TimeoutError: not all of them were.
    """
    if not site.wait_for("all are made", lambda: set(events) <= site.tensors().keys(), _MADE_S):
        raise TimeoutError("not all events were made")
    return site.tensors()


def throughput(which: str, events: int) -> dict[str, Any]:
    """Events a second and CPU s an event; and the connections of the database."""
    with site_of({WARM: 0, TWO: 2}.get(which, 1), which) as site:
        before = cpu_s(site)
        times = make(site, events)
        after = cpu_s(site)
        [(connections,)] = site.postgres.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
    ends = sorted(end for _, end in times.values())
    return {
        "events": events,
        "events_per_s": events / (ends[-1] - min(start for start, _ in times.values())),
        "steady_events_per_s": (len(ends) - 1) / (ends[-1] - ends[0]),
        "cpu_s_per_event": {part: (after[part] - before[part]) / events for part in after},
        "connections": connections,
    }


def cpu_s(site: Site) -> dict[str, float]:
    """CPU seconds spent so far."""
    dagster = site.stack.dagster
    parts = {
        "code server": [dagster.code_server],
        "workers": [host.service for host in site.hosts],
        "Postgres": [site.postgres.service],
        "broker": [site.broker.service],
        "S3": [site.s3_store.service],
    }
    spent = {
        part: sum(sum(cpu_with_children(service.pid)) for service in services)
        for part, services in parts.items()
    }
    spent["daemon"], warm = cpu_with_children(dagster.daemon.pid)
    spent["workers"] += warm
    return spent


def killed_host(events: int) -> dict[str, float]:
    """Kills one of two hosts amid a burst: runs that it had, and s until their events were made."""
    with site_of(2) as site:
        doomed = site.hosts[-1]
        begun = doomed.executed
        announce(site, events)
        site.wait_for("it is at it", lambda: doomed.executed > begun + events // 10, _MADE_S)
        killed = time.time()
        doomed.kill()
        made = await_tensors(site, announced_in(site))
        failed = site.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.FAILURE]))
        later = [made[run.tags[PARTITION_TAG]] - killed for run in failed]
    return {"runs": len(later), "seconds": max(later, default=0.0)}


def run(events: int, stock_events: int, turns: int, *, as_json: bool) -> int:
    """Measures and prints."""
    sizes = dict.fromkeys((SINGLE, WARM, ONE, TWO), events)
    sizes |= dict.fromkeys((STOCK_LAUNCHER, STOCK), stock_events)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
    for turn in range(turns):
        for name in list(results)[:: 1 if turn % 2 == 0 else -1]:
            measure = live_throughput.measure if name == SINGLE else partial(throughput, name)
            result = measure(sizes[name])
            results[name].append(result)
            print(f"turn {turn + 1}: {name} {result['events_per_s']:.1f}/s", file=sys.stderr)
    rates = {
        name: median(result["events_per_s"] for result in measured)
        for name, measured in results.items()
    }
    print(f"{'':26}{'ratio':>7}{'events/s':>10}{'steady':>9}{'connections':>13}   CPU s an event")
    for name, measured in results.items():
        cpu = {
            part: median(result["cpu_s_per_event"][part] for result in measured)
            for part in measured[0]["cpu_s_per_event"]
        }
        steady = median(result["steady_events_per_s"] for result in measured)
        print(
            f"{name:26}{rates[name] / rates[SINGLE]:>7.2f}{rates[name]:>10.2f}{steady:>9.2f}"
            f"{measured[-1].get('connections', '–'):>13}   "
            + ", ".join(f"{part} {seconds:.3f}" for part, seconds in cpu.items())
        )
    killed = killed_host(events)
    print(f"a host killed: {killed['runs']} runs again, the last {killed['seconds']:.1f} s later")
    if as_json:
        print(
            json.dumps(
                {
                    "celery_to_warm": rates[ONE] / rates[WARM],
                    "celery_to_stock": rates[ONE] / rates[STOCK],
                    "celery_to_single_machine": rates[ONE] / rates[SINGLE],
                    "celery_1_worker_events_per_s": rates[ONE],
                    "celery_2_workers_events_per_s": rates[TWO],
                    "single_machine_events_per_s": rates[SINGLE],
                    "warm_on_postgres_and_s3_events_per_s": rates[WARM],
                    "stock_launcher_events_per_s": rates[STOCK_LAUNCHER],
                    "stock_events_per_s": rates[STOCK],
                    "connections": results[TWO][-1]["connections"],
                    "killed_worker_runs": killed["runs"],
                    "killed_worker_seconds_lost": killed["seconds"],
                    "cpu_s_per_event": {
                        name: measured[-1]["cpu_s_per_event"] for name, measured in results.items()
                    },
                }
            )
        )
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--stock-events", type=int, default=60)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    sizes = (arguments.events, arguments.stock_events, arguments.turns)
    sys.exit(guarded(lambda: run(*sizes, as_json=arguments.json)))


if __name__ == "__main__":
    main()
