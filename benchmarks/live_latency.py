"""From acquisition to tensor, for Poisson arrivals: each stage, and the whole.

The stages: announced → recorded by the inbox → run requested → run started → tensor.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.live import running_live
from cygno_assets.services.guardian import guarded

if TYPE_CHECKING:
    from benchmarks.live import Live

RATES: tuple[tuple[float, int], ...] = ((0.43, 60), (5.0, 300))
"""Events a second, as the school measured them in two years, and how many are announced."""
WARM_UP = 4
STAGES = ("recorded", "requested", "started", "tensor")


def measure(live: Live, rate: float, events: int, seed: int) -> dict[str, Any]:
    """Seconds from acquisition to each stage, of all events."""
    from dagster import RunsFilter

    from cygno_assets.daq.inbox import Inbox

    before = len(live.tensors())
    live.announce(events, seed, "--rate", str(rate))
    live.wait_for(before + events, 60 + 5 * events)
    acquired, tensors = live.announced(seed), live.tensors()
    _, messages = Inbox(live.stack.settings.resolve_inbox_url).read_after(0, limit=10**6)
    recorded = {
        str(message.event_id): message.received.timestamp()
        for message in messages
        if message.received is not None
    }
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for record in live.instance.get_run_records(RunsFilter(job_name="live_event")):
        event = record.dagster_run.tags["dagster/partition"]
        if event not in acquired:
            continue
        at = {
            "recorded": recorded[event],
            "requested": record.create_timestamp.timestamp(),
            "started": float(record.start_time or np.nan),
            "tensor": tensors[event],
        }
        for stage in STAGES:
            seconds[stage].append(at[stage] - acquired[event])
    return {
        "events_per_s": rate,
        "events": events,
        **{f"{stage}_s": _percentiles(seconds[stage]) for stage in STAGES},
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95, largest = np.percentile(seconds, [50, 95, 100])
    return {"p50": float(p50), "p95": float(p95), "max": float(largest)}


def run(*, as_json: bool) -> int:
    """Measures each rate and prints it."""
    results = []
    with running_live() as live:
        live.announce(WARM_UP, 1, "--burst")
        live.wait_for(WARM_UP, 300)
        for seed, (rate, events) in enumerate(RATES, start=2):
            results.append(measure(live, rate, events, seed))
    print(f"{'events/s':>8}{'events':>8}  {'to stage':10}{'p50 s':>8}{'p95 s':>8}{'max s':>8}")
    for result in results:
        for stage in STAGES:
            found = result[f"{stage}_s"]
            print(
                f"{result['events_per_s']:>8}{result['events']:>8}  {stage:10}"
                f"{found['p50']:>8.2f}{found['p95']:>8.2f}{found['max']:>8.2f}"
            )
    if as_json:
        rates = [
            {
                "events_per_s": result["events_per_s"],
                **{f"{name}_s": value for name, value in result["tensor_s"].items()},
            }
            for result in results
        ]
        print(json.dumps({"rates": rates}))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run(as_json=arguments.json)))


if __name__ == "__main__":
    main()
