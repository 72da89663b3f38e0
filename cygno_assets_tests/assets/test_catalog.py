"""The event catalogue and its sensor, on real events: a real inbox, S3 server and event log."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    RunRequest,
    SensorResult,
    SkipReason,
    build_schedule_context,
    build_sensor_context,
)
from dagster._core.test_utils import create_run_for_test

from cygno_assets import load_events
from cygno_assets.automation import catalog as automation
from cygno_assets.automation.catalog import build_catalog_sensor, build_event_tensors_schedule
from cygno_assets.build import build_defs
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import (
    ATTEMPT_TAG,
    CATALOG_JOB,
    CATALOG_TAG,
    EVENT_CATALOG,
    EVENT_TENSORS,
    FINAL_TAG,
    LIVE_JOB,
    LIVE_TAG,
    MAX_ATTEMPTS,
)
from cygno_assets.storage import event_tables
from cygno_assets.storage.locations import data_root
from cygno_assets.storage.tensor_table import read_tensor_table
from cygno_assets_tests.assets.detector import RAW, TAKEN, TENSOR, Detector
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dagster import AssetKey, ExecuteInProcessResult

    from cygno_assets.daq.simulator.bucket import BucketSettings

DAY = date.fromisoformat(TAKEN[:10])


@pytest.fixture
def detector(daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path) -> Iterator[Detector]:
    with DagsterInstance.ephemeral() as instance:
        yield Detector(daq_bucket, inbox_url, tmp_path / "home", instance)


def event(number: int) -> str:
    return f"cygno-{number:032x}"


def catalog(
    detector: Detector, day: date = DAY, *, job: str = CATALOG_JOB, **tags: str
) -> ExecuteInProcessResult:
    return (
        build_defs(detector.settings)
        .resolve_job_def(job)
        .execute_in_process(
            partition_key=day.isoformat(),
            instance=detector.instance,
            tags={name.replace("__", "/"): value for name, value in tags.items()},
            raise_on_error=False,
        )
    )


def rows(detector: Detector, day: date = DAY) -> dict[str, dict[str, Any]]:
    table = event_tables.read_day(data_root(detector.settings), day)
    assert table is not None
    return {row["event_id"]: row for row in table.to_dict("records")}


def made(detector: Detector, number: int, **metadata: Any) -> None:
    """Materializations as a run would leave them, without the image."""
    for asset in (RAW, TENSOR):
        detector.instance.report_runless_asset_event(
            AssetMaterialization(asset, partition=event(number), metadata=metadata)
        )


def failed(detector: Detector, number: int, status: str = "failed", **tags: str) -> str:
    run = create_run_for_test(
        detector.instance,
        job_name=LIVE_JOB,
        status=DagsterRunStatus.STARTED,
        tags={
            LIVE_TAG: "true",
            "dagster/partition": event(number),
            **{name.replace("__", "/"): value for name, value in tags.items()},
        },
    )
    if status == "failed":
        detector.instance.report_run_failed(run)
    else:
        detector.instance.report_run_canceled(run)
    return run.run_id


def test_a_row_says_what_the_assets_say(detector: Detector) -> None:
    file = REAL_IMAGES[0]
    event_id = detector.announce(file.read_bytes())
    run = detector.run(event_id)
    assert catalog(detector).success
    row = rows(detector)[event_id]
    image, tensor = detector.metadata(RAW, event_id), detector.metadata(TENSOR, event_id)
    assert row["status"] == "materialized"
    assert row["acquired"] == pd.Timestamp(TAKEN, tz="UTC")
    for name in ("announced", "downloaded"):
        assert row[name].timestamp() == pytest.approx(image[name], abs=1e-5)
    assert row["materialized"] > row["downloaded"] > row["announced"]
    for name in ("source", "stream_sequence", "size_bytes", "md5", "mean_adu", "sd_adu", "min_adu"):
        assert row[name] == image[name]
    for name in ("max_adu", "column_sd_adu", "hottest_column", "hottest_column_excess_adu"):
        assert row[name] == image[name]
    for name in ("brightest_adu", "brightest_row", "brightest_column", "pixel_counts"):
        assert row[name] == image[name]
    for name in ("clipped_low_share", "clipped_high_share", "spec_hash", "latency_s"):
        assert row[name] == tensor[name]
    assert row["run_id"] == run.run_id
    assert row["image_path"] == str(detector.raw_file(event_id))
    assert row["tensor_path"] == str(detector.tensor_file(event_id))
    assert "?" not in row["source"]
    assert pd.isna(row["failure_kind"])
    assert set(row) == {column.name for column in event_tables.EVENT_COLUMNS}

    shown = detector.metadata(EVENT_CATALOG, DAY.isoformat())
    assert (shown["materialized"], shown["failed"], shown["new"]) == (1, 0, 1)
    assert shown["first"] == shown["last"] == row["acquired"].timestamp()
    assert "data:image/" in shown["events_per_hour"]
    assert shown["newest"].records[0].data["event_id"] == event_id


def test_twice_changes_nothing_and_late_events_are_added(detector: Detector) -> None:
    first, *others = [detector.announce(file.read_bytes()) for file in REAL_IMAGES]
    detector.run(first)
    catalog(detector)
    version = detector.data_version(EVENT_CATALOG, DAY.isoformat())
    before = load_events()
    assert catalog(detector).success
    assert detector.data_version(EVENT_CATALOG, DAY.isoformat()) == version
    pd.testing.assert_frame_equal(load_events(), before)
    for late in others:
        detector.run(late)
    catalog(detector)
    assert detector.metadata(EVENT_CATALOG, DAY.isoformat())["new"] == 3
    assert set(rows(detector)) == {first, *others}
    assert detector.data_version(EVENT_CATALOG, DAY.isoformat()) != version


def test_rows_outlive_dagsters_history(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    run = detector.run(event_id)
    catalog(detector)
    before = load_events()
    detector.instance.delete_run(run.run_id)
    assert not detector.instance.get_materialized_partitions(RAW)
    detector.instance.add_dynamic_partitions("daq_event", [event_id])
    catalog(detector)
    pd.testing.assert_frame_equal(load_events(), before)
    # Its tensor made again, by hand and long after: in its own day, what is known is kept.
    again = detector.run(event_id, TENSOR)
    catalog(detector)
    row, old = rows(detector)[event_id], before.iloc[0]
    assert row["run_id"] == again.run_id != old["run_id"]
    assert row["materialized"] > old["materialized"]
    same = ["acquired", "announced", "md5", "mean_adu", "latency_s", "source", "pixel_counts"]
    assert [row[name] for name in same] == [old[name] for name in same]
    catalog(detector, again_day := datetime.now(UTC).date())
    assert rows(detector, again_day) == {}


def test_a_failed_event_is_a_row_until_it_is_made(detector: Detector) -> None:
    data = REAL_IMAGES[0].read_bytes()
    event_id = REAL_IMAGES[0].stem
    fill_inbox(
        detector.inbox_url,
        [message(f"{event_id}.jpg", f"https://{detector.bucket.bucket}.invalid/x?sig=1", TAKEN)],
    )
    assert not detector.run(event_id).success
    catalog(detector)
    row = rows(detector)[event_id]
    assert (row["status"], row["failure_kind"]) == ("failed", "not_allowed")
    assert "CYGNO_DOWNLOAD_HOSTS" in row["failure_reason"]
    assert row["acquired"] == pd.Timestamp(TAKEN, tz="UTC")
    assert row["stream_sequence"] == 1
    assert "sig" not in str(row)

    detector.announce(data)
    detector.run(event_id)
    catalog(detector)
    row = rows(detector)[event_id]
    assert row["status"] == "materialized"
    assert pd.isna(row["failure_kind"])
    assert pd.isna(row["failure_reason"])

    failed(detector, int(event_id[6:], 16), cygno__failed_for_good="expired")
    catalog(detector)
    assert detector.metadata(EVENT_CATALOG, DAY.isoformat())["new"] == 1
    assert rows(detector)[event_id] == row


def test_only_what_nothing_runs_again_has_failed(detector: Detector) -> None:
    fill_inbox(detector.inbox_url, [])
    failed(detector, 1)
    failed(detector, 2, **{FINAL_TAG.replace("/", "__"): "wrong_content"})
    failed(detector, 3, **{ATTEMPT_TAG.replace("/", "__"): str(MAX_ATTEMPTS)})
    failed(detector, 4, "canceled")
    failed(detector, 5, dagster__will_retry="true", cygno__failed_for_good="x")
    today = datetime.now(UTC).date()  # nobody knows when they were acquired
    catalog(detector, today)
    kinds = {name: row["failure_kind"] for name, row in rows(detector, today).items()}
    assert kinds == {event(2): "wrong_content", event(3): "failure", event(4): "canceled"}
    assert rows(detector, today)[event(3)]["acquired"] is pd.NaT


def test_events_go_to_the_day_they_were_acquired_in(detector: Detector) -> None:
    now = datetime.now(UTC)
    times = {
        1: datetime(2024, 11, 27, 23, 59, 59, 999_999, tzinfo=UTC),
        2: datetime(2024, 11, 28, tzinfo=UTC),
        3: datetime(2023, 5, 1, tzinfo=UTC),  # before the first partition
        4: now + timedelta(hours=23),  # the DAQ's clock is ahead
    }
    for number, time in times.items():
        made(detector, number, acquired=time.timestamp(), downloaded=now.timestamp())
    days = [date(2024, 11, 27), date(2024, 11, 28), date(2024, 1, 1), now.date()]
    found: list[str] = []
    for day in days:
        assert catalog(detector, day).success
        found += rows(detector, day)
    assert sorted(found) == [event(number) for number in times]
    assert set(rows(detector, days[0])) == {event(1)}
    assert set(rows(detector, days[1])) == {event(2)}
    assert set(rows(detector, days[2])) == {event(3)}
    assert list(load_events("2024-11-27", "2024-11-27")["event_id"]) == [event(1)]
    assert list(load_events(since=now.date())["event_id"]) == [event(4)]


def test_announced_anew_an_event_stays_in_its_day(detector: Detector) -> None:
    event_id = detector.announce(REAL_IMAGES[0].read_bytes())
    detector.run(event_id)
    catalog(detector)
    later = DAY + timedelta(days=1)
    fill_inbox(
        detector.inbox_url,
        [message(f"{event_id}.jpg", "https://daq.invalid/x", f"{later} 01:00:00")],
    )
    assert detector.run(event_id).success
    catalog(detector, later)
    catalog(detector)
    assert rows(detector, later) == {}
    assert rows(detector)[event_id]["acquired"] == pd.Timestamp(TAKEN, tz="UTC")


def test_a_damaged_day_is_not_written_over(detector: Detector) -> None:
    made(detector, 1, acquired=datetime.fromisoformat(f"{DAY} 12:00:00+00:00").timestamp())
    catalog(detector)
    file = detector.home / "data" / "event_catalog" / f"{DAY}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    damaged = file.read_bytes()
    assert not catalog(detector).success
    assert file.read_bytes() == damaged
    file.unlink()  # moved away: made anew, whatever the sensor believes
    assert catalog(detector, cygno__catalog="1000000").success
    assert set(rows(detector)) == {event(1)}


class Sensor:
    """Ticks, keeps its cursor, and runs what it requests."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.cursor: str | None = None

    def tick(self) -> list[RunRequest]:
        detector = self.detector
        context = build_sensor_context(
            instance=detector.instance,
            cursor=self.cursor,
            definitions=build_defs(detector.settings),
            resources={"inbox": Inbox(lambda: detector.inbox_url)},
        )
        result = build_catalog_sensor(detector.settings)(context)
        assert isinstance(result, SensorResult)
        self.cursor = result.cursor
        return list(result.run_requests or [])

    def run(self, requests: list[RunRequest]) -> None:
        for request in requests:
            day = date.fromisoformat(str(request.partition_key))
            catalog(self.detector, day, cygno__catalog=request.tags[CATALOG_TAG])


def test_the_sensor_requests_the_days_that_have_something_new(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_inbox(detector.inbox_url, [])
    sensor = Sensor(detector)
    assert sensor.tick() == []
    noon = datetime(2024, 11, 27, 12, tzinfo=UTC).timestamp()
    made(detector, 1, acquired=noon, downloaded=noon)
    made(detector, 2, acquired=noon + 86_400, downloaded=noon)
    failed(detector, 3, cygno__failed_for_good="gone")
    requests = sensor.tick()
    today = datetime.now(UTC).date().isoformat()
    assert [one.partition_key for one in requests] == ["2024-11-27", "2024-11-28", today]
    assert all(LIVE_TAG not in one.tags for one in requests)
    sensor.run(requests)
    assert len(load_events()) == 3
    assert sensor.tick() == []

    # A late event; its run fails, and is requested again until the catalogue has read so far.
    made(detector, 4, acquired=noon + 1, downloaded=noon)
    [request] = sensor.tick()
    place = int(request.tags[CATALOG_TAG])
    assert place > 0
    [again] = sensor.tick()
    assert (again.partition_key, again.tags) == (request.partition_key, request.tags)
    run = create_run_for_test(
        detector.instance,
        job_name=CATALOG_JOB,
        status=DagsterRunStatus.STARTED,
        tags={"dagster/partition": "2024-11-27"},
    )
    assert sensor.tick() == []
    detector.instance.report_run_failed(run)  # no event's failure
    sensor.run(sensor.tick())
    assert set(rows(detector, date(2024, 11, 27))) == {event(1), event(4)}
    assert sensor.tick() == []

    # More than one look reads.
    monkeypatch.setattr(automation, "_EVENTS_AT_ONCE", 2)
    for number in range(10, 15):
        made(detector, number, acquired=noon + number, downloaded=noon)
    for _ in range(4):
        sensor.run(sensor.tick())
    assert sensor.tick() == []
    assert len(rows(detector, date(2024, 11, 27))) == 7


def test_a_cursor_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="none of this sensor; delete it"):
        automation.Cursor.parse('{"sequence": 1}')


def test_the_schedule_requests_ended_days_that_changed(tmp_path: Path) -> None:
    night = datetime(2026, 1, 2, 1, 30, tzinfo=UTC)
    with DagsterInstance.local_temp(str(tmp_path)) as instance:

        def requested() -> list[str]:
            context = build_schedule_context(instance=instance, scheduled_execution_time=night)
            found = build_event_tensors_schedule()(context)
            if isinstance(found, SkipReason):
                return []
            return [str(request.partition_key) for request in found]

        def report(asset: AssetKey, day: str) -> None:
            instance.report_runless_asset_event(AssetMaterialization(asset, partition=day))

        assert requested() == []
        for day in ("2026-01-01", "2025-12-24", "2026-01-02"):
            report(EVENT_CATALOG, day)
        assert requested() == ["2025-12-24", "2026-01-01"]
        report(EVENT_TENSORS, "2026-01-01")
        report(EVENT_TENSORS, "2025-12-24")
        assert requested() == []
        report(EVENT_CATALOG, "2025-12-24")  # a late event
        assert requested() == ["2025-12-24"]


def test_a_days_tensors_are_one_dataset(detector: Detector) -> None:
    events = [detector.announce(file.read_bytes()) for file in REAL_IMAGES]
    for one in events[:3]:
        detector.run(one)
    detector.overrides["window_high"] = 130.0
    detector.run(events[3])
    del detector.overrides["window_high"]
    catalog(detector)
    detector.tensor_file(events[2]).unlink()
    assert catalog(detector, job="day_of_tensors").success
    table = read_tensor_table(detector.home / "data" / "event_tensors" / f"{DAY}.parquet")
    assert set(table.rows["event_id"]) == set(events[:2])
    for one, tensor in zip(table.rows["event_id"], table.tensors, strict=True):
        assert np.array_equal(tensor, np.load(detector.tensor_file(one)))
    assert set(table.rows["spec_hash"]) == {detector.settings.preprocess_spec.hash}
    assert table.rows["acquired"][0] == pd.Timestamp(TAKEN, tz="UTC")
    shown = detector.metadata(EVENT_TENSORS, DAY.isoformat())
    assert (shown["of_another_spec"], shown["gone_or_damaged"]) == (1, 1)
    assert detector.settings.preprocess_spec.hash not in shown["other_specs"]
    version = detector.data_version(EVENT_TENSORS, DAY.isoformat())
    catalog(detector, job="day_of_tensors")
    assert detector.data_version(EVENT_TENSORS, DAY.isoformat()) == version


def test_without_events_there_is_an_empty_day_and_without_catalogue_no_dataset(
    detector: Detector,
) -> None:
    with pytest.raises(FileNotFoundError, match="there is no event_catalog in file:///"):
        load_events()
    assert not catalog(detector, job="day_of_tensors").success
    assert catalog(detector).success
    assert load_events().empty
    assert catalog(detector, job="day_of_tensors").success
    table = read_tensor_table(detector.home / "data" / "event_tensors" / f"{DAY}.parquet")
    assert table.tensors.shape == (0, 128, 128)


def test_days_are_days() -> None:
    with pytest.raises(ValueError, match="since = 'yesterday': must be a day such as"):
        load_events("yesterday")
