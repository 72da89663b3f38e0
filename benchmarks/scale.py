"""Events a second on a site of several machines, all of them this one, beside the single machine.

Site: Postgres, Redis, S3, an inbox, the daemon, and one or two hosts of two Celery processes each,
which share nothing else. Single machine: the warm launcher, SQLite, a folder. All with real work,
announced at once; they take turns, so that a machine that is slower for a while is so for all of
them. Then one of two hosts is killed amid a burst.

Needs Debian's packages `postgresql` and `redis-server`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dagster import DagsterRunStatus, RunsFilter

from benchmarks import live_throughput
from benchmarks.live import announced_by, cpu_with_children
from cygno_assets.names import PARTITION_TAG
from cygno_assets.services.guardian import guarded
from cygno_assets_tests.scale.site import running_site

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cygno_assets_tests.scale.site import Site

SINGLE, ONE, TWO = "single machine", "Celery, 1 host", "Celery, 2 hosts"
WARM_UP = 20
_MADE_S = 600.0


@contextmanager
def site_of(hosts: int) -> Iterator[Site]:
    """A site whose hosts have executed something already."""
    with (
        tempfile.TemporaryDirectory(
            prefix="cygno-benchmark-", ignore_cleanup_errors=True
        ) as folder,
        running_site(Path(folder), hosts=hosts) as site,
    ):
        make(site, WARM_UP)
        yield site


def make(site: Site, events: int) -> dict[str, tuple[float, float]]:
    """Has the DAQ announce so many at once; when each was announced and made, s since 1970.

    Raises:
        TimeoutError: not all of them were made.
    """
    announce(site, events)
    announced = announced_by(site.truth)
    made = await_tensors(site, announced)
    return {event: (when, made[event]) for event, when in announced.items()}


def announce(site: Site, events: int) -> None:
    """Returns when all of them are announced."""
    wanted = len(site.witness.messages) + events
    site.announce(events, "--burst")
    site.wait_for("they are announced", lambda: len(site.witness.messages) >= wanted, _MADE_S)


def await_tensors(site: Site, events: Collection[str]) -> dict[str, float]:
    """Waits for them; when each was made, s since 1970.

    Raises:
        TimeoutError: not all of them were.
    """
    if not site.wait_for("all are made", lambda: set(events) <= site.tensors().keys(), _MADE_S):
        raise TimeoutError("not all events were made")
    return site.tensors()


def throughput(hosts: int, events: int) -> dict[str, Any]:
    """Events a second and CPU s an event; and what the database is asked for."""
    with site_of(hosts) as site:
        before = cpu_s(site)
        times = make(site, events)
        after = cpu_s(site)
        [(connections,)] = site.postgres.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
        [(size,)] = site.postgres.ask("SELECT pg_database_size('postgres')")
    ends = sorted(end for _, end in times.values())
    return {
        "events": events,
        "events_per_s": events / (ends[-1] - min(start for start, _ in times.values())),
        "steady_events_per_s": (len(ends) - 1) / (ends[-1] - ends[0]),
        "cpu_s_per_event": {part: (after[part] - before[part]) / events for part in after},
        "connections": connections,
        "database_bytes": size,
    }


def cpu_s(site: Site) -> dict[str, float]:
    """CPU seconds spent so far."""
    dagster = site.stack.dagster
    parts = {
        "daemon": [dagster.daemon],
        "code server": [dagster.code_server],
        "workers": [host.service for host in site.hosts],
        "Postgres": [site.postgres.service],
        "broker": [site.broker.service],
        "S3": [site.s3_store.service],
    }
    return {
        part: sum(sum(cpu_with_children(service.pid)) for service in services)
        for part, services in parts.items()
    }


def killed_host(events: int) -> dict[str, float]:
    """Kills one of two hosts amid a burst: runs that it had, and s until their events were made."""
    with site_of(2) as site:
        doomed = site.hosts[-1]
        begun = doomed.executed
        announce(site, events)
        site.wait_for("it is at it", lambda: doomed.executed > begun + events // 10, _MADE_S)
        killed = time.time()
        doomed.kill()
        made = await_tensors(site, announced_by(site.truth))
        failed = site.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.FAILURE]))
        later = [made[run.tags[PARTITION_TAG]] - killed for run in failed]
    return {"runs": len(later), "seconds": max(later, default=0.0)}


def run(events: int, turns: int, *, as_json: bool) -> int:
    """Measures and prints."""
    results: dict[str, list[dict[str, Any]]] = {SINGLE: [], ONE: [], TWO: []}
    for turn in range(turns):
        for name in list(results)[:: 1 if turn % 2 == 0 else -1]:
            hosts = {ONE: 1, TWO: 2}.get(name)
            result = throughput(hosts, events) if hosts else live_throughput.measure(events)
            results[name].append(result)
            print(f"turn {turn + 1}: {name} {result['events_per_s']:.1f}/s", file=sys.stderr)
    rates = {
        name: median(result["events_per_s"] for result in measured)
        for name, measured in results.items()
    }
    print(f"{'':18}{'ratio':>7}{'events/s':>10}{'steady':>9}{'connections':>13}   CPU s an event")
    for name, measured in results.items():
        last = measured[-1]
        cpu = ", ".join(f"{part} {s:.3f}" for part, s in last["cpu_s_per_event"].items())
        steady = median(result["steady_events_per_s"] for result in measured)
        print(
            f"{name:18}{rates[name] / rates[SINGLE]:>7.2f}{rates[name]:>10.2f}{steady:>9.2f}"
            f"{last.get('connections', '–'):>13}   {cpu}"
        )
    killed = killed_host(events)
    print(f"a host killed: {killed['runs']} runs again, the last {killed['seconds']:.1f} s later")
    if as_json:
        print(
            json.dumps(
                {
                    "ratio_1_host": rates[ONE] / rates[SINGLE],
                    "ratio_2_hosts": rates[TWO] / rates[SINGLE],
                    "celery_1_worker_events_per_s": rates[ONE],
                    "celery_2_workers_events_per_s": rates[TWO],
                    "single_machine_events_per_s": rates[SINGLE],
                    "connections": results[TWO][-1]["connections"],
                    "killed_worker_runs": killed["runs"],
                    "killed_worker_seconds_lost": killed["seconds"],
                    "cpu_s_per_event": results[TWO][-1]["cpu_s_per_event"],
                    "single_machine_cpu_s_per_event": results[SINGLE][-1]["cpu_s_per_event"],
                }
            )
        )
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run(arguments.events, arguments.turns, as_json=arguments.json)))


if __name__ == "__main__":
    main()
