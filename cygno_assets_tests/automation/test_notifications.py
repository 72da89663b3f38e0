"""The sensor `notifications`: what is told, in how many messages, and that none is lost."""

from __future__ import annotations

import gzip
import json
import logging
import time
import tracemalloc
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    EventLogEntry,
    SensorResult,
    build_sensor_context,
)
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationPlanned,
)
from dagster._core.test_utils import create_run_for_test

from cygno_assets.automation import notifications
from cygno_assets.automation.notifications import (
    Cursor,
    NotTakenError,
    build_notifications_sensor,
    send,
)
from cygno_assets.build import build_defs
from cygno_assets.checks.live import ACCOUNTED, NONE_FAILED
from cygno_assets.names import (
    ANNOUNCEMENTS,
    ATTEMPT_TAG,
    FINAL_TAG,
    GROUND_TRUTH_TABLE,
    LIVE_JOB,
    LIVE_TAG,
    MAX_ATTEMPTS,
    PARTITION_TAG,
)
from cygno_assets.services.process import free_port
from cygno_assets.settings import CHECKOUT, Settings, load_settings
from cygno_assets_tests.webhook import SECRET, Webhook

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "_SETTLED_S", 0.0)


@pytest.fixture
def webhook() -> Webhook:
    return Webhook(free_port())


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


class Sensor:
    """Ticks, and keeps its cursor."""

    def __init__(self, instance: DagsterInstance, **overrides: object) -> None:
        self.instance = instance
        self.settings: Settings = load_settings({"notify_every_s": 0.0, **overrides})
        self.repository = build_defs(self.settings).get_repository_def()
        self.cursor: str | None = None
        self.tick()

    def tick(self) -> str:
        """Its word on what it did; what it tells is in the log."""
        result = build_notifications_sensor(self.settings)(
            build_sensor_context(
                instance=self.instance, cursor=self.cursor, repository_def=self.repository
            )
        )
        assert isinstance(result, SensorResult)
        assert not result.run_requests
        assert SECRET not in str(result.cursor)
        self.cursor = result.cursor
        return str(result.skip_reason.skip_message if result.skip_reason else "")


def failed(instance: DagsterInstance, event: str, **tags: str) -> DagsterRun:
    run = create_run_for_test(
        instance,
        status=DagsterRunStatus.STARTED,
        tags={LIVE_TAG: "true", PARTITION_TAG: event, **tags},
    )
    instance.report_run_failed(run)
    return run


def checked(
    instance: DagsterInstance,
    name: str,
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR,
    *,
    passed: bool,
) -> None:
    instance.report_runless_asset_event(
        AssetCheckEvaluation(
            asset_key=ANNOUNCEMENTS,
            check_name=name,
            passed=passed,
            metadata={},
            severity=severity,
            description="2 of 9 events of which not everything agrees",
        )
    )


def planned(instance: DagsterInstance, name: str) -> None:
    """A run that will execute the check has begun, and has not executed it."""
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    event = DagsterEvent(
        DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value,
        run.job_name,
        event_specific_data=AssetCheckEvaluationPlanned(asset_key=ANNOUNCEMENTS, check_name=name),
    )
    instance.report_dagster_event(event, run.run_id)


def fail_at_once(instance: DagsterInstance, count: int) -> None:
    """What the storage keeps of so many failures, without what came before them in each run."""
    for number in range(count):
        run = DagsterRun(
            LIVE_JOB,
            status=DagsterRunStatus.FAILURE,
            tags={
                LIVE_TAG: "true",
                PARTITION_TAG: f"event-{number}",
                FINAL_TAG: ("expired", "missing")[number % 2],
            },
        )
        instance.add_run(run)
        event = DagsterEvent(DagsterEventType.PIPELINE_FAILURE.value, LIVE_JOB, message="failed")
        instance.event_log_storage.store_event(
            EventLogEntry(None, logging.ERROR, "", run.run_id, time.time(), dagster_event=event)
        )


def test_five_thousand_failures_are_one_message(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))
    with DagsterInstance.get() as instance, webhook.up():  # the storage of a running system
        sensor = Sensor(instance, notify_webhook_url=webhook.url)
        fail_at_once(instance, 5000)
        assert sensor.tick() == "told"
        [message] = webhook.messages
        assert message["failed"] == {"live event: expired": 2500, "live event: missing": 2500}
        assert len(message["examples"]) == 5
        assert "runs that failed for good: 5000 (2500 live event: expired" in message["text"]
        assert sensor.tick() == "nothing to tell"
        assert len(webhook.messages) == 1


def test_what_is_tried_again_is_not_told(instance: DagsterInstance, webhook: Webhook) -> None:
    failed(instance, "of years ago", **{FINAL_TAG: "expired"})
    with webhook.up():
        sensor = Sensor(instance, notify_webhook_url=webhook.url)
        failed(instance, "passing")
        failed(instance, "dagster's", **{FINAL_TAG: "x", "dagster/will_retry": "true"})
        instance.report_run_canceled(create_run_for_test(instance, status=DagsterRunStatus.STARTED))
        assert sensor.tick() == "nothing to tell"
        failed(instance, "often enough", **{ATTEMPT_TAG: str(MAX_ATTEMPTS)})
        training = create_run_for_test(
            instance,
            status=DagsterRunStatus.STARTED,
            asset_selection=frozenset({GROUND_TRUTH_TABLE}),
        )
        instance.report_run_failed(training)
        other = create_run_for_test(instance, "reconciliation_check")
        instance.report_run_failed(other)
        assert sensor.tick() == "told"
    assert webhook.told() == {
        "live event: failure": 1,
        "ground_truth_table: failure": 1,
        "reconciliation_check: failure": 1,
    }


def test_a_failure_is_told_with_its_reason_and_its_page(
    instance: DagsterInstance, webhook: Webhook
) -> None:
    with webhook.up():
        sensor = Sensor(instance, notify_webhook_url=webhook.url)
        sensor.settings.home.mkdir(parents=True, exist_ok=True)
        sensor.settings.web_ui_url_file.write_text("http://127.0.0.1:3000\n")
        run = failed(instance, "a", **{FINAL_TAG: "expired"})
        sensor.tick()
    [message] = webhook.messages
    [example] = message["examples"]
    assert example["url"] == f"http://127.0.0.1:3000/runs/{run.run_id}"
    assert example["what"] == "live event a"
    assert example["reason"]
    assert example["url"] in message["text"]


def test_nothing_is_lost_while_the_webhook_is_down(
    instance: DagsterInstance, webhook: Webhook, capfd: pytest.CaptureFixture[str]
) -> None:
    sensor = Sensor(instance, notify_webhook_url=webhook.url)
    failed(instance, "a", **{FINAL_TAG: "expired"})
    assert "does not answer (ConnectionError)" in sensor.tick()
    failed(instance, "b", **{FINAL_TAG: "missing"})
    with webhook.up():
        webhook.status = 503
        assert "answers with status 503" in sensor.tick()
        checked(instance, ACCOUNTED, passed=False)
        webhook.status = 200
        assert sensor.tick() == "told"
        assert sensor.tick() == "nothing to tell"
    [message] = webhook.messages
    assert message["failed"] == {"live event: expired": 1, "live event: missing": 1}
    assert len(message["checks_failing"]) == 1
    assert SECRET not in "".join(capfd.readouterr())


def test_what_happens_soon_after_a_message_is_summed_up(
    instance: DagsterInstance, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    with webhook.up():
        sensor = Sensor(instance, notify_webhook_url=webhook.url, notify_every_s=60.0)
        for second in range(5, 125, 5):
            failed(instance, f"event-{second}", **{FINAL_TAG: "expired"})
            monkeypatch.setattr(notifications.time, "time", lambda s=second: now + s)
            sensor.tick()
    assert [sum(message["failed"].values()) for message in webhook.messages] == [1, 12]
    assert sum(Cursor.parse(sensor.cursor).digest.failed.values()) == 24 - 13


def test_without_a_webhook_it_is_in_the_log(
    instance: DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    sensor = Sensor(instance)
    failed(instance, "a", **{FINAL_TAG: "expired"})
    assert sensor.tick() == "told"
    assert "runs that failed for good: 1 (1 live event: expired)" in capfd.readouterr().err


def test_a_check_is_told_when_it_turns(instance: DagsterInstance, webhook: Webhook) -> None:
    name = f"daq_announcements: {ACCOUNTED}"
    with webhook.up():
        checked(instance, ACCOUNTED, passed=False)
        sensor = Sensor(instance, notify_webhook_url=webhook.url)
        assert sensor.tick() == "nothing to tell"  # it failed before
        checked(instance, ACCOUNTED, passed=True)
        sensor.tick()
        checked(instance, ACCOUNTED, passed=True)
        checked(instance, NONE_FAILED, AssetCheckSeverity.WARN, passed=False)
        assert sensor.tick() == "nothing to tell"
        planned(instance, ACCOUNTED)
        assert sensor.tick() == "nothing to tell"
        checked(instance, ACCOUNTED, passed=False)
        sensor.tick()
    back, fails = webhook.messages
    assert back["checks_passing"] == [name]
    assert f"check {name} passes again" in back["text"]
    assert fails["checks_failing"] == {name: "2 of 9 events of which not everything agrees"}


def test_a_check_that_turned_twice_is_no_news(instance: DagsterInstance) -> None:
    sensor = Sensor(instance, notify_webhook_url=f"http://127.0.0.1:{free_port()}/x")
    checked(instance, ACCOUNTED, passed=False)
    assert sensor.tick().startswith("not told")
    checked(instance, ACCOUNTED, passed=True)
    assert sensor.tick() == "nothing to tell"


def test_a_failure_is_looked_at_when_dagster_has_decided(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(instance)
    monkeypatch.setattr(notifications, "_SETTLED_S", 3600.0)
    run = failed(instance, "a", **{FINAL_TAG: "expired"})
    assert sensor.tick() == "nothing to tell"
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    failed(instance, "b", **{FINAL_TAG: "expired"})
    monkeypatch.setattr(notifications, "_SETTLED_S", 0.0)
    assert sensor.tick() == "told"


def test_queries_of_urls_are_never_told(instance: DagsterInstance, webhook: Webhook) -> None:
    with webhook.up():
        sensor = Sensor(instance, notify_webhook_url=webhook.url)
        instance.report_runless_asset_event(
            AssetCheckEvaluation(
                asset_key=AssetKey("daq_announcements"),
                check_name=ACCOUNTED,
                passed=False,
                metadata={},
                description="https://minio/x.jpg?X-Amz-Signature=c0ffee is odd",
            )
        )
        sensor.tick()
    assert "c0ffee" not in json.dumps(webhook.messages)
    assert "https://minio/x.jpg?… is odd" in webhook.messages[0]["text"]


def test_nobody_is_called_by_what_others_have_sent(
    instance: DagsterInstance, webhook: Webhook
) -> None:
    said = "https://minio/<!channel>/@all/x.jpg is odd & anna@minio.example knows"
    with webhook.up():
        sensor = Sensor(instance, notify_webhook_url=webhook.url)
        instance.report_runless_asset_event(
            AssetCheckEvaluation(
                asset_key=AssetKey("daq_announcements"),
                check_name=ACCOUNTED,
                passed=False,
                metadata={},
                description=said,
            )
        )
        sensor.tick()
    [message] = webhook.messages
    assert (
        "https://minio/&lt;!channel&gt;/@\u200ball/x.jpg is odd &amp; anna@minio.example knows"
        in message["text"]
    )
    assert list(message["checks_failing"].values()) == [said]


@pytest.mark.parametrize("status", [200, 302])
def test_what_a_webhook_answers_is_not_unfolded(webhook: Webhook, status: int) -> None:
    webhook.status = status
    webhook.headers = {"Content-Encoding": "gzip, gzip", "Location": "/elsewhere"}
    webhook.body = gzip.compress(gzip.compress(bytes(10**8)))
    with webhook.up():
        tracemalloc.start()
        try:
            with nullcontext() if status == 200 else pytest.raises(NotTakenError, match="302"):
                send(webhook.url, {"text": "hello"})
            assert tracemalloc.get_traced_memory()[1] < 10e6
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("text", ["7", "later", '{"storage_id": 1}', '{"digest": {}}'])
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none of this sensor"):
        Cursor.parse(text)
