"""The sensor `failed_events`: which failed runs it follows with another, and when."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunsFilter,
    SensorResult,
    build_sensor_context,
)
from dagster._core.test_utils import create_run_for_test

from cygno_assets.automation import retries
from cygno_assets.automation.retries import Cursor, build_failed_events_sensor
from cygno_assets.build import build_defs
from cygno_assets.names import (
    ATTEMPT_TAG,
    DAQ_EVENTS,
    DOUBTS_TAG,
    FINAL_TAG,
    LIVE_TAG,
    MAX_ATTEMPTS,
    SEQUENCE_TAG,
)
from cygno_assets.records.history import failed_events, may_pass
from cygno_assets.settings import load_settings
from cygno_assets_tests.records.sensors import remembers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    # Not an ephemeral one: that has no place for cursors.
    with DagsterInstance.local_temp(str(tmp_path)) as real:
        yield real


class Sensor:
    """Ticks, and keeps its cursor."""

    def __init__(self, instance: DagsterInstance, unfinished: int = 100) -> None:
        self.instance = instance
        self.settings = load_settings({"max_unfinished_live_runs": unfinished})
        self.definitions = build_defs(self.settings)
        self.cursor: str | None = None
        self.tick()

    def tick(self) -> dict[str, dict[str, str]]:
        """Tags of the runs requested, by event."""
        result = build_failed_events_sensor(self.settings)(
            build_sensor_context(
                instance=self.instance, cursor=self.cursor, definitions=self.definitions
            )
        )
        assert isinstance(result, SensorResult)
        self.cursor = result.cursor
        return {str(r.partition_key): dict(r.tags) for r in result.run_requests or []}


def failed(instance: DagsterInstance, event: str, **tags: str) -> DagsterRun:
    run = create_run_for_test(
        instance,
        status=DagsterRunStatus.STARTED,
        tags={LIVE_TAG: "true", "dagster/partition": event, SEQUENCE_TAG: "7", **tags},
    )
    instance.report_run_failed(run)
    return run


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.0)


@pytest.mark.usefixtures("_no_pause")
def test_a_run_that_failed_is_followed_by_one_more_of_its_event(instance: DagsterInstance) -> None:
    sensor = Sensor(instance)
    failed(instance, "a")
    assert sensor.tick() == {
        "a": {LIVE_TAG: "true", ATTEMPT_TAG: "1", SEQUENCE_TAG: "7", DOUBTS_TAG: "0"}
    }
    assert sensor.tick() == {}
    failed(instance, "a", **{ATTEMPT_TAG: "1", DOUBTS_TAG: "2"})
    again = sensor.tick()["a"]
    assert (again[ATTEMPT_TAG], again[DOUBTS_TAG]) == ("2", "2")


def test_pauses_grow_to_five_minutes(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(instance)
    now = time.time()
    for attempt in range(8):
        failed(instance, f"event{attempt}", **{ATTEMPT_TAG: str(attempt)})
    due = []
    for seconds in range(0, 400, 5):
        monkeypatch.setattr(retries.time, "time", lambda s=seconds: now + s)
        due += [(event, seconds) for event in sensor.tick()]
    assert [seconds for _, seconds in sorted(due)] == pytest.approx(
        [10, 20, 40, 80, 160, 300, 300, 300], abs=5
    )


@pytest.mark.usefixtures("_no_pause")
@pytest.mark.parametrize(
    "tags",
    [{FINAL_TAG: "expired"}, {ATTEMPT_TAG: str(MAX_ATTEMPTS)}, {LIVE_TAG: "false-no-tag"}],
    ids=["for good", "often enough", "not live"],
)
def test_what_is_of_no_use_stays_failed(instance: DagsterInstance, tags: dict[str, str]) -> None:
    sensor = Sensor(instance)
    if LIVE_TAG in tags:  # one that a person started
        run = create_run_for_test(instance, tags={"dagster/partition": "a"})
        instance.report_run_failed(run)
    else:
        failed(instance, "a", **tags)
    assert sensor.tick() == {}
    assert set(failed_events(instance, ["a"])) == {"a"}


@pytest.mark.usefixtures("_no_pause")
def test_what_is_made_or_being_made_meanwhile_is_left_alone(instance: DagsterInstance) -> None:
    sensor = Sensor(instance)
    for event in ("made", "running", "dagster's"):
        failed(instance, event)
    [run] = instance.get_runs(RunsFilter(tags={"dagster/partition": "dagster's"}))
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    instance.report_runless_asset_event(
        AssetMaterialization("preprocessed_tensor", partition="made")
    )
    create_run_for_test(
        instance, status=DagsterRunStatus.STARTED, tags={"dagster/partition": "running"}
    )
    assert sensor.tick() == {}
    assert set(json.loads(str(sensor.cursor))["waiting"]) == {"dagster's"}
    instance.add_run_tags(run.run_id, {"dagster/auto_retry_run_id": "x"})
    assert sensor.tick() == {}
    assert json.loads(str(sensor.cursor))["waiting"] == {}


@pytest.mark.usefixtures("_no_pause")
def test_an_event_that_dagster_does_not_retry_after_all_is_not_forgotten(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(instance)
    run = failed(instance, "a")
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    now = time.time()
    assert sensor.tick() == {}
    monkeypatch.setattr(retries.time, "time", lambda: now + 130)
    assert set(sensor.tick()) == {"a"}


@pytest.mark.usefixtures("_no_pause")
def test_what_is_requested_is_held_until_its_run_is_there(instance: DagsterInstance) -> None:
    """Or the other sensor, in the same moment, would see neither."""
    sensor = Sensor(instance)
    failed(instance, "a")
    assert set(sensor.tick()) == {"a"}
    assert set(json.loads(str(sensor.cursor))["waiting"]) == {"a"}
    assert sensor.tick() == {}
    assert json.loads(str(sensor.cursor))["waiting"] == {}


def test_an_event_that_is_announced_again_does_not_wait(instance: DagsterInstance) -> None:
    sensor = Sensor(instance)
    failed(instance, "a", **{ATTEMPT_TAG: "5", DOUBTS_TAG: "2"})
    failed(instance, "b")
    remembers(instance, DAQ_EVENTS, stream="then", sequence=9, passed_over={"a": 9, "b": 7})
    assert sensor.tick() == {"a": {LIVE_TAG: "true", SEQUENCE_TAG: "9"}}


@pytest.mark.usefixtures("_no_pause")
def test_no_more_than_there_is_room_for_and_the_others_wait(instance: DagsterInstance) -> None:
    sensor = Sensor(instance, unfinished=3)
    for number in range(5):
        failed(instance, f"event{number}")
    create_run_for_test(instance, status=DagsterRunStatus.STARTED, tags={LIVE_TAG: "true"})
    assert len(sensor.tick()) == 2
    assert len(sensor.tick()) == 2
    assert len(sensor.tick()) == 1
    assert sensor.tick() == {}


@pytest.mark.usefixtures("_no_pause")
def test_failures_from_long_before_the_first_tick_are_old(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(instance, "old")
    now = time.time()
    monkeypatch.setattr(retries.time, "time", lambda: now + 3700)
    sensor = Sensor(instance)
    monkeypatch.setattr(retries.time, "time", time.time)
    assert sensor.tick() == {}
    failed(instance, "new")
    assert set(sensor.tick()) == {"new"}


def test_the_first_failures_of_a_new_home_are_read(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(instance, "a")
    sensor = Sensor(instance)
    now = time.time()
    monkeypatch.setattr(retries.time, "time", lambda: now + 15)
    assert set(sensor.tick()) == {"a"}


def test_an_event_that_will_be_made_again_is_not_called_failed(instance: DagsterInstance) -> None:
    run = failed(instance, "a")
    [run] = instance.get_runs(RunsFilter(run_ids=[run.run_id]))
    assert may_pass(run)
    assert failed_events(instance, ["a"]) == {}


@pytest.mark.parametrize("text", ["7", "later", '{"waiting": {"a": 1}, "storage_id": 1}'])
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none of this sensor"):
        Cursor.parse(text)
