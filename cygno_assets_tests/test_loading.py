"""docs/events.md: its examples run as they stand, on files of real events."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from cygno_assets import load_events
from cygno_assets.physics.histogram import counts_from_text, counts_to_text, pixel_counts
from cygno_assets.physics.images import decode_image, preprocess
from cygno_assets.physics.splits import SplitSpec
from cygno_assets.settings import CHECKOUT, load_settings
from cygno_assets.storage.event_tables import EVENT_COLUMNS, merged
from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets.storage.tables import table_of, table_to_parquet
from cygno_assets.storage.tensor_table import TensorTable, write_tensor_table
from cygno_assets.training.dataset import write_dataset
from cygno_assets.training.splits import make_manifest
from cygno_assets.training.tables import GROUND_TRUTH_COLUMNS, TENSOR_COLUMNS
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from pathlib import Path

    from upath import UPath

DAY = date(2024, 11, 27)
TEXT = (CHECKOUT / "docs" / "events.md").read_text()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UPath:
    """Where the document's examples look, seen from the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CYGNO_HOME", str(tmp_path / ".cygno"))
    return data_root(load_settings())


@pytest.fixture
def catalogue(root: UPath) -> UPath:
    for day in (DAY, DAY + timedelta(days=1)):
        noon = datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=12)
        rows = []
        for number, file in enumerate(REAL_IMAGES):
            counts = pixel_counts(decode_image(file.read_bytes(), max_pixels=10**6))
            row: dict[str, Any] = dict.fromkeys(column.name for column in EVENT_COLUMNS)
            row |= {
                "event_id": f"{day}-{file.stem[6:]}",
                "status": "failed" if number == 3 else "materialized",
                "acquired": noon + timedelta(minutes=20 * number),
                "latency_s": 1.0 + number,
                "mean_adu": float(np.average(np.arange(256), weights=counts)),
                "log_id": number,
                "pixel_counts": counts_to_text(counts),
            }
            rows.append(row)
        file = root / "event_catalog" / f"{day}.parquet"
        write_whole(file, table_to_parquet(merged(None, rows)))
    return root


def block(language: str, containing: str) -> str:
    """The example in the document that has this in it."""
    [found] = [
        code
        for code in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
        if containing in code
    ]
    return str(found)


def test_every_column_is_in_the_document() -> None:
    for column in EVENT_COLUMNS:
        assert f"`{column.name}`" in TEXT


@pytest.mark.usefixtures("catalogue")
def test_the_documented_two_lines_load_events() -> None:
    known: dict[str, Any] = {}
    exec(block("python", "load_events"), known)  # noqa: S102 – the document's own
    events = known["events"]
    assert len(events) == 8
    assert [column.name for column in EVENT_COLUMNS] == list(events.columns)
    assert str(events["acquired"].dtype) == "datetime64[us, UTC]"
    assert counts_from_text(events["pixel_counts"][0]).sum() == 576**2
    assert len(load_events(until=DAY)) == 4


@pytest.mark.usefixtures("catalogue")
def test_the_documented_sql_runs_in_duckdb() -> None:
    found = duckdb.sql(block("sql", "event_catalog")).df()
    assert list(found["events"]) == [3, 1, 3, 1]
    assert list(found["failed"]) == [0, 1, 0, 1]
    assert list(found["latency_s"]) == [2.0, 4.0, 2.0, 4.0]
    assert found["mean_adu"].between(99, 101).all()
    assert list(found["hour"]) == sorted(found["hour"])


def test_load_events_reads_elsewhere_too(catalogue: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYGNO_HOME", "/nowhere")
    with pytest.raises(FileNotFoundError, match="there is no event_catalog in file:///nowhere"):
        load_events()
    assert len(load_events(data=str(catalogue))) == 8


def test_live_tensors_go_into_a_model_of_the_training_set(root: UPath, tmp_path: Path) -> None:
    spec = load_settings().preprocess_spec
    tensors = np.stack(
        [preprocess(decode_image(f.read_bytes(), max_pixels=10**6), spec) for f in REAL_IMAGES]
    )
    images = [(n, "nuclear" if n % 2 else "electronic", f"{n:064x}") for n in range(12)]
    truth = [(f"{n}.png", f"{n}.png", kind, 6.0, 576, 576, sha) for n, kind, sha in images]
    made = [hashlib.sha256(tensor).hexdigest() for tensor in tensors]
    rows = [
        (f"{n}.png", kind, 6.0, sha, made[n % 4], spec.hash, 0.0, 0.0, 1, 0, 0, 0)
        for n, kind, sha in images
    ]
    manifest = make_manifest(table_of(GROUND_TRUTH_COLUMNS, truth), SplitSpec())
    cell = TensorTable(table_of(TENSOR_COLUMNS, rows), tensors[[n % 4 for n, _, _ in images]])
    root.mkdir(parents=True)
    write_dataset(root, manifest, [cell], spec.hash, spec.side)
    events = pd.DataFrame({"event_id": [file.stem for file in REAL_IMAGES]})
    events["acquired"] = pd.Series([datetime.now(UTC)] * 4).astype("datetime64[us, UTC]")
    events.attrs = {"spec_hash": spec.hash}
    file = tmp_path / ".cygno" / "data" / "event_tensors" / f"{DAY}.parquet"
    file.parent.mkdir()
    write_tensor_table(TensorTable(events, tensors), file)

    known: dict[str, Any] = {}
    exec(block("python", "RandomForestClassifier"), known)  # noqa: S102 – the document's own
    assert known["live"].rows["nuclear"].between(0, 1).all()
    events.attrs = {"spec_hash": "another"}
    write_tensor_table(TensorTable(events, tensors), file)
    with pytest.raises(SystemExit, match="not those that the model was trained with"):
        exec(block("python", "RandomForestClassifier"), {})  # noqa: S102 – the document's own


def test_datasets_knows_the_times_of_events(tmp_path: Path) -> None:
    """In a process of its own: `datasets` registers its types with pyarrow for good."""
    events = pd.DataFrame({"event_id": ["cygno-1"], "brightest_row": pd.array([8], "Int64")})
    events["acquired"] = pd.Series([datetime(2024, 11, 27, tzinfo=UTC)]).astype(
        "datetime64[us, UTC]"
    )
    file = tmp_path / "day.parquet"
    write_tensor_table(TensorTable(events, np.ones((1, 128, 128), np.float32)), file)
    code = f"""
from datasets import load_dataset
file, cache = {str(file)!r}, {str(tmp_path)!r}
found = load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
assert found.features["tensor"].shape == (128, 128), found.features
assert found.features["acquired"].dtype == "timestamp[us, tz=UTC]", found.features
assert found[0]["acquired"].isoformat() == "2024-11-27T00:00:00+00:00", found[0]["acquired"]
assert found[0]["brightest_row"] == 8
"""
    environ = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
