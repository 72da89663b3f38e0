"""Ground truth and histogram of the whole training set, beside the notebook's loop and decoding.

The three take turns, so that a machine that is slower for a while is so for all of them; each
ratio is the median of the turns. Decoding alone, on all cores, is measured with threads and with
processes that are running already, and the faster of the two is what ours is held against.
Memory is that of a process of its own, for the archive and for one of ten times the images.
With it go a whole backfill on a real system, cold and with nothing changed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from benchmarks.live import running_live
from cygno_assets.daq.simulator.training_set import member_count, write_training_set
from cygno_assets.physics.ground_truth import label_of
from cygno_assets.services.backfill import run_training_backfill
from cygno_assets.services.guardian import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.live import Live

TIMES = 10
"""So many times the images, for the second measurement of memory."""
MAX_PIXELS = 10**6
Found = tuple[list[int], list[tuple[str, float]]]
"""Counts of the values 0 … 255, and recoil type and energy of each image."""
_DONE = "training_audit"  # the last that is made


def ours(path: Path) -> Found:
    """Counts and ground truth of a whole archive, as its cells make them."""
    from cygno_assets.training.archive import Archive
    from cygno_assets.training.survey import labelled, survey
    from cygno_assets.training.tables import ground_truth_rows

    with Archive(path) as archive:
        found = survey(archive, labelled(archive.members)[0], max_pixels=MAX_PIXELS)
    table = ground_truth_rows(found.images)
    labels = list(zip(table["recoil_type"], table["energy_kev"], strict=True))
    return found.histogram.counts.tolist(), labels


def notebook(path: Path) -> Found:
    """The same by the loop of the school's notebooks, but with bins that are right."""
    labels: list[tuple[str, float]] = []
    counts = np.zeros(256, np.int64)
    with tempfile.TemporaryDirectory(prefix="cygno-notebook-") as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        for file in sorted(Path(folder).rglob("*.png")):
            pixels = np.array(PIL.Image.open(file)).flatten()
            counts += np.histogram(pixels, bins=np.arange(257) - 0.5)[0]
            label = label_of(str(file))
            labels.append((label.recoil_type, label.energy_kev))
    return counts.tolist(), labels


def decode_in_threads(path: Path) -> None:
    """Reads and decodes every image, and does nothing with it."""
    with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(lambda name: _decode(archive, name), archive.namelist()))


def decode_in_processes(path: Path, processes: ProcessPoolExecutor) -> None:
    """The same in processes, which need not start for it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    step = -(-len(names) // (8 * (os.cpu_count() or 1)))
    slices = [names[first : first + step] for first in range(0, len(names), step)]
    list(processes.map(_decode_some, [path] * len(slices), slices))


def _decode_some(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in names:
            _decode(archive, name)


def _decode(archive: zipfile.ZipFile, name: str) -> None:
    PIL.Image.open(io.BytesIO(archive.read(name))).load()


def in_turns(path: Path, turns: int) -> dict[str, list[float]]:
    """Seconds of each, turn by turn.

    Raises:
        RuntimeError: ours and the notebook's do not agree.
    """
    (counts, labels), expected = ours(path), notebook(path)
    if counts != expected[0] or sorted(labels) != sorted(expected[1]):
        raise RuntimeError("ours and the notebook's counts or labels are not the same")
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        decode_in_processes(path, processes)
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: ours(path),
            "decoding alone, threads": lambda: decode_in_threads(path),
            "decoding alone, processes": lambda: decode_in_processes(path, processes),
            "the notebook's loop": lambda: notebook(path),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                found[name].append(time.perf_counter() - began)
    return found


def enlarge(path: Path, larger: Path) -> None:
    """An archive in which each image is there TIMES times, under other names."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(larger, "w") as copies:
        for number in range(TIMES):
            for name in archive.namelist():
                copy = Path(name).with_stem(f"{Path(name).stem}-{number}")
                copies.writestr(str(copy), archive.read(name))


def peak_rss_mb(path: Path) -> float:
    """Most memory that a process of its own takes, which does nothing else."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_histogram", "--only-count", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(run.stdout)


def backfills(path: Path) -> dict[str, float]:
    """Seconds of a whole backfill on a real system, cold and with nothing changed."""
    with running_live(training_archive=str(path), training_archive_check_s=1) as live:
        began = time.monotonic()
        _wait_for(live, lambda: _made(live, _DONE) >= 1)
        # From the look that finds the archive to the last that is made of it.
        found = {"from_archive_to_audit_s": time.monotonic() - began}
        said: list[str] = []
        for name, clean in (("backfill_cold_s", True), ("backfill_unchanged_s", False)):
            if clean:
                _forget_cells(live)
            before = _made(live, _DONE)
            began = time.monotonic()
            if run_training_backfill(live.stack.settings, said.append, wait=True) != 0:
                raise RuntimeError("\n".join(said))
            found[name] = time.monotonic() - began
            _wait_for(live, lambda before=before: _made(live, _DONE) > before)  # type: ignore[misc]  # mypy cannot type the default
            found[name.replace("backfill", "backfill_to_audit")] = time.monotonic() - began
    return found


def _forget_cells(live: Live) -> None:
    """Deletes what cells are told by that nothing has changed."""
    import shutil

    from cygno_assets.names import TRAINING_CELLS

    for key in TRAINING_CELLS:
        shutil.rmtree(live.home / "data" / key.to_user_string())


def _made(live: Live, asset: str) -> int:
    from dagster import AssetKey, AssetRecordsFilter

    wanted = AssetRecordsFilter(asset_key=AssetKey(asset))
    return len(live.instance.fetch_materializations(wanted, limit=100).records)


def _wait_for(live: Live, condition: Callable[[], bool], timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        live.check_alive()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {timeout_s:g} s")
        time.sleep(0.5)


def run(turns: int, *, system: bool, as_json: bool) -> int:
    """Measures and prints."""
    with tempfile.TemporaryDirectory(prefix="cygno-training-", ignore_cleanup_errors=True) as name:
        path, larger = Path(name) / "set.zip", Path(name) / "larger.zip"
        for _ in write_training_set(path, seed=0):
            pass
        found = in_turns(path, turns)
        enlarge(path, larger)
        memory = {member_count(): peak_rss_mb(path), TIMES * member_count(): peak_rss_mb(larger)}
        larger.unlink()
        whole = backfills(path) if system else {}
    floor = [
        min(threads, processes)
        for threads, processes in zip(
            found["decoding alone, threads"], found["decoding alone, processes"], strict=True
        )
    ]
    ratio = median(a / b for a, b in zip(found["ours"], floor, strict=True))
    speedup = median(
        a / b for a, b in zip(found["the notebook's loop"], found["ours"], strict=True)
    )
    print(f"ours to decoding alone: {ratio:.2f}; the notebook's loop to ours: {speedup:.1f}\n")
    print(f"{f'{member_count()} images of 576 × 576':30}{'s, median':>10}{'images/s':>10}")
    for way, seconds in found.items():
        print(f"{way:30}{median(seconds):>10.2f}{member_count() / median(seconds):>10.0f}")
    print(f"\n{'images':30}{'peak MB':>10}")
    for images, megabytes in memory.items():
        print(f"{images:<30}{megabytes:>10.0f}")
    if whole:
        print(f"\n{'a real system':30}{'s':>10}")
        for what, seconds_ in whole.items():
            print(f"{what.removesuffix('_s').replace('_', ' '):30}{seconds_:>10.1f}")
    if as_json:
        result: dict[str, Any] = {
            "ratio_to_decode_floor": ratio,
            "speedup_over_notebook": speedup,
            "peak_rss_mb": memory[member_count()],
            "peak_rss_mb_ten_times_the_images": memory[TIMES * member_count()],
            "images": member_count(),
            "seconds": {way: median(seconds) for way, seconds in found.items()},
            **whole,
        }
        print(json.dumps(result))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--no-system", action="store_true", help="leave the backfills out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only-count", type=Path, metavar="ZIP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_count:
        ours(arguments.only_count)
        # Not getrusage's, which remembers the parent's memory across exec.
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak) / 1024)
        return
    sys.exit(
        guarded(
            lambda: run(arguments.turns, system=not arguments.no_system, as_json=arguments.json)
        )
    )


if __name__ == "__main__":
    main()
