"""All cells of the training set, their archive in a bucket: read by ranges, fetched first, or here.

The ways take turns, so that a machine that is slower for a while is so for all of them. The bucket
is on this machine; what one that is farther away would cost is seen with a pause before each
request. Memory is that of a process of its own that makes all cells one after the other, also of
ten times the images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.training_histogram import MAX_PIXELS, TIMES, enlarge
from cygno_assets.daq.simulator.bucket import Bucket
from cygno_assets.daq.simulator.training_set import member_count, write_training_set
from cygno_assets.services.guardian import guarded
from cygno_assets.services.s3_server import BucketAccess, S3Server
from cygno_assets.settings import Settings, environment_name, load_settings
from cygno_assets.storage.locations import data_root
from cygno_assets.storage.objects import StoredObject
from cygno_assets.training.archive import Archive
from cygno_assets.training.survey import labels_by_cell, survey
from cygno_assets.training.tables import ground_truth_rows, rows_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Buffer

    from cygno_assets.daq.simulator.bucket import BucketSettings

LATENCY_S = 0.05
"""Of a store that is not next door."""
_BUCKET = "cygno-store"
_RANGES, _FETCHED, _HERE = "by ranges", "fetched, then read", "a file here"


@dataclass
class Traffic:
    """What was asked of the store.

    Attributes:
        requests: for bytes.
        bytes: that came.
        latency_s: that is waited before each, as if the store were far away.
    """

    requests: int = 0
    bytes: int = 0
    latency_s: float = 0.0

    def watch(self) -> None:
        """Counts all requests of this process from now on."""
        read = StoredObject.read

        def counted(of: StoredObject, start: int, end: int) -> Buffer:
            time.sleep(self.latency_s)
            self.requests += 1
            self.bytes += end - start
            return read(of, start, end)

        StoredObject.read = counted  # type: ignore[assignment,method-assign]  # the requests are real


def make_cells(place: Path | StoredObject, only: str | None = None) -> list[str]:
    """Ground truth and histogram of each cell, opened anew for each, as its run does.

    Returns:
        Digests of both, cell by cell.
    """
    digests = []
    with Archive(place) as archive:
        keys = sorted(labels_by_cell(archive.members))
    for key in keys if only is None else [only]:
        with Archive(place) as archive:
            labels = labels_by_cell(archive.members)[key]
            found = survey(archive, labels, max_pixels=MAX_PIXELS)
        digests.append(f"{rows_digest(ground_truth_rows(found.images))} {found.histogram.digest}")
    return digests


def fetch_and_make_cells(of: StoredObject, only: str | None = None) -> list[str]:
    """The same from a file that is fetched for it."""
    with tempfile.TemporaryDirectory(prefix="cygno-fetched-") as folder:
        path = Path(folder) / of.name
        with path.open("wb") as file:
            for piece in of.pieces():
                file.write(piece)
        return make_cells(path, only)


def in_turns(path: Path, of: StoredObject, traffic: Traffic, turns: int) -> dict[str, Any]:
    """Seconds, requests and bytes of each way.

    Raises:
        RuntimeError: they do not come to the same.
    """
    with Archive(path) as archive:
        cell = max(labels_by_cell(archive.members).items(), key=lambda item: len(item[1]))[0]
    ways: dict[str, Callable[[], list[str]]] = {
        _HERE: lambda: make_cells(path),
        _RANGES: lambda: make_cells(of),
        _FETCHED: lambda: fetch_and_make_cells(of),
        f"one cell, {_RANGES}": lambda: make_cells(of, cell),
        f"one cell, {_FETCHED}": lambda: fetch_and_make_cells(of, cell),
    }
    if not ways[_HERE]() == ways[_RANGES]() == ways[_FETCHED]():
        raise RuntimeError("cells are not the same, read by ranges")
    found: dict[str, Any] = {way: {"seconds": [], "seconds_far": []} for way in ways}
    for turn in range(2 * turns):
        traffic.latency_s = LATENCY_S if turn % 2 else 0.0
        for way, make in ways.items():
            traffic.requests = traffic.bytes = 0
            began = time.perf_counter()
            make()
            seconds = time.perf_counter() - began
            found[way]["seconds_far" if turn % 2 else "seconds"].append(seconds)
            found[way] |= {"requests": traffic.requests, "bytes": traffic.bytes}
    return {
        way: one | {key: median(one[key]) for key in ("seconds", "seconds_far")}
        for way, one in found.items()
    }


def peak_mb(place: Path | str, settings: Settings) -> float:
    """Most memory of a process of its own that makes all cells."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_ranges", "--only-make", str(place)],
        env={**os.environ, **_environ(settings)},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(run.stdout)


def _environ(settings: Settings) -> dict[str, str]:
    given: Mapping[str, Any] = settings.model_dump(exclude_defaults=True)
    secret = settings.storage_s3_secret_access_key
    return {environment_name(field): str(value) for field, value in given.items()} | {
        environment_name("storage_s3_secret_access_key"): secret.get_secret_value()
        if secret
        else ""
    }


def _settings_of(bucket: BucketSettings) -> Settings:
    return load_settings(
        {
            "storage_url": f"s3://{bucket.bucket}",
            "storage_s3_endpoint": bucket.endpoint,
            "storage_s3_region": bucket.region,
            "storage_s3_access_key_id": bucket.access_key_id,
            "storage_s3_secret_access_key": bucket.secret_access_key,
            "storage_s3_ca_file": bucket.ca_file,
        }
    )


def run(turns: int, *, as_json: bool) -> int:
    """Measures and prints."""
    with tempfile.TemporaryDirectory(prefix="cygno-ranges-", ignore_cleanup_errors=True) as name:
        folder, access = Path(name), BucketAccess(_BUCKET)
        server = S3Server(folder / "s3", folder / "s3.log", [access])
        try:
            bucket = server.start().bucket(access)
            settings = _settings_of(bucket)
            path, larger = folder / "set.zip", folder / "larger.zip"
            for _ in write_training_set(path, seed=0):
                pass
            enlarge(path, larger)
            for zipped in (path, larger):
                Bucket(bucket).put(zipped.name, zipped, "application/zip")
            traffic = Traffic()
            traffic.watch()
            of = StoredObject.at(data_root(settings) / path.name)
            found = in_turns(path, of, traffic, turns)
            memory = {
                f"{way}, {count} images": peak_mb(place, settings)
                for count, zipped in ((member_count(), path), (TIMES * member_count(), larger))
                for way, place in ((_HERE, zipped), (_RANGES, zipped.name))
            }
        finally:
            server.stop()
    print(f"{member_count()} images of 576 × 576, {of.size_bytes / 1e6:.0f} MB, all cells")
    far = f"s, {LATENCY_S * 1000:.0f} ms away"
    print(f"{'':30}{'s, median':>10}{far:>16}{'requests':>10}{'MB':>8}")
    for way, one in found.items():
        print(
            f"{way:30}{one['seconds']:>10.2f}{one['seconds_far']:>16.2f}{one['requests']:>10}"
            f"{one['bytes'] / 1e6:>8.1f}"
        )
    print(f"\n{'':30}{'peak MB':>10}")
    for what, megabytes in memory.items():
        print(f"{what:30}{megabytes:>10.0f}")
    if as_json:
        print(json.dumps({"archive_bytes": of.size_bytes, "ways": found, "peak_rss_mb": memory}))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only-make", metavar="PLACE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_make:
        here = Path(arguments.only_make)
        remote = data_root(load_settings()) / arguments.only_make
        make_cells(here if here.is_absolute() else StoredObject.at(remote))
        # Not getrusage's, which remembers the parent's memory across exec.
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak) / 1024)
        return
    sys.exit(guarded(lambda: run(arguments.turns, as_json=arguments.json)))


if __name__ == "__main__":
    main()
