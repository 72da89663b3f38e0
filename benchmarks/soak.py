"""5 events/s for a while: what each process keeps of memory and of open files, and the latency.

Memory is what a process has for itself alone (USS). Its slope is fitted to the second half of the
time, when what is loaded and cached once is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks.live import running_live
from cygno_assets.services.guardian import guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.live import Live

RATE = 5.0
EVERY_S = 10.0
SEED = 1


def processes(live: Live) -> Iterator[tuple[str, psutil.Process]]:
    """Each process of the system by what it is; the workers are taken together."""
    for service in live.stack.services:
        first = psutil.Process(service.pid)
        yield service.name, first
        for child in first.children(recursive=True):
            yield f"{service.name}'s processes", child


def look(live: Live) -> dict[str, tuple[float, int]]:
    """MB of memory and open files, by what the process is."""
    found: dict[str, tuple[float, int]] = {}
    for name, process in processes(live):
        try:
            memory, files = process.memory_full_info().uss / 1e6, process.num_fds()
        except psutil.Error:
            continue  # it ended meanwhile
        before = found.get(name, (0.0, 0))
        found[name] = (before[0] + memory, before[1] + files)
    return found


def run(minutes: float, *, as_json: bool) -> int:
    """Announces, looks every ten seconds, and prints."""
    events = round(60 * minutes * RATE)
    seen: list[tuple[float, dict[str, tuple[float, int]]]] = []
    with running_live() as live, ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        announcing = pool.submit(live.announce, events, SEED, "--rate", str(RATE))
        while not announcing.done():
            seen.append((time.monotonic() - began, look(live)))
            made = len(live.tensors())
            print(
                f"\r{seen[-1][0] / 60:.1f} min, {made} of {events} events", end="", file=sys.stderr
            )
            time.sleep(EVERY_S)
        announcing.result()
        live.wait_for(events, 600)
        seen.append((time.monotonic() - began, look(live)))
        print(file=sys.stderr)
        acquired, made_at = live.announced(SEED), live.tensors()
        database = live.database.stat().st_size
    latency = [made_at[event] - at for event, at in sorted(acquired.items(), key=lambda e: e[1])]
    third = max(1, len(latency) // 3)
    p95 = [float(np.percentile(part, 95)) for part in (latency[:third], latency[-third:])]
    report = [_of_process(name, seen) for name in seen[-1][1]]
    print(f"{'process':28}{'MB first':>10}{'half':>8}{'last':>8}{'MB/hour':>9}{'files':>12}")
    for row in report:
        print(
            f"{row['process']:28}{row['mb_first']:>10.0f}{row['mb_half']:>8.0f}{row['mb_last']:>8.0f}"
            f"{row['mb_per_hour']:>9.1f}{row['files_half']:>7} → {row['files_last']}"
        )
    print(
        f"{len(latency)} of {events} events; p95 {p95[0]:.2f} s in the first third of the time, "
        f"{p95[1]:.2f} s in the last; {database / events / 1e3:.0f} kB of database an event"
    )
    if as_json:
        print(
            json.dumps(
                {
                    "minutes": minutes,
                    "events": len(latency),
                    "p95_s_first_third": p95[0],
                    "p95_s_last_third": p95[1],
                    "processes": report,
                }
            )
        )
    return 0


def _of_process(
    name: str, seen: list[tuple[float, dict[str, tuple[float, int]]]]
) -> dict[str, Any]:
    points = [(at, *what[name]) for at, what in seen if name in what]
    half = points[len(points) // 2 :]
    slope = 0.0
    if len(half) > 1:
        slope = 3600 * linear_regression([p[0] for p in half], [p[1] for p in half]).slope
    return {
        "process": name,
        "mb_first": points[0][1],
        "mb_half": half[0][1],
        "mb_last": half[-1][1],
        "mb_per_hour": slope,
        "files_half": half[0][2],
        "files_last": half[-1][2],
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run(arguments.minutes, as_json=arguments.json)))


if __name__ == "__main__":
    main()
