"""The asset `pipeline_health`: one row for each hour, on a real inbox and with real events."""

from __future__ import annotations

import base64
import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from dagster import DagsterInstance
from PIL import Image

from cygno_assets.assets import health
from cygno_assets.assets.health import COLUMNS, with_row
from cygno_assets.build import build_defs
from cygno_assets.names import PIPELINE_HEALTH
from cygno_assets.records.health import NUMBERS
from cygno_assets_tests.assets.detector import Detector
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings

NOON = datetime(2024, 11, 27, 12, 0, 3, tzinfo=UTC)


def numbers(value: float) -> dict[str, float]:
    return dict.fromkeys(NUMBERS, value)


def test_an_hour_has_one_row_which_is_of_its_last_measurement() -> None:
    table = with_row(None, NOON, numbers(1.0))
    table = with_row(table, NOON + timedelta(hours=1), numbers(2.0))
    table = with_row(table, NOON + timedelta(hours=1, minutes=30), numbers(3.0))
    assert table["hour"].dt.hour.tolist() == [12, 13]
    assert table["backlog_events"].tolist() == [1.0, 3.0]
    assert table["measured"].tolist()[-1] == NOON + timedelta(hours=1, minutes=30)
    again = with_row(table, NOON + timedelta(hours=1, minutes=30), numbers(3.0))
    pd.testing.assert_frame_equal(again, table)


def test_a_number_that_is_new_is_not_known_of_the_past() -> None:
    old = with_row(None, NOON, numbers(1.0)).drop(columns="free_bytes")
    table = with_row(old, NOON + timedelta(hours=2), numbers(2.0))
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert math.isnan(table["free_bytes"].iloc[0])
    assert table["free_bytes"].iloc[1] == 2.0


def test_the_history_ends_after_a_year(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_KEPT_HOURS", 3)
    table = None
    for hour in range(5):
        table = with_row(table, NOON + timedelta(hours=hour), numbers(hour))
    assert table is not None
    assert table["rejected"].tolist() == [2.0, 3.0, 4.0]
    assert table.index.tolist() == [0, 1, 2]


def test_it_is_stored_and_plotted(
    daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path
) -> None:
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        detector = Detector(daq_bucket, inbox_url, tmp_path / "home", instance)
        for file in REAL_IMAGES[:2]:
            assert detector.run(detector.announce(file.read_bytes())).success
        job = build_defs(detector.settings).resolve_job_def("pipeline_health_job")
        assert job.tags["dagster/priority"] == "-1"  # no event waits for it
        for _ in range(2):  # in one hour, or in two where one ends between them
            assert job.execute_in_process(instance=instance).success
        event = instance.get_latest_materialization_event(PIPELINE_HEALTH)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = {name: entry.value for name, entry in event.asset_materialization.metadata.items()}
    stored = pd.read_parquet(metadata["path"])
    assert len(stored) == metadata["dagster/row_count"]
    assert len(stored) == stored["hour"].nunique() <= 2
    last = stored.iloc[-1]
    for name in NUMBERS:
        assert metadata.get(name, math.nan) == pytest.approx(last[name], nan_ok=True)
    assert metadata["announced_per_minute"] == pytest.approx(2 / 60)
    assert isinstance(metadata["acquired_to_materialized_p95_s"], float)
    assert "no recorder answers" in str(metadata["wrong"])
    found = re.search(r"base64,([^)]+)", str(metadata["last_24_hours"]))
    assert found is not None
    (tmp_path / "figure").write_bytes(base64.b64decode(found[1]))
    with Image.open(tmp_path / "figure") as picture:
        assert picture.size == (720, 780)
