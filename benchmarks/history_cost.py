"""What an event costs with 10³, 10⁴ and 10⁵ partitions and past runs in the database.

The past is cloned from a real event's run (cloned_history.py). The sizes take turns, so that a
machine that is slower for a while is so for all of them; each number is the median of the turns.

With `--pruned` the catalogue has read all of the past, and Dagster's history is pruned to its
newest 1,000 events before anything is measured: what it costs to have had a past.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.cloned_history import clone_history
from benchmarks.live import running_live
from cygno_assets.services.guardian import guarded
from cygno_assets.services.web_ui import WebUI

if TYPE_CHECKING:
    from benchmarks.live import Live

SIZES = (10**3, 10**4, 10**5)
WARM_UP = 8
KEPT = 1000
"""Events that `--pruned` leaves in Dagster's history."""

_PAGE = """
query Page($asset: AssetKeyInput!) {
  assetsLatestInfo(assetKeys: [$asset]) { id inProgressRunIds unstartedRunIds latestRun { id } }
  assetOrError(assetKey: $asset) { ... on Asset {
    assetMaterializations(limit: 1) { timestamp runId partition metadataEntries { label } }
    assetEventHistory(limit: 100, eventTypeSelectors: [MATERIALIZATION, OBSERVATION]) {
      results { ... on MaterializationEvent { timestamp runId partition } } }
    definition { id partitionStats {
      numMaterialized numFailed numPartitions numMaterializing } } } }
}"""
"""What the asset's page in the web UI asks for when it opens."""
_PARTITIONS = """
query PartitionHealth($asset: AssetKeyInput!) {
  assetNodeOrError(assetKey: $asset) { ... on AssetNode { id
    partitionKeysByDimension { name type partitionKeys }
    assetPartitionStatuses { ... on DefaultPartitionStatuses {
      materializedPartitions materializingPartitions failedPartitions } } } }
}"""
"""What its list of partitions asks for: all of them, by name."""


def measure(home: Path, events: int, seed: int) -> dict[str, float]:
    """Starts the system on this home, announces a burst, and asks what the web UI asks."""
    with running_live(home=home) as live:
        live.announce(WARM_UP, seed, "--burst")
        live.wait_for(WARM_UP, 120)
        first = _ui_seconds(live, _PAGE)  # fills what later ones use, and events might carry on
        before, since = live.cpu_s(), time.time()
        live.announce(events, seed + 1, "--burst")
        live.wait_for(WARM_UP + events, 60 + 5 * events)
        cpu = {part: s - before[part] for part, s in live.cpu_s().items()}
        found = {f"cpu_ms_per_event {part}": 1000 * s / events for part, s in cpu.items()}
        return {
            "cpu_ms_per_event": sum(found.values()),
            **found,
            "sensor_tick_ms": 1000 * _tick_s(live, since),
            "ui_first_page_ms": 1000 * first,
            "ui_page_ms": 1000 * median(_ui_seconds(live, _PAGE) for _ in range(5)),
            "ui_partitions_ms": 1000 * median(_ui_seconds(live, _PARTITIONS) for _ in range(3)),
        }


def _ui_seconds(live: Live, query: str) -> float:
    began = time.monotonic()
    WebUI(live.stack.dagster.url).ask(query, asset={"path": ["preprocessed_tensor"]})
    return time.monotonic() - began


def _tick_s(live: Live, since: float) -> float:
    """Median length of the sensor's ticks."""
    (state,) = (s for s in live.instance.all_instigator_state() if s.name == "daq_events")
    ticks = live.instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since)
    return median(t.end_timestamp - t.timestamp for t in ticks if t.end_timestamp is not None)


def prune_home(home: Path, past: int) -> dict[str, float]:
    """Lets the catalogue read all of it, prunes, and tells what that took and what is left."""
    from cygno_assets.records.pruning import Keep, plan, prune
    from cygno_assets.storage.event_tables import events_held
    from cygno_assets.storage.locations import data_root

    with running_live(home=home, catalog_every_s=5) as live:
        root, began = data_root(live.stack.settings), time.monotonic()
        while len(events_held(root)) < past + WARM_UP:
            live.check_alive()
            time.sleep(1)
        catalogued = time.monotonic()
        planned = plan(live.instance, root, Keep(since=0.0, events=KEPT))
        prune(live.instance, root, planned, lambda line: print(line, file=sys.stderr))
        pruned = time.monotonic()
    with closing(sqlite3.connect(live.database)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return {
        "catalogue_ms_per_event": 1000 * (catalogued - began) / past,
        "prune_ms_per_event": 1000 * (pruned - catalogued) / max(len(planned.events), 1),
        "catalogue_bytes_per_event": _size(home / "data" / "event_catalog") / past,
        "database_mb": live.database.stat().st_size / 1e6,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_home(home: Path, past: int) -> float:
    """A home in which so many events have been; returns bytes of database for each."""
    with running_live(home=home) as live:
        live.announce(WARM_UP, 1, "--burst")
        live.wait_for(WARM_UP, 120)
    return clone_history(live.database, past) / past


def run(sizes: tuple[int, ...], events: int, turns: int, *, pruned: bool, as_json: bool) -> int:
    """Measures each size in turns, and prints the medians."""
    with tempfile.TemporaryDirectory(prefix="cygno-history-", ignore_cleanup_errors=True) as folder:
        homes = {past: Path(folder) / str(past) for past in sizes}
        size: dict[int, dict[str, float]] = {}
        for past, home in homes.items():
            began = time.monotonic()
            size[past] = {"bytes_per_event": make_home(home, past)}
            if pruned:
                size[past] |= prune_home(home, past)
            print(f"{past} past events: made in {time.monotonic() - began:.0f} s", file=sys.stderr)
        found: dict[int, list[dict[str, float]]] = {past: [] for past in sizes}
        for turn in range(turns):
            for past in sizes if turn % 2 == 0 else sizes[::-1]:
                found[past].append(measure(homes[past], events, 10 * (turn + 1)))
                cpu = found[past][-1]["cpu_ms_per_event"]
                print(f"turn {turn + 1}: {past} past, {cpu:.0f} ms an event", file=sys.stderr)
    rows: list[dict[str, Any]] = [
        {
            "past_events": past,
            **{name: median(turn[name] for turn in found[past]) for name in found[past][0]},
            **size[past],
        }
        for past in sizes
    ]
    for name in rows[0]:
        print(f"{name:32}" + "".join(f"{row[name]:>12,.0f}" for row in rows))
    ratio = median(
        last["cpu_ms_per_event"] / first["cpu_ms_per_event"]
        for first, last in zip(found[sizes[0]], found[sizes[-1]], strict=True)
    )
    print(f"CPU per event, last to first: {ratio:.2f}")
    if as_json:
        print(json.dumps({"ratio_last_to_first": ratio, "sizes": rows}))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200, help="in each burst")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="past events")
    parser.add_argument("--pruned", action="store_true", help="prune the past first")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = tuple(arguments.sizes)
    sys.exit(
        guarded(
            lambda: run(
                sizes,
                arguments.events,
                arguments.turns,
                pruned=arguments.pruned,
                as_json=arguments.json,
            )
        )
    )


if __name__ == "__main__":
    main()
