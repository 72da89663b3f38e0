"""Examples of docs/events.md and docs/training-a-model.md run as they stand, on files made here."""

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
from upath import UPath

from cygno_assets import load_events
from cygno_assets.physics.histogram import counts_from_text, counts_to_text, pixel_counts
from cygno_assets.physics.images import decode_image, preprocess
from cygno_assets.physics.splits import SplitSpec
from cygno_assets.settings import CHECKOUT, load_settings
from cygno_assets.storage.event_tables import EVENT_COLUMNS, merged
from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets.storage.tables import table_of, table_to_parquet
from cygno_assets.storage.tensor_table import ROWS_AT_ONCE, TensorTable, write_tensor_table
from cygno_assets.training.dataset import write_dataset
from cygno_assets.training.splits import make_manifest
from cygno_assets.training.tables import DATASET_COLUMNS, GROUND_TRUTH_COLUMNS, TENSOR_COLUMNS
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DAY = date(2024, 11, 27)
TEXT = (CHECKOUT / "docs" / "events.md").read_text()
TRAINING = (CHECKOUT / "docs" / "training-a-model.md").read_text()


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


def block(language: str, containing: str, document: str = TEXT) -> str:
    """The example in the document that has this in it."""
    [found] = [
        code
        for code in re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)
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


def put_dataset(root: UPath, spec_hash: str, tensors: NDArray[np.float32]) -> None:
    """A training dataset of these tensors, each of an image of its own, types taking turns."""
    images = [(n, "nuclear" if n % 2 else "electronic", f"{n:064x}") for n, _ in enumerate(tensors)]
    truth = [(f"{n}.png", f"{n}.png", kind, 6.0, 576, 576, sha) for n, kind, sha in images]
    made = [hashlib.sha256(tensor).hexdigest() for tensor in tensors]
    rows = [
        (f"{n}.png", kind, 6.0, sha, made[n], spec_hash, 0.0, 0.0, 1, 0, 0, 0)
        for n, kind, sha in images
    ]
    manifest = make_manifest(table_of(GROUND_TRUTH_COLUMNS, truth), SplitSpec())
    root.mkdir(parents=True)
    cell = TensorTable(table_of(TENSOR_COLUMNS, rows), tensors)
    write_dataset(root, manifest, [cell], spec_hash, tensors.shape[1])


def test_live_tensors_go_into_a_model_of_the_training_set(root: UPath, tmp_path: Path) -> None:
    spec = load_settings().preprocess_spec
    tensors = np.stack(
        [preprocess(decode_image(f.read_bytes(), max_pixels=10**6), spec) for f in REAL_IMAGES]
    )
    put_dataset(root, spec.hash, tensors[np.arange(12) % 4])
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
    in_a_process_of_its_own(code, tmp_path)


def in_a_process_of_its_own(code: str, folder: Path) -> None:
    environ = {"HF_HUB_OFFLINE": "1", "HOME": str(folder), "PATH": ""}
    # The native threads of `datasets` sometimes abort an orderly end: not what is tested here.
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport os\nos._exit(0)"],
        cwd=folder,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def dataset(root: UPath) -> UPath:
    """A training dataset of three row groups; no two tensors are the same."""
    tensors = np.random.default_rng(0).integers(0, 32, (2 * ROWS_AT_ONCE + 30, 128, 128))
    put_dataset(root, "5bec00000000", (tensors / 31).astype(np.float32))
    return root


READ_ALIKE = """
import numpy as np
from pathlib import Path
[array] = Path(".cygno/data").glob("training_dataset-*.npy")
assert tensors.shape == (230, 128, 128), tensors.shape
assert tensors.dtype == np.float32, tensors.dtype
assert np.array_equal(tensors, np.load(array))
"""


@pytest.mark.usefixtures("dataset")
def test_the_documented_lines_open_the_dataset_with_datasets(tmp_path: Path) -> None:
    """In a process of its own: `datasets` registers its types with pyarrow for good."""
    columns = sorted(["tensor", *(column.name for column in DATASET_COLUMNS)])
    code = block("python", "load_dataset", TRAINING) + READ_ALIKE
    code += f"assert sorted(table.column_names) == {columns}, table.column_names\n"
    code += "assert set(table['split'][:]) == {'train', 'validation', 'test'}\n"
    in_a_process_of_its_own(code, tmp_path)


@pytest.mark.usefixtures("dataset")
def test_the_documented_lines_open_the_dataset_with_pandas() -> None:
    known: dict[str, Any] = {}
    exec(block("python", "read_parquet", TRAINING) + READ_ALIKE, known)  # noqa: S102 – the document's own
    assert sorted(known["frame"].columns) == sorted(
        ["tensor", *(column.name for column in DATASET_COLUMNS)]
    )


@pytest.mark.usefixtures("dataset")
def test_the_documented_two_lines_load_a_training_set() -> None:
    known: dict[str, Any] = {}
    exec(block("python", 'or "validation"', TRAINING), known)  # noqa: S102 – the document's own
    train = known["train"]
    assert train.tensors.shape == (len(train), 128, 128)
    assert set(train.rows["split"]) == {"train"}
    assert set(train.labels) == {0, 1}


@pytest.mark.parametrize("package", ["torch", "keras"])
def test_the_examples_of_packages_that_are_not_here_are_python(package: str) -> None:
    compile(block("python", f"import {package}", TRAINING), package, "exec")


@pytest.mark.usefixtures("catalogue")
def test_no_dagster_is_needed(tmp_path: Path) -> None:
    put_dataset(UPath(tmp_path / "set"), "5bec00000000", np.zeros((12, 4, 4), np.float32))
    code = """
import importlib, pkgutil, sys
import cygno_assets.physics, cygno_assets.training
imported = []
for package in (cygno_assets.physics, cygno_assets.training):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        imported.append(importlib.import_module(module.name).__name__)
assert {"cygno_assets.physics.images", "cygno_assets.training.fetch"} <= set(imported), imported
from cygno_assets import load_events, load_training
assert len(load_events(data=".cygno/data")) == 8
assert len(load_training("train", data="set")) > 0
dagster = [name for name in sys.modules if name.partition(".")[0].startswith("dagster")]
assert not dagster, dagster[:3]
"""
    in_a_process_of_its_own(code, tmp_path)
