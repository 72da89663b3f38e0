"""Events a second, announced all at once: the whole stack with real work, beside stock Dagster.

Each system first takes a few events, so that neither is measured while it starts.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.live import running_live, stock
from cygno_assets.services.guardian import guarded

WARM_UP = 4
STOCK_EVENTS = 12
"""Enough for a system that takes seconds an event."""


def measure(events: int, **system: Any) -> dict[str, Any]:
    """Events a second from the first announcement to the last tensor, and CPU s an event."""
    with running_live(**system) as live:
        live.announce(WARM_UP, 1, "--burst")
        live.wait_for(WARM_UP, 300)
        before = live.cpu_s()
        live.announce(events, 2, "--burst")
        live.wait_for(WARM_UP + events, 60 + 15 * events)
        after = live.cpu_s()
        announced = live.announced(2)
        made = live.tensors()
        ends = sorted(made[event] for event in announced)
        seconds = ends[-1] - min(announced.values())
        steady = (len(ends) - 1) / (ends[-1] - ends[0])
    return {
        "events": events,
        "events_per_s": events / seconds,
        "steady_events_per_s": steady,
        "cpu_s_per_event": {part: (after[part] - before[part]) / events for part in after},
    }


def run(events: int, stock_events: int, *, as_json: bool) -> int:
    """Measures all three and prints them."""
    ours = measure(events)
    in_process = measure(stock_events, change=stock)
    default = measure(stock_events, change=stock, definitions="benchmarks.default_executor")
    ratio = ours["events_per_s"] / in_process["events_per_s"]
    print(f"{'':34}{'events/s':>10}{'steady':>9}   CPU s an event")
    for name, result in (
        ("ours", ours),
        ("stock, in-process executor", in_process),
        ("stock, default executor", default),
    ):
        cpu = ", ".join(f"{part} {s:.3f}" for part, s in result["cpu_s_per_event"].items())
        print(
            f"{name:28}{result['events']:>6}{result['events_per_s']:>10.2f}"
            f"{result['steady_events_per_s']:>9.2f}   {cpu}"
        )
    print(f"ratio to stock, in-process executor: {ratio:.1f}")
    if as_json:
        print(
            json.dumps(
                {
                    "ratio": ratio,
                    "ours_events_per_s": ours["events_per_s"],
                    "stock_in_process_events_per_s": in_process["events_per_s"],
                    "stock_default_events_per_s": default["events_per_s"],
                    "ours_steady_events_per_s": ours["steady_events_per_s"],
                    "ours_cpu_s_per_event": ours["cpu_s_per_event"],
                    "stock_in_process_cpu_s_per_event": in_process["cpu_s_per_event"],
                }
            )
        )
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--stock-events", type=int, default=STOCK_EVENTS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run(arguments.events, arguments.stock_events, as_json=arguments.json)))


if __name__ == "__main__":
    main()
