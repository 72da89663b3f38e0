"""How well the live pipeline is, measured on a real inbox, real runs and a real folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from dagster import AssetMaterialization, DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from hypothesis import given
from hypothesis import strategies as st

from cygno_assets.daq.inbox import Inbox
from cygno_assets.daq.recorder import RecorderCounts
from cygno_assets.names import (
    ATTEMPT_TAG,
    DAQ_EVENTS,
    FAILED_EVENTS,
    FINAL_TAG,
    LIVE_TAG,
    MAX_ATTEMPTS,
    PARTITION_TAG,
    RAW_IMAGE,
    SEQUENCE_TAG,
)
from cygno_assets.records import health
from cygno_assets.records.health import (
    NUMBERS,
    STAGES,
    Backlog,
    Disk,
    Health,
    Rate,
    folder_bytes,
    measure,
)
from cygno_assets.settings import Settings, load_settings
from cygno_assets_tests.assets.detector import Detector
from cygno_assets_tests.records.sensors import remembers
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings

WELL = Health(
    measured=0.0,
    inbox_answers=True,
    recorders=[
        RecorderCounts("recorder 1", refused_s=60.0),
        RecorderCounts("recorder 2", daq_connected=True),
    ],
    announced=Rate(1, 60),
    materialized=Rate(1, 60),
    backlog=Backlog(waiting=1, unfinished=2, retrying=3, oldest_s=1.0, url_expires_in_s=3599.0),
    latencies={},
    failed={},
    rejected=0,
    executing=1,
    disk=Disk(data=5, training=4, dagster=3, inbox=2, logs=1, free=10**11),
)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    # Not an ephemeral one: that has no place for cursors.
    with DagsterInstance.local_temp(str(tmp_path)) as real:
        yield real


@pytest.fixture
def settings(inbox_url: str, tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir()
    return load_settings({"inbox_url": inbox_url})


def measured(instance: DagsterInstance, settings: Settings) -> Health:
    return measure(instance, Inbox(settings.resolve_inbox_url), settings)


def url(name: str, *, signed_ago: timedelta, lives_s: int = 3600) -> str:
    signed = datetime.now(UTC) - signed_ago
    return (
        f"https://minio/{name}?X-Amz-Date={signed:%Y%m%dT%H%M%SZ}&X-Amz-Expires={lives_s}"
        "&X-Amz-Signature=c0ffee"
    )


def announce(inbox_url: str, *names: str, ago: timedelta = timedelta()) -> None:
    fill_inbox(inbox_url, [message(f"{name}.jpg", url(name, signed_ago=ago)) for name in names])


def test_what_left_the_inbox_unread_is_wrong(instance: DagsterInstance, settings: Settings) -> None:
    announce(str(settings.inbox_url), "a")
    stream = Inbox(settings.resolve_inbox_url).state().created
    remembers(instance, DAQ_EVENTS, stream=stream, sequence=1)
    assert not any("lost" in text for text in measured(instance, settings).wrong(settings))
    remembers(instance, DAQ_EVENTS, stream=stream, sequence=1, aged_out=3)
    lost = "lost: 3 messages left the inbox, for age or size, before they were read"
    assert lost in measured(instance, settings).wrong(settings)


def test_events_go_from_the_inbox_through_runs_and_are_made_again(
    instance: DagsterInstance, settings: Settings
) -> None:
    inbox_url = str(settings.inbox_url)
    settings = load_settings({"inbox_url": inbox_url, "names_without_md5": True})
    announce(inbox_url, "a", ago=timedelta(minutes=50))
    announce(inbox_url, "b", "c")
    state = Inbox(settings.resolve_inbox_url).state()

    found = measured(instance, settings)
    assert found.announced == Rate(3, 3)
    assert found.backlog.waiting == found.backlog.events == 3
    assert found.backlog.url_expires_in_s == pytest.approx(600, abs=30)
    assert found.backlog.oldest_s is not None
    assert 0 <= found.backlog.oldest_s < 60
    assert "c0ffee" not in repr(found)

    remembers(instance, DAQ_EVENTS, stream=state.created, sequence=2)
    run = create_run_for_test(
        instance,
        status=DagsterRunStatus.STARTED,
        tags={LIVE_TAG: "true", PARTITION_TAG: "b", SEQUENCE_TAG: "2"},
    )
    found = measured(instance, settings)
    assert (found.backlog.waiting, found.backlog.unfinished, found.executing) == (1, 1, 1)
    assert found.backlog.url_expires_in_s == pytest.approx(3600, abs=30)

    waiting = {"a": {"run_id": "x", "due": 0, "sequence": 1}, "b": {"run_id": "y", "due": 0}}
    remembers(instance, FAILED_EVENTS, storage_id=1, waiting=waiting)
    found = measured(instance, settings)
    assert found.backlog.retrying == 1  # for b is being made
    assert found.backlog.url_expires_in_s == pytest.approx(600, abs=30)

    # Announced again, it has a new URL.
    announce(inbox_url, "a")
    assert measured(instance, settings).backlog.url_expires_in_s == pytest.approx(3600, abs=30)
    instance.report_run_canceled(run)
    remembers(instance, FAILED_EVENTS, storage_id=1, waiting={})
    remembers(instance, DAQ_EVENTS, stream=state.created, sequence=4)
    found = measured(instance, settings)
    assert found.backlog == Backlog(waiting=0, unfinished=0, retrying=0)
    assert found.numbers()["backlog_oldest_s"] == 0


def test_latencies_are_of_what_the_pipeline_made_by_itself(
    daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path, instance: DagsterInstance
) -> None:
    detector = Detector(daq_bucket, inbox_url, tmp_path / "home", instance)
    events = [detector.announce(file.read_bytes()) for file in REAL_IMAGES[:3]]
    for event in events[:2]:
        assert detector.run(event).success
    assert measured(instance, detector.settings).materialized == Rate(2, 2)
    assert detector.run(events[2], RAW_IMAGE).success  # by hand
    found = measured(instance, detector.settings)
    assert set(found.latencies) == set(STAGES)
    assert {latency.events for latency in found.latencies.values()} == {2}
    assert found.rejected == 0
    years = found.latencies["acquired_to_announced"]  # TAKEN is of 2024
    assert years.p50_s > 86_400
    assert found.latencies["announced_to_downloaded"].p95_s < 60
    assert found.latencies["acquired_to_materialized"].p50_s >= years.p50_s
    assert found.disk.data is not None
    assert found.disk.data > 2 * 40_000
    numbers = found.numbers()
    assert list(numbers) == list(NUMBERS)
    assert numbers["materialized_per_minute"] == found.materialized.last_hour / 60
    assert numbers["recorders"] == 0
    assert json.loads(json.dumps(numbers))


def test_failed_is_what_nothing_makes_again(instance: DagsterInstance, settings: Settings) -> None:
    def failed(event: str, **tags: str) -> None:
        run = create_run_for_test(
            instance,
            status=DagsterRunStatus.STARTED,
            tags={LIVE_TAG: "true", PARTITION_TAG: event, **tags},
        )
        instance.report_run_failed(run)

    failed("a", **{FINAL_TAG: "expired"})
    failed("b", **{FINAL_TAG: "expired"})
    failed("c", **{ATTEMPT_TAG: str(MAX_ATTEMPTS)})
    failed("passing")
    failed("dagster's", **{FINAL_TAG: "x", "dagster/will_retry": "true"})
    failed("mended", **{FINAL_TAG: "expired"})
    instance.report_runless_asset_event(
        AssetMaterialization("preprocessed_tensor", partition="mended")
    )
    failed("again", **{FINAL_TAG: "missing"})
    create_run_for_test(instance, status=DagsterRunStatus.STARTED, tags={PARTITION_TAG: "again"})
    assert measured(instance, settings).failed == {"expired": 2, "failure": 1}


def test_without_an_inbox_the_rest_is_measured_all_the_same(
    instance: DagsterInstance, settings: Settings
) -> None:
    away = load_settings({"inbox_url": "nats://127.0.0.1:1"})
    for found in (measured(instance, away), measured(instance, settings)):  # or without a stream
        assert not found.inbox_answers
        assert found.backlog.waiting is None
        assert math.isnan(found.numbers()["announced_per_minute"])
        assert found.disk.free > 0
        assert found.wrong(away)[0] == "the inbox does not answer"


def test_all_well_is_nothing_wrong() -> None:
    assert WELL.wrong(load_settings()) == []
    assert WELL.numbers()["backlog_events"] == 6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"recorders": []}, "no recorder answers"),
        ({"recorders": [RecorderCounts()]}, "the DAQ is not connected"),
        (
            {
                "recorders": [
                    RecorderCounts(refused_s=30.0, daq_connected=True),
                    RecorderCounts(refused_s=40.0),
                ]
            },
            "the inbox has stored nothing for 30 s",
        ),
        (
            {"recorders": [RecorderCounts("recorder 1", dropped=7, daq_connected=True)]},
            "recorder 1 has dropped 7 messages since it was started",
        ),
        ({"failed": {"expired": 2, "missing": 1}}, "events failed for good in the last day: 3"),
        (
            {"backlog": Backlog(2, 0, 0, 700.0, 2900.0)},
            "the oldest of 2 events has waited 700 s",
        ),
        ({"backlog": Backlog(2, 0, 0, 7.0, -3.0)}, "the URL of the oldest event expired 3 s ago"),
        ({"disk": Disk(0, 0, 0, 0, 0, 10**9)}, "the disk is nearly full: 1.0 GB free"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said(wrong: dict[str, object], said: str) -> None:
    [line] = replace(WELL, **wrong).wrong(load_settings())  # type: ignore[arg-type]  # any field
    assert line.startswith(said)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_percentiles_are_of_the_values(values: list[float]) -> None:
    latency = health._latency(values)
    assert latency.events == len(values)
    assert min(values) - 1e-3 <= latency.p50_s <= latency.p95_s <= max(values) + 1e-3


def test_a_folder_has_the_size_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder_bytes(tmp_path / "none") == 0
    (tmp_path / "below").mkdir()
    for number in range(20):
        (tmp_path / "below" / str(number)).write_bytes(b"x" * 100)
    (tmp_path / "other").write_bytes(b"x" * 7)
    (tmp_path / "link").symlink_to("/usr")
    exact = folder_bytes(tmp_path)
    assert exact == 2007 + len("/usr")
    monkeypatch.setattr(health, "_STATTED_AT_MOST", 6)
    assert folder_bytes(tmp_path) == exact
