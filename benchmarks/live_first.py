"""The latency of live events alone, and beside a backfill of hundreds of heavy partitions.

With as many workers as CPUs, and with one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.heavy_backfill import PARTITIONS
from benchmarks.live import running_live
from cygno_assets.services.guardian import guarded
from cygno_assets.services.web_ui import WebUI

if TYPE_CHECKING:
    from benchmarks.live import Live

WARM_UP = 4
RATE = 1.0
WORKERS = (None, 1)

_LAUNCH = """mutation($params: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""


def latencies(live: Live, events: int, seed: int) -> list[float]:
    """Seconds from acquisition to tensor."""
    before = len(live.tensors())
    live.announce(events, seed, "--rate", str(RATE))
    live.wait_for(before + events, 120 + 5 * events)
    tensors = live.tensors()
    return [tensors[event] - acquired for event, acquired in live.announced(seed).items()]


def start_backfill(live: Live) -> None:
    """Requests all heavy partitions, and returns when some of them are made.

    Raises:
        TimeoutError: none is.
    """
    ui = WebUI(live.stack.dagster.url)
    answer = ui.ask(
        _LAUNCH,
        params={
            "assetSelection": [{"path": ["heavy"]}],
            "partitionNames": [f"{n:03}" for n in range(PARTITIONS)],
        },
    )["launchPartitionBackfill"]
    if "backfillId" not in answer:
        raise RuntimeError(str(answer))
    deadline = time.monotonic() + 180
    while made(live) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("the backfill does not begin")
        time.sleep(0.5)


def made(live: Live) -> int:
    """Heavy partitions so far."""
    from dagster import AssetKey

    return len(live.instance.get_materialized_partitions(AssetKey("heavy")))


def measure(events: int, workers: int | None) -> dict[str, Any]:
    """Latencies alone and beside the backfill, and how fast that goes."""

    def change(config: dict[str, Any]) -> None:
        config["run_launcher"]["config"] = {"workers": workers}

    with running_live(definitions="benchmarks.heavy_backfill", change=change) as live:
        live.announce(WARM_UP, 1, "--burst")
        live.wait_for(WARM_UP, 300)
        alone = latencies(live, events, 2)
        start_backfill(live)
        before, began = made(live), time.monotonic()
        beside = latencies(live, events, 3)
        done, seconds = made(live) - before, time.monotonic() - began
    found = {
        name: {f"p{q}_s": float(np.percentile(values, q)) for q in (50, 95, 100)}
        for name, values in (("alone", alone), ("beside", beside))
    }
    return {
        "workers": workers or "one per CPU",
        **found,
        "p95_ratio": found["beside"]["p95_s"] / found["alone"]["p95_s"],
        "heavy_partitions": done,
        "heavy_partitions_per_s": done / seconds,
    }


def run(events: int, *, as_json: bool) -> int:
    """Measures and prints."""
    results = [measure(events, workers) for workers in WORKERS]
    print(f"{'workers':14}{'':8}{'p50 s':>8}{'p95 s':>8}{'max s':>8}   heavy partitions/s")
    for result in results:
        for name in ("alone", "beside"):
            p50, p95, largest = result[name].values()
            rate = f"{result['heavy_partitions_per_s']:.2f}" if name == "beside" else ""
            print(f"{result['workers']!s:14}{name:8}{p50:>8.2f}{p95:>8.2f}{largest:>8.2f}   {rate}")
        print(f"{'':14}p95, beside to alone: {result['p95_ratio']:.2f}")
    if as_json:
        print(json.dumps({"systems": results}))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run(arguments.events, as_json=arguments.json)))


if __name__ == "__main__":
    main()
