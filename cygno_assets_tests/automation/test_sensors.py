"""The sensor `daq_events` against a real inbox."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Definitions,
    SensorResult,
    build_sensor_context,
)
from dagster._core.scheduler.instigation import InstigatorStatus
from dagster._core.test_utils import create_run_for_test

from cygno_assets.automation.sensors import Cursor, build_daq_events_sensor
from cygno_assets.build import build_defs
from cygno_assets.daq import inbox
from cygno_assets.daq.inbox import Inbox, InboxUnavailableError, StreamState
from cygno_assets.names import FAILED_EVENTS, LIVE_TAG, SEQUENCE_TAG
from cygno_assets.records import history
from cygno_assets.settings import load_settings
from cygno_assets_tests.records.sensors import remembers
from cygno_assets_tests.wire import fill_inbox, message, with_jetstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nats.js import JetStreamContext


def event_id(number: int) -> str:
    return f"cygno-{number:032x}"


def announce(url: str, *numbers: int, taken: str = "2024-11-27 14:27:36") -> None:
    fill_inbox(
        url, [message(f"{event_id(n)}.jpg", "https://daq.invalid/x?sig=1", taken) for n in numbers]
    )


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    # Not an ephemeral one: that has no place for cursors.
    with DagsterInstance.local_temp(str(tmp_path)) as real:
        yield real


def tick(
    instance: DagsterInstance, url: str, cursor: str | None = None, *, unfinished: int = 100
) -> SensorResult:
    settings = load_settings({"max_unfinished_live_runs": unfinished})
    result = build_daq_events_sensor(settings)(
        build_sensor_context(
            instance=instance,
            cursor=cursor,
            resources={"inbox": Inbox(lambda: url)},
            definitions=build_defs(settings),
        )
    )
    assert isinstance(result, SensorResult)
    return result


def requested(result: SensorResult) -> list[str]:
    return [str(request.partition_key) for request in result.run_requests or []]


def cursor_of(result: SensorResult) -> dict[str, object]:
    assert result.cursor is not None
    return dict(json.loads(result.cursor))


def skipped(result: SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_one_run_request_for_each_event_with_only_its_key_and_tracing_tags(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2, 3)
    result = tick(instance, inbox_url)
    assert requested(result) == [event_id(1), event_id(2), event_id(3)]
    for number, request in enumerate(result.run_requests or [], start=1):
        assert request.run_config == {}
        assert request.run_key is None
        assert request.tags[LIVE_TAG] == "true"
        assert request.tags[SEQUENCE_TAG] == str(number)
    added = result.dynamic_partitions_requests or []
    assert [list(request.partition_keys) for request in added] == [requested(result)]
    assert cursor_of(result)["sequence"] == 3


def test_the_next_tick_reads_on_and_an_idle_one_says_how_far(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2)
    first = tick(instance, inbox_url)
    announce(inbox_url, 3)
    second = tick(instance, inbox_url, first.cursor)
    assert requested(second) == [event_id(3)]
    third = tick(instance, inbox_url, second.cursor)
    assert requested(third) == []
    assert "read up to sequence 3" in skipped(third)
    assert third.cursor == second.cursor


def test_an_event_with_a_tensor_is_not_requested_again(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2)
    instance.report_runless_asset_event(
        AssetMaterialization("preprocessed_tensor", partition=event_id(1))
    )
    assert requested(tick(instance, inbox_url)) == [event_id(2)]


@pytest.mark.parametrize(
    ("status", "again"),
    [
        (DagsterRunStatus.NOT_STARTED, False),
        (DagsterRunStatus.STARTED, False),
        (DagsterRunStatus.CANCELING, False),
        (DagsterRunStatus.FAILURE, True),
        (DagsterRunStatus.CANCELED, True),
    ],
)
def test_an_event_in_flight_is_not_requested_again_but_a_failed_one_is(
    instance: DagsterInstance, inbox_url: str, status: DagsterRunStatus, again: bool
) -> None:
    announce(inbox_url, 1)
    create_run_for_test(instance, status=status, tags={"dagster/partition": event_id(1)})
    assert requested(tick(instance, inbox_url)) == ([event_id(1)] if again else [])


def test_a_re_announcement_in_the_same_tick_is_one_request(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2)
    announce(inbox_url, 1, taken="2024-11-27 16:00:00")
    result = tick(instance, inbox_url)
    assert sorted(requested(result)) == [event_id(1), event_id(2)]
    assert cursor_of(result)["sequence"] == 3


LATER = "2024-11-27 16:00:00"


def run_of(
    instance: DagsterInstance,
    number: int,
    sequence: int,
    status: DagsterRunStatus = DagsterRunStatus.STARTED,
    **tags: str,
) -> DagsterRun:
    known = {LIVE_TAG: "true", "dagster/partition": event_id(number), SEQUENCE_TAG: str(sequence)}
    return create_run_for_test(instance, status=status, tags={**known, **tags})


def test_an_announcement_that_came_while_a_run_was_failing_is_not_swallowed(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1)
    first = tick(instance, inbox_url)
    run = run_of(instance, 1, sequence=1)
    announce(inbox_url, 1, taken=LATER)
    meanwhile = tick(instance, inbox_url, first.cursor)
    assert requested(meanwhile) == []
    assert cursor_of(meanwhile)["passed_over"] == {event_id(1): 2}
    assert requested(tick(instance, inbox_url, meanwhile.cursor)) == []
    instance.report_run_failed(run)
    after = tick(instance, inbox_url, meanwhile.cursor)
    assert requested(after) == [event_id(1)]
    assert (after.run_requests or [])[0].tags[SEQUENCE_TAG] == "2"
    assert cursor_of(after)["passed_over"] == {}


@pytest.mark.parametrize("made", [True, False], ids=["made", "failed on that one too"])
def test_what_was_passed_over_and_needs_nothing_is_forgotten(
    instance: DagsterInstance, inbox_url: str, made: bool
) -> None:
    announce(inbox_url, 1)
    run = run_of(instance, 1, sequence=1)
    announce(inbox_url, 1, taken=LATER)
    meanwhile = tick(instance, inbox_url)
    assert cursor_of(meanwhile)["passed_over"] == {event_id(1): 2}
    if made:
        instance.report_runless_asset_event(
            AssetMaterialization("preprocessed_tensor", partition=event_id(1))
        )
    else:
        instance.add_run_tags(run.run_id, {SEQUENCE_TAG: "2"})  # as a run that looked does
    instance.report_run_failed(run)
    after = tick(instance, inbox_url, meanwhile.cursor)
    assert requested(after) == []
    assert cursor_of(after)["passed_over"] == {}


def test_what_failed_events_has_is_left_to_it(instance: DagsterInstance, inbox_url: str) -> None:
    announce(inbox_url, 1, 2)
    waiting = {"run_id": "x", "due": 0.0, "sequence": 1}
    remembers(instance, FAILED_EVENTS, storage_id=1, waiting={event_id(1): waiting})
    result = tick(instance, inbox_url)
    assert requested(result) == [event_id(2)]
    assert cursor_of(result)["passed_over"] == {event_id(1): 1}
    # It is switched off, or gives it up without a run: this one takes it.
    stopped = InstigatorStatus.STOPPED
    remembers(instance, FAILED_EVENTS, stopped, storage_id=1, waiting={event_id(1): waiting})
    assert requested(tick(instance, inbox_url, result.cursor)) == [event_id(1)]
    remembers(instance, FAILED_EVENTS, storage_id=1, waiting={})
    assert requested(tick(instance, inbox_url, result.cursor)) == [event_id(1)]


def test_an_event_whose_process_died_is_left_to_dagsters_retry(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1)
    died = run_of(instance, 1, 1, DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    before = tick(instance, inbox_url)
    assert requested(before) == []
    retry = run_of(instance, 1, sequence=1)
    instance.add_run_tags(died.run_id, {"dagster/auto_retry_run_id": retry.run_id})
    announce(inbox_url, 1, taken=LATER)
    during = tick(instance, inbox_url, before.cursor)
    assert requested(during) == []
    instance.report_run_failed(retry)
    assert requested(tick(instance, inbox_url, during.cursor)) == [event_id(1)]


def test_a_retry_that_does_not_come_is_not_waited_for_for_ever(
    instance: DagsterInstance, inbox_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(inbox_url, 1)
    run_of(instance, 1, 0, DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    passed = tick(instance, inbox_url)
    assert requested(passed) == []
    monkeypatch.setattr(history, "RETRIED_WITHIN", timedelta(0))
    assert requested(tick(instance, inbox_url, passed.cursor)) == [event_id(1)]


def test_more_than_there_is_room_for_is_not_forgotten(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2)
    runs = [run_of(instance, number, sequence=0) for number in (1, 2)]
    passed = tick(instance, inbox_url)
    for run in runs:
        instance.report_run_failed(run)
    announce(inbox_url, 3)
    first = tick(instance, inbox_url, passed.cursor, unfinished=2)
    assert requested(first) == [event_id(3), event_id(1)]
    assert cursor_of(first)["passed_over"] == {event_id(2): 2}
    assert requested(tick(instance, inbox_url, first.cursor)) == [event_id(2)]


def test_setting_the_cursor_back_makes_what_is_missing(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2, 3)
    read = tick(instance, inbox_url)
    for number in (1, 3):
        instance.report_runless_asset_event(
            AssetMaterialization("preprocessed_tensor", partition=event_id(number))
        )
    back = json.dumps(cursor_of(read) | {"sequence": 0})
    assert requested(tick(instance, inbox_url, back)) == [event_id(2)]
    assert requested(tick(instance, inbox_url, "0")) == [event_id(2)]


def test_backlog_stays_in_the_inbox(instance: DagsterInstance, inbox_url: str) -> None:
    announce(inbox_url, 1, 2, 3, 4)
    first = tick(instance, inbox_url, unfinished=3)
    assert requested(first) == [event_id(1), event_id(2), event_id(3)]
    for number in (1, 2):
        create_run_for_test(
            instance,
            status=DagsterRunStatus.STARTING,
            tags={LIVE_TAG: "true", "dagster/partition": event_id(number)},
        )
    # Runs that are not live leave the live ones their room.
    create_run_for_test(instance, status=DagsterRunStatus.STARTING)
    assert requested(tick(instance, inbox_url, first.cursor, unfinished=3)) == [event_id(4)]
    full = tick(instance, inbox_url, first.cursor, unfinished=2)
    assert requested(full) == []
    assert "2 live runs are unfinished; 1 messages wait in the inbox" in skipped(full)
    assert cursor_of(full)["sequence"] == 3


def test_a_stream_created_anew_is_read_from_its_beginning(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2, 3)
    read = tick(instance, inbox_url)

    async def delete(jetstream: JetStreamContext) -> None:
        await jetstream.delete_stream(inbox.STREAM)

    with_jetstream(inbox_url, delete)
    announce(inbox_url, 4, 5, 6, 7, 8)  # more than were read of the old one
    result = tick(instance, inbox_url, read.cursor)
    assert requested(result) == [event_id(n) for n in (4, 5, 6, 7, 8)]
    assert cursor_of(result)["recreated"] == 1


def test_a_cursor_beyond_the_end_starts_again(instance: DagsterInstance, inbox_url: str) -> None:
    announce(inbox_url, 1, 2)
    cursor = json.dumps(cursor_of(tick(instance, inbox_url)) | {"sequence": 99})
    result = tick(instance, inbox_url, cursor)
    assert requested(result) == [event_id(1), event_id(2)]
    assert (cursor_of(result)["beyond_end"], cursor_of(result)["sequence"]) == (1, 2)


def test_messages_that_left_the_inbox_unread_are_counted_and_said(
    instance: DagsterInstance, inbox_url: str
) -> None:
    announce(inbox_url, 1, 2)
    read = tick(instance, inbox_url)
    announce(inbox_url, 3, 4, 5)

    async def drop_the_oldest(jetstream: JetStreamContext) -> None:
        await jetstream.purge_stream(inbox.STREAM, seq=6)

    with_jetstream(inbox_url, drop_the_oldest)
    result = tick(instance, inbox_url, read.cursor)
    assert requested(result) == []
    assert cursor_of(result)["aged_out"] == 3
    assert "3 messages (3 to 5) left the inbox" in skipped(result)
    announce(inbox_url, 6)
    after = tick(instance, inbox_url, result.cursor)
    assert requested(after) == [event_id(6)]
    assert cursor_of(after)["aged_out"] == 3


def test_an_inbox_that_does_not_answer_fails_the_tick(instance: DagsterInstance) -> None:
    with pytest.raises(
        InboxUnavailableError,
        match=r"no inbox answers at nats://127\.0\.0\.1:1 \(ConnectionRefusedError\)",
    ):
        tick(instance, "nats://127.0.0.1:1")


@pytest.mark.parametrize("text", ["later", '{"sequence_number": 3}', "[1]"])
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a stream sequence nor a cursor"):
        Cursor.parse(text)


def test_an_inbox_read_for_the_first_time_has_missed_nothing() -> None:
    state = StreamState("then", first_sequence=50, last_sequence=60, events=11, rejected=0)
    cursor, notes = Cursor().checked(state)
    assert (cursor.aged_out, notes) == (0, [])


def test_no_live_run_takes_for_ever() -> None:
    job = build_defs(load_settings()).resolve_job_def("live_event")
    assert int(job.tags["dagster/max_runtime"]) == 900


def test_the_sensor_is_on_by_default_and_ticks_every_second_if_asked() -> None:
    sensor = build_daq_events_sensor(load_settings())
    assert sensor.default_status.value == "RUNNING"
    assert sensor.minimum_interval_seconds == 1
    Definitions.validate_loadable(build_defs(load_settings()))
