"""Tensors as float32, or as 8 bits to be scaled back: what the training dataset is kept as.

The same tensors, of a simulated archive, by the same Parquet writer and in the same array. Either
way float32 in [0, 1] comes out, for that is what a model gets. The two take turns. Files are in
the page cache, so reading is work of the processors: their seconds are what is measured, all
threads together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.training_histogram import MAX_PIXELS
from cygno_assets.daq.simulator.training_set import write_training_set
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.services.guardian import guarded
from cygno_assets.storage.tensor_table import (
    ROWS_AT_ONCE,
    TENSOR_COLUMN,
    read_tensor_table,
    write_tensor_tables,
)
from cygno_assets.training.archive import Archive
from cygno_assets.training.survey import labelled, survey
from cygno_assets.training.tables import ground_truth_rows
from cygno_assets.training.tensors import make_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BATCH = 32
_FLOAT32, _UINT8 = "float32", "uint8, scaled back"


@dataclass(frozen=True)
class Kept:
    """One format's two files.

    Attributes:
        parquet: as the pipeline writes it, or the same with 8 bits in the column `tensor`.
        array: the tensors alone, .npy.
        steps: of the window, which 8 bits are to be divided by; None of float32.
    """

    parquet: Path
    array: Path
    steps: float | None

    def read_parquet(self) -> NDArray[np.float32]:
        """All tensors of the table."""
        with pq.ParquetFile(self.parquet, page_checksum_verification=True) as file:
            lists = file.read([TENSOR_COLUMN]).column(0).combine_chunks()
        values = lists.flatten().flatten().to_numpy()
        side = round((len(values) / len(lists)) ** 0.5)
        return self._scaled(values.reshape(-1, side, side))

    def epoch(self, order: NDArray[np.int64]) -> None:
        """Takes all batches from the mapped array."""
        tensors = np.load(self.array, mmap_mode="r")
        for first in range(0, len(order), BATCH):
            self._scaled(tensors[order[first : first + BATCH]])

    def _scaled(self, tensors: NDArray[Any]) -> NDArray[np.float32]:
        if self.steps is None:
            return tensors
        scaled: NDArray[np.float32] = np.divide(tensors, self.steps, dtype=np.float32)
        return scaled


def keep(archive_file: Path, folder: Path) -> dict[str, Kept]:
    """Makes tensors of the archive and writes them in both formats.

    Raises:
        RuntimeError: the formats do not hold the same.
    """
    spec, table = PreprocessSpec(), folder / "float32.parquet"
    steps = spec.window_high - spec.window_low
    with Archive(archive_file) as archive:
        found = survey(archive, labelled(archive.members)[0], max_pixels=MAX_PIXELS)
        rows = ground_truth_rows(found.images)
        write_tensor_tables(make_tensors(archive, rows, spec, max_pixels=MAX_PIXELS), table)
    tensors = read_tensor_table(table).tensors
    small = np.rint(tensors * np.float32(steps)).astype(np.uint8)
    _with_8_bits(table, folder / "uint8.parquet", small)
    for name, values in (("float32", tensors), ("uint8", small)):
        np.save(folder / f"{name}.npy", values)
    kept = {
        _FLOAT32: Kept(table, folder / "float32.npy", None),
        _UINT8: Kept(folder / "uint8.parquet", folder / "uint8.npy", steps),
    }
    if not np.array_equal(kept[_FLOAT32].read_parquet(), kept[_UINT8].read_parquet()):
        raise RuntimeError("8 bits, scaled back, are not the float32")
    return kept


def _with_8_bits(table: Path, file: Path, tensors: NDArray[np.uint8]) -> None:
    whole = pq.read_table(table)
    place = whole.schema.get_field_index(TENSOR_COLUMN)
    side = tensors.shape[1]
    starts = np.arange(0, tensors.size + 1, side, dtype=np.int32)
    lines = pa.ListArray.from_arrays(starts, pa.array(tensors.reshape(-1)))
    squares = pa.ListArray.from_arrays(starts[: len(tensors) + 1], lines)
    pq.write_table(
        whole.set_column(place, TENSOR_COLUMN, squares),
        file,
        row_group_size=ROWS_AT_ONCE,
        compression="zstd",
        write_page_checksum=True,
    )


def in_turns(kept: dict[str, Kept], turns: int) -> dict[str, dict[str, float]]:
    """Sizes in MB, and median processor seconds of reading the table and of an epoch."""
    count = len(np.load(kept[_FLOAT32].array, mmap_mode="r"))
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"read_cpu_s": [], "epoch_cpu_s": []} for name in kept
    }
    for turn in range(turns):
        order = np.random.default_rng(turn).permutation(count)
        for name, one in kept.items():
            ways: dict[str, Callable[[], object]] = {
                "read_cpu_s": one.read_parquet,
                "epoch_cpu_s": lambda one=one, order=order: one.epoch(order),  # type: ignore[misc]  # mypy cannot type the default
            }
            for what, way in ways.items():
                began = time.process_time()
                way()
                seconds[name][what].append(time.process_time() - began)
    return {
        name: {
            "parquet_mb": one.parquet.stat().st_size / 1e6,
            "array_mb": one.array.stat().st_size / 1e6,
            **{what: median(values) for what, values in seconds[name].items()},
        }
        for name, one in kept.items()
    }


def run(turns: int, *, as_json: bool) -> int:
    """Measures and prints."""
    with tempfile.TemporaryDirectory(prefix="cygno-formats-") as name:
        folder = Path(name)
        for _ in write_training_set(folder / "set.zip", seed=0):
            pass
        kept = keep(folder / "set.zip", folder)
        images = len(np.load(kept[_FLOAT32].array, mmap_mode="r"))
        levels = len(np.unique(np.load(folder / "uint8.npy", mmap_mode="r")))
        found = in_turns(kept, turns)
    ratios = {
        f"{what.partition('_')[0]}_ratio": found[_FLOAT32][what] / found[_UINT8][what]
        for what in found[_FLOAT32]
    }
    print("float32 to 8 bits: " + ", ".join(f"{k[:-6]} {v:.2f}" for k, v in ratios.items()))
    print(f"\n{f'{images} tensors, {levels} values':42}" + "".join(f"{n:>20}" for n in found))
    for label, what, scale in (
        ("Parquet, MB", "parquet_mb", 1),
        ("read all of it, cpu ms", "read_cpu_s", 1000),
        (".npy, MB", "array_mb", 1),
        (f"an epoch of shuffled batches of {BATCH}, cpu ms", "epoch_cpu_s", 1000),
    ):
        print(f"{label:42}" + "".join(f"{one[what] * scale:>20.1f}" for one in found.values()))
    if as_json:
        print(json.dumps({**ratios, "images": images, "values": levels, "formats": found}))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run(arguments.turns, as_json=arguments.json)))


if __name__ == "__main__":
    main()
