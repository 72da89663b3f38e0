"""Ground truth and histogram of the whole training set, beside the notebook's loop and decoding.

Ours is one pass over all images; with it go the same made cell by cell, as the system's runs make
it, and in processes. All take turns, so that a machine that is slower for a while is so for all of
them; each ratio is the median of the turns. Decoding alone, on all cores, is measured with threads
and with processes that are running already, and the faster of the two is what ours is held against.
So are processor seconds, which other work on the machine hardly changes. Memory is that of a
process of its own, for the archive and for one of ten times the images. With it go a whole backfill
on a real system, cold and with nothing changed.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import PIL.Image
import psutil
from upath import UPath

from benchmarks.live import running_live
from cygno_assets.daq.simulator.training_set import member_count, write_training_set
from cygno_assets.physics.ground_truth import label_of
from cygno_assets.physics.histogram import PixelHistogram
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.physics.splits import SplitSpec
from cygno_assets.services.backfill import run_training_backfill
from cygno_assets.services.guardian import guarded
from cygno_assets.storage.tensor_table import read_tensor_tables, write_tensor_tables
from cygno_assets.training.archive import Archive
from cygno_assets.training.dataset import write_dataset
from cygno_assets.training.splits import make_manifest
from cygno_assets.training.survey import Survey, labelled, labels_by_cell, survey
from cygno_assets.training.tables import ground_truth_rows
from cygno_assets.training.tensors import make_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.live import Live

TIMES = 10
"""So many times the images, for the second measurement of memory."""
BACKFILLS = 3
"""Cold ones, and as many with nothing changed, in turns; the median is given."""
MAX_PIXELS = 10**6
Found = tuple[list[int], list[tuple[str, float]]]
"""Counts of the values 0 … 255, and recoil type and energy of each image."""
OURS, BY_CELLS = "ours", "ours, cell by cell"
STARTED, RUNNING = "ours, processes forked for it", "ours, processes that run already"
THREADS, PROCESSES = "decoding alone, threads", "decoding alone, processes"
NOTEBOOK = "the notebook's loop"
_DONE = "training_audit"  # the last that is made


def ours(path: Path) -> Found:
    """Counts and ground truth of a whole archive, in one pass over all its images."""
    with Archive(path) as archive:
        return _found([_surveyed(archive, archive.members)])


def ours_by_cells(path: Path) -> Found:
    """The same cell by cell, the archive opened anew for each, as each cell's run does."""
    with Archive(path) as archive:
        cells = labels_by_cell(archive.members)
    surveys = []
    for cell in cells:
        with Archive(path) as archive:
            surveys.append(_surveyed(archive, list(labels_by_cell(archive.members)[cell])))
    return _found(surveys)


def ours_in_processes(path: Path, processes: ProcessPoolExecutor) -> Found:
    """The same in processes, some images each at a time."""
    with Archive(path) as archive:
        slices = _slices(archive.members)
    return _found(list(processes.map(_survey_some, [path] * len(slices), slices)))


def _survey_some(path: Path, names: Sequence[str]) -> Survey:
    with _OneThread(path) as archive:
        return _surveyed(archive, names)


class _OneThread(Archive):
    at_once = 1


def _surveyed(archive: Archive, names: Sequence[str]) -> Survey:
    return survey(archive, labelled(names)[0], max_pixels=MAX_PIXELS)


def _found(surveys: Sequence[Survey]) -> Found:
    table = ground_truth_rows([image for one in surveys for image in one.images])
    labels = list(zip(table["recoil_type"], table["energy_kev"], strict=True))
    counts = PixelHistogram.total(one.histogram for one in surveys).counts
    return counts.tolist(), labels


def notebook(path: Path, folder: Path) -> Found:
    """The same by the loop of the school's notebooks, but with bins that are right.

    Args:
        path: of the archive.
        folder: empty, to extract it to.
    """
    labels: list[tuple[str, float]] = []
    counts = np.zeros(256, np.int64)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    for file in sorted(folder.rglob("*.png")):
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
        slices = _slices(archive.namelist())
    list(processes.map(_decode_some, [path] * len(slices), slices))


def _slices(names: Sequence[str]) -> list[Sequence[str]]:
    """Some for each core, so that none is idle for long in the end."""
    step = -(-len(names) // (8 * (os.cpu_count() or 1)))
    return [names[first : first + step] for first in range(0, len(names), step)]


def _decode_some(path: Path, names: Sequence[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in names:
            _decode(archive, name)


def _decode(archive: zipfile.ZipFile, name: str) -> None:
    PIL.Image.open(io.BytesIO(archive.read(name))).load()


@dataclass
class Taken:
    """What one way took, turn by turn.

    Attributes:
        seconds: by the clock.
        cpu: of all processors, in seconds; of processes that it started or used too.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def in_turns(path: Path, turns: int) -> dict[str, Taken]:
    """Measures each way.

    Raises:
        RuntimeError: the ways do not agree.
    """
    with _processes() as running:
        answers: dict[str, Callable[[Path], Found]] = {
            OURS: lambda _: ours(path),
            BY_CELLS: lambda _: ours_by_cells(path),
            STARTED: lambda _: _in_new_processes(path),
            RUNNING: lambda _: ours_in_processes(path, running),
            NOTEBOOK: lambda folder: notebook(path, folder),
        }
        expected = None
        # The first time, in which modules are imported and processes start, is not measured.
        for name, answer in answers.items():
            with tempfile.TemporaryDirectory(prefix="cygno-notebook-") as folder:
                counts, labels = answer(Path(folder))
            expected = expected or (counts, sorted(labels))
            if (counts, sorted(labels)) != expected:
                raise RuntimeError(f"counts or labels of {name} are not those of {OURS}")
        ways: dict[str, Callable[[Path], object]] = {
            **answers,
            THREADS: lambda _: decode_in_threads(path),
            PROCESSES: lambda _: decode_in_processes(path, running),
        }
        found = {name: Taken() for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory(prefix="cygno-notebook-") as folder:
                    cpu, began = _cpu_s(), time.perf_counter()
                    way(Path(folder))
                    found[name].seconds.append(time.perf_counter() - began)
                    found[name].cpu.append(_cpu_s() - cpu)
    return found


def _processes() -> ProcessPoolExecutor:
    """As many as cores, forked: they start fastest so, but a run, which has threads, may not."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork"))


def _in_new_processes(path: Path) -> Found:
    with _processes() as processes:
        return ours_in_processes(path, processes)


def _cpu_s() -> float:
    """Processor seconds of this process, of those that it started, and of those that still run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    running = [child.cpu_times() for child in psutil.Process().children()]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(
        times.user + times.system for times in running
    )


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of the turns."""
    return median(a / b for a, b in zip(of, to, strict=True))


def enlarge(path: Path, larger: Path) -> None:
    """An archive in which each image is there TIMES times, under other names."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(larger, "w") as copies:
        for number in range(TIMES):
            for name in archive.namelist():
                copy = Path(name).with_stem(f"{Path(name).stem}-{number}")
                copies.writestr(str(copy), archive.read(name))


def make_dataset(path: Path, root: Path) -> None:
    """Makes each cell's ground truth and tensors, the splits, and the dataset of them all."""
    spec, truth, tables = PreprocessSpec(), [], []
    with Archive(path) as archive:
        cells = labels_by_cell(archive.members)
    for number, cell in enumerate(cells):
        with Archive(path) as archive:
            rows = ground_truth_rows(_surveyed(archive, list(cells[cell])).images)
            truth.append(rows)
            tables.append(root / f"{number}.parquet")
            write_tensor_tables(
                make_tensors(archive, rows, spec, max_pixels=MAX_PIXELS), tables[-1]
            )
    manifest = make_manifest(pd.concat(truth, ignore_index=True), SplitSpec())
    parts = chain.from_iterable(map(read_tensor_tables, tables))
    write_dataset(UPath(root), manifest, parts, spec.hash, spec.side)


def peak_rss_mb(what: str, path: Path) -> float:
    """Most memory that a process of its own takes, which does nothing else.

    Args:
        what: `count` or `make-dataset`.
        path: of the archive.
    """
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_histogram", f"--only-{what}", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(run.stdout)


def backfills(path: Path) -> dict[str, float]:
    """Seconds of a whole backfill on a real system: the first ever, cold, and nothing changed."""
    taken: dict[str, list[float]] = {}
    with running_live(training_archive=str(path), training_archive_check_s=1) as live:
        began = time.monotonic()
        _wait_for(live, lambda: _made(live, _DONE) >= 1)
        # From the look that finds the archive to the last that is made of it.
        taken["from_archive_to_audit_s"] = [time.monotonic() - began]
        said: list[str] = []
        for turn in range(2 * BACKFILLS):
            name = "unchanged" if turn % 2 else "cold"
            if name == "cold":
                _forget_cells(live)
            before = _made(live, _DONE)
            began = time.monotonic()
            if run_training_backfill(live.stack.settings, said.append, wait=True) != 0:
                raise RuntimeError("\n".join(said))
            taken.setdefault(f"backfill_{name}_s", []).append(time.monotonic() - began)
            _wait_for(live, lambda before=before: _made(live, _DONE) > before)  # type: ignore[misc]  # mypy cannot type the default
            taken.setdefault(f"backfill_to_audit_{name}_s", []).append(time.monotonic() - began)
    return {what: median(seconds) for what, seconds in taken.items()}


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
        archives = {member_count(): path, TIMES * member_count(): larger}
        memory = {
            images: {what: peak_rss_mb(what, zipped) for what in ("count", "make-dataset")}
            for images, zipped in archives.items()
        }
        larger.unlink()
        whole = backfills(path) if system else {}
    floor = [
        min(both) for both in zip(found[THREADS].seconds, found[PROCESSES].seconds, strict=True)
    ]
    floor_cpu = [min(both) for both in zip(found[THREADS].cpu, found[PROCESSES].cpu, strict=True)]
    ratios = {
        "ratio_to_decode_floor": ratio(found[OURS].seconds, floor),
        "speedup_over_notebook": ratio(found[NOTEBOOK].seconds, found[OURS].seconds),
        "cpu_ratio_to_decode_floor": ratio(found[OURS].cpu, floor_cpu),
        "cell_by_cell_ratio_to_decode_floor": ratio(found[BY_CELLS].seconds, floor),
    }
    few, many = (memory[images] for images in archives)
    print(
        f"ours to decoding alone: {ratios['ratio_to_decode_floor']:.2f} "
        f"(cell by cell {ratios['cell_by_cell_ratio_to_decode_floor']:.2f}; "
        f"processor seconds {ratios['cpu_ratio_to_decode_floor']:.2f}); "
        f"the notebook's loop to ours: {ratios['speedup_over_notebook']:.1f}\n"
    )
    images = member_count()
    print(f"{f'{images} images of 576 × 576':36}{'s, median':>10}{'cpu s':>8}{'images/s':>10}")
    for way, taken in found.items():
        seconds = median(taken.seconds)
        print(f"{way:36}{seconds:>10.2f}{median(taken.cpu):>8.2f}{images / seconds:>10.0f}")
    print(f"\n{'peak MB':36}" + "".join(f"{f'{images} images':>14}" for images in archives))
    for what, label in (("count", "ours"), ("make-dataset", "the whole dataset")):
        print(f"{label:36}{few[what]:>14.0f}{many[what]:>14.0f}")
    if whole:
        print(f"\n{'a real system':36}{'s':>10}")
        for what, seconds in whole.items():
            print(f"{what.removesuffix('_s').replace('_', ' '):36}{seconds:>10.1f}")
    if as_json:
        result: dict[str, Any] = {
            **ratios,
            "peak_rss_mb": few["count"],
            "peak_rss_mb_ten_times_the_images": many["count"],
            "dataset_peak_rss_mb": few["make-dataset"],
            "dataset_peak_rss_mb_ten_times_the_images": many["make-dataset"],
            "images": images,
            "seconds": {way: median(taken.seconds) for way, taken in found.items()},
            "cpu_seconds": {way: median(taken.cpu) for way, taken in found.items()},
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
    parser.add_argument("--only-make-dataset", type=Path, metavar="ZIP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_count or arguments.only_make_dataset:
        if arguments.only_count:
            ours(arguments.only_count)
        else:
            with tempfile.TemporaryDirectory(prefix="cygno-dataset-") as folder:
                make_dataset(arguments.only_make_dataset, Path(folder))
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
