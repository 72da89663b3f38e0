"""How long events wait on a site under so many a day: a simulation, not a measurement.

Where arithmetic does not suffice: events come in bursts, the daemon looks once a second, and what
it does with each event it does one after the other. What an event costs is what `benchmarks.scale`
and `benchmarks.live_throughput` have measured. The first two rows are of loads whose waits
`benchmarks.live_latency` measures, to compare.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import dataclass

import numpy as np

_DAY_S = 86_400.0
_SIMULATED_S = 3600.0


@dataclass(frozen=True)
class Costs:
    """Seconds.

    Attributes:
        tick_s: between two looks of the sensor, and of the queue.
        request_s: of the daemon, for each run that it requests.
        launch_s: of the daemon, for each run that it launches.
        run_s: that a process takes for an event.
        at_once: runs of events that may be unfinished; more wait in the inbox.
    """

    tick_s: float = 1.0
    request_s: float = 0.013
    launch_s: float = 0.006
    run_s: float = 0.1
    at_once: int = 100


def waits(arrivals: np.ndarray, processes: int, costs: Costs) -> np.ndarray:
    """Seconds from arrival to tensor.

    Args:
        arrivals: seconds, ascending, shape (n,).
        processes: for events, on all hosts.
        costs: of each part.

    Returns:
        Seconds, shape (n,).
    """
    made = np.full(len(arrivals), np.inf)
    free = [0.0] * processes
    ends: list[float] = []  # of runs under way
    requested: list[int] = []
    read = 0
    # Two loops that know nothing of each other, of one process: while one works, the other waits.
    due = {"sensor": 0.0, "queue": costs.tick_s / 2}
    now = 0.0
    while read < len(arrivals) or requested:
        loop = min(due, key=lambda name: due[name])
        now = max(now, due[loop])
        due[loop] = now + costs.tick_s
        if loop == "sensor":
            while ends and ends[0] <= now:
                heapq.heappop(ends)
            room = costs.at_once - len(requested) - len(ends)
            come = int(np.searchsorted(arrivals, now, side="right")) - read
            for _ in range(min(room, come)):
                now += costs.request_s
                requested.append(read)
                read += 1
        else:
            for event in requested:
                now += costs.launch_s
                made[event] = max(now, heapq.heappop(free)) + costs.run_s
                heapq.heappush(free, made[event])
                heapq.heappush(ends, made[event])
            requested.clear()
        due[loop] = max(due[loop], now)
    waited: np.ndarray = made - arrivals
    return waited


def arrivals(per_day: float, burst: float, seed: int) -> np.ndarray:
    """An hour of Poisson arrivals, at the mean rate but for a minute at `burst` times it."""
    rng = np.random.default_rng(seed)
    rate = per_day / _DAY_S
    minutes = [(0.0, 1800.0, rate), (1800.0, 1860.0, rate * burst), (1860.0, _SIMULATED_S, rate)]
    parts = [
        np.sort(rng.uniform(begin, end, rng.poisson(hz * (end - begin))))
        for begin, end, hz in minutes
    ]
    return np.concatenate(parts)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--burst", type=float, default=10.0, help="times the mean, for a minute")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    costs = Costs()
    rows = []
    loads = [(0.43 * _DAY_S, 1.0, 2), (5 * _DAY_S, 1.0, 2)]
    loads += [(10.0**n, arguments.burst, p) for n, p in ((4, 2), (5, 2), (5, 4), (6, 4), (6, 8))]
    loads += [(10.0**6, arguments.burst, 32), (4e6, 1.0, 32)]
    head = ("events/day", "mean Hz", "burst", "processes", "p50 s", "p95 s", "longest s")
    print("".join(name.rjust(11) for name in head))
    for per_day, burst, processes in loads:
        come = arrivals(per_day, burst, 1)
        waited = waits(come, processes, costs)
        p50, p95 = np.quantile(waited, (0.5, 0.95))
        rows.append([per_day, burst, processes, p50, p95, float(waited.max())])
        print(
            f"{per_day:>11,.0f}{per_day / _DAY_S:>11.2f}{burst:>11.0f}{processes:>11}"
            f"{p50:>11.2f}{p95:>11.2f}{waited.max():>11.1f}"
        )
    if arguments.json:
        names = ("events_per_day", "burst", "processes", "p50_s", "p95_s", "max_s")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))


if __name__ == "__main__":
    main()
