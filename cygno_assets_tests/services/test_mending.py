"""`cygno-assets reconcile` and `replay` on a real home whose system does not run: what they say."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from cygno_assets.cli import cli, main
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import DAQ_EVENTS, DOUBTS_TAG, LIVE_JOB, MAX_DOUBTS, PARTITION_TAG
from cygno_assets.services import mending
from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.assets.detector import Detector
from cygno_assets_tests.records.sensors import remembers
from cygno_assets_tests.wire import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings
    from cygno_assets.records.reconciliation import Reconciliation
    from cygno_assets.settings import Settings


@pytest.fixture
def detector(
    daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Detector]:
    """On the instance that the program opens too: of dagster.yaml, in this test's home."""
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))
    monkeypatch.setenv("CYGNO_INBOX_URL", inbox_url)
    with DagsterInstance.get() as instance:
        yield Detector(daq_bucket, inbox_url, tmp_path / "home", instance)


def failed(detector: Detector) -> str:
    """An event that has failed for good on its image's md5; the sensor has read of it."""
    event = detector.announce(b"no image", name_of(b"another"))
    assert not detector.run(event, tags={DOUBTS_TAG: str(MAX_DOUBTS)}).success
    state = Inbox(lambda: detector.inbox_url).state()
    remembers(detector.instance, DAQ_EVENTS, stream=state.created, sequence=state.last_sequence)
    return event


def only_images(detector: Detector, number: int) -> list[str]:
    events = [f"cygno-{n:032x}" for n in range(number)]
    for event in events:
        detector.raw_file(event).parent.mkdir(parents=True, exist_ok=True)
        detector.raw_file(event).write_bytes(b"image")
    return events


def test_it_counts_by_difference_and_kind_and_then_lists(detector: Detector) -> None:
    event, others = failed(detector), only_images(detector, 25)
    result = CliRunner().invoke(cli, ["reconcile"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert [line.strip() for line in lines[1:5]] == [
        "1  failed",
        "25  only an image",
        "1  failed on wrong_content",
        f"{event}  failed: wrong_content",
    ]
    assert len(lines) == 4 + 20 + 1
    assert lines[-1] == "… and 6 more (--all lists them)"
    all_lines = CliRunner().invoke(cli, ["reconcile", "--all"]).output.splitlines()
    assert [line.split()[0] for line in all_lines[4:]] == [event, *others]


@pytest.fixture
def backfilled(monkeypatch: pytest.MonkeyPatch, detector: Detector) -> list[str]:
    """What was asked of the web UI, each a partition by then."""
    asked: list[str] = []

    def backfill(
        _: Settings, events: Sequence[str], __: str, say: Callable[[str], None], *, wait: bool
    ) -> int:
        assert wait
        assert set(events) <= set(detector.instance.get_dynamic_partitions("daq_event"))
        asked.extend(events)
        say("backfilled")
        return 0

    monkeypatch.setattr(mending, "run_events_backfill", backfill)
    return asked


def test_an_event_that_is_no_partition_any_more_is_replayed(
    detector: Detector, backfilled: list[str]
) -> None:
    event = failed(detector)
    detector.instance.delete_dynamic_partition("daq_event", event)
    assert CliRunner().invoke(cli, ["replay"]).exit_code == 0
    assert backfilled == [event]


def test_with_repair_and_json_there_is_nothing_but_json_on_stdout(
    detector: Detector, backfilled: list[str]
) -> None:
    event, [other] = failed(detector), only_images(detector, 1)
    result = CliRunner().invoke(cli, ["reconcile", "--json", "--repair"])
    assert result.exit_code == 1  # one stays failed
    found = json.loads(result.stdout)
    assert [one["event_id"] for one in found["differences"]] == [event, other]
    assert "backfilled" in result.stderr
    assert backfilled == [other]


@pytest.mark.parametrize("command", [["replay"], ["reconcile", "--repair"]])
def test_what_is_begun_after_the_comparison_is_not_made_twice(
    detector: Detector,
    backfilled: list[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    event, [other] = failed(detector), only_images(detector, 1)
    compare = mending._reconciled

    def compared(instance: DagsterInstance, settings: Settings) -> Reconciliation:
        found = compare(instance, settings)
        for begun in (event, other):
            create_run_for_test(
                instance, LIVE_JOB, status=DagsterRunStatus.STARTED, tags={PARTITION_TAG: begun}
            )
        return found

    monkeypatch.setattr(mending, "_reconciled", compared)
    result = CliRunner().invoke(cli, command)
    assert "1 events have been made meanwhile, or are being made" in result.output
    assert backfilled == []


def test_more_partitions_than_sqlite_takes_at_once_are_made(tmp_path: Path) -> None:
    events = [f"cygno-{n:032x}" for n in range(40_000)]
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        mending._make_partitions(instance, events)
        assert len(instance.get_dynamic_partitions("daq_event")) == len(events)


def test_a_damaged_catalogue_is_said_in_a_line(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(detector)
    table = detector.home / "data" / "event_catalog" / "2024-11-27.parquet"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"damaged")
    capsys.readouterr()  # of the run
    monkeypatch.setattr(sys, "argv", ["cygno-assets", "reconcile"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("cygno-assets: ")
    assert "2024-11-27.parquet: " in said
    assert "Traceback" not in said
