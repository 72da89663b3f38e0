"""What is pruned of a real history, and what is not: real events, catalogue, inbox and files."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest
from dagster import DagsterInstance

from cygno_assets.build import build_defs
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import CATALOG_JOB, DAQ_EVENTS, DOUBTS_TAG, EVENT_CATALOG, MAX_DOUBTS
from cygno_assets.records.pruning import Keep, Plan, keep_by, plan, prune
from cygno_assets.records.reconciliation import reconcile
from cygno_assets.services.process import ServiceError
from cygno_assets.services.pruning import run_prune
from cygno_assets.settings import CHECKOUT, SettingsError, load_settings
from cygno_assets.storage import event_tables
from cygno_assets.storage.locations import data_root
from cygno_assets_tests.assets.detector import TAKEN, TENSOR, Detector
from cygno_assets_tests.records.sensors import remembers
from cygno_assets_tests.wire import REAL_IMAGES, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from upath import UPath

    from cygno_assets.daq.simulator.bucket import BucketSettings

DAY = TAKEN[:10]
EVENTS = [image.stem for image in REAL_IMAGES]


def everything() -> Keep:
    """Keeps nothing for its age."""
    return Keep(since=time.time() + 1, events=10**6)


class Past(Detector):
    """A detector with events behind it."""

    @property
    def root(self) -> UPath:
        return data_root(self.settings)

    def make(self, number: int) -> str:
        event = self.announce(REAL_IMAGES[number].read_bytes())
        assert self.run(event).success
        return event

    def catalogue(self) -> None:
        job = build_defs(self.settings).resolve_job_def(CATALOG_JOB)
        assert job.execute_in_process(partition_key=DAY, instance=self.instance).success

    def plan(self, keep: Keep | None = None) -> Plan:
        return plan(self.instance, self.root, keep or everything())

    def prune(self, keep: Keep | None = None) -> Plan:
        planned = self.plan(keep)
        prune(self.instance, self.root, planned, lambda _: None)
        return planned

    def known(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions("daq_event"))

    def differences(self) -> dict[str, tuple[str, str]]:
        inbox = Inbox(lambda: self.inbox_url)
        state = inbox.state()
        read = {"stream": state.created, "sequence": state.last_sequence}
        remembers(self.instance, DAQ_EVENTS, **read)
        found = reconcile(self.instance, inbox, self.root)
        return {one.event_id: (one.what, one.detail) for one in found.differences}


@pytest.fixture
def past(
    daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Past]:
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))  # so with the engine's storage
    with DagsterInstance.get() as instance:
        yield Past(daq_bucket, inbox_url, tmp_path / "home", instance)


def test_what_the_catalogue_holds_goes_from_dagster_and_is_still_known(past: Past) -> None:
    events = {past.make(0), past.make(1)}
    past.catalogue()
    rows = event_tables.read_events(past.root, None, None)

    planned = past.prune()

    assert set(planned.events) == events
    assert (len(planned.runs), planned.kept_back, planned.images) == (2, 0, [])
    assert past.known() == set()
    assert past.instance.get_materialized_partitions(TENSOR) == set()
    for run in planned.runs:
        assert past.instance.get_run_by_id(run) is None
        assert past.instance.all_logs(run) == []
    for event in events:
        assert past.raw_file(event).is_file()
        assert past.tensor_file(event).is_file()
        assert (event_tables.find_event(past.root, event) or {})["status"] == "materialized"
    assert past.differences() == {}
    past.catalogue()
    assert event_tables.read_events(past.root, None, None).equals(rows)
    assert past.plan().events == []


def test_a_plan_changes_nothing(past: Past) -> None:
    past.make(0)
    past.catalogue()
    assert past.plan() == past.plan()
    assert past.known() == {EVENTS[0]}


def test_what_is_not_catalogued_stays(past: Past) -> None:
    past.make(0)
    past.catalogue()
    past.make(1)
    planned = past.prune()
    assert planned.events == [EVENTS[0]]
    assert past.known() == {EVENTS[1]}


def test_an_event_made_again_since_the_catalogue_was_read_stays(past: Past) -> None:
    event = past.make(0)
    past.catalogue()
    assert past.run(event).success
    assert (past.plan().events, past.plan().kept_back) == ([], 1)
    past.catalogue()
    planned = past.prune()
    assert (planned.events, len(planned.runs)) == ([event], 2)


def test_a_failure_after_the_tensor_keeps_no_event_back(past: Past) -> None:
    event = past.make(0)
    past.catalogue()
    past.raw_file(event).write_bytes(b"damaged")
    assert not past.run(event, TENSOR).success
    assert past.prune().events == [event]


def test_of_many_the_newest_stay(past: Past) -> None:
    for number in range(3):
        past.make(number)
    past.catalogue()
    assert past.prune(Keep(since=0.0, events=1)).events == EVENTS[:2]
    assert past.known() == {EVENTS[2]}


def test_days_are_counted_from_when_an_event_was_made(past: Past) -> None:
    past.make(0)  # acquired in 2024
    past.catalogue()
    keep = keep_by(load_settings({"history_days": 1.0}), time.time())
    assert past.plan(keep).events == []
    later = keep_by(load_settings({"history_days": 1.0}), time.time() + 86_401)
    assert past.plan(later).events == [EVENTS[0]]


def test_failures_go_with_their_reason_in_the_catalogue(past: Past) -> None:
    bad = past.announce(b"no image", name_of(b"another"))
    assert not past.run(bad, tags={DOUBTS_TAG: str(MAX_DOUBTS)}).success
    past.catalogue()
    before = past.differences()
    assert before == {bad: ("failed", "wrong_content")}
    assert past.prune().events == [bad]
    assert past.differences() == before


def test_raw_images_go_only_if_asked_and_after_their_runs(past: Past) -> None:
    event, younger = past.make(0), past.make(1)
    past.catalogue()
    now = time.time() + 1
    kept = past.plan(Keep(since=0.0, events=10**6, images_since=now))
    assert (kept.events, kept.images) == ([], [])
    planned = past.prune(Keep(since=0.0, events=1, images_since=now))
    assert (planned.events, planned.images) == ([event], [event])
    assert not past.raw_file(event).exists()
    assert past.tensor_file(event).is_file()
    assert past.raw_file(younger).is_file()
    assert past.differences() == {}


def test_of_other_runs_those_go_that_newer_ones_have_superseded(past: Past) -> None:
    past.make(0)
    definitions = build_defs(past.settings)
    checks = definitions.resolve_job_def("reconciliation_check")
    ran = [checks.execute_in_process(instance=past.instance).run_id for _ in range(3)]
    past.catalogue()
    past.catalogue()
    planned = past.prune()
    assert set(ran[:2]) <= set(planned.other_runs)
    assert len(planned.other_runs) == 3  # two of the checks, one of the catalogue
    assert past.instance.get_run_by_id(ran[2]) is not None
    assert past.instance.get_materialized_partitions(EVENT_CATALOG) == {DAY}
    assert past.plan().other_runs == []


def test_files_left_half_written_are_swept_when_nobody_writes_them_any_more(past: Past) -> None:
    event = past.make(0)
    folder = past.raw_file(event).parent
    for name, age_s in ((".old.partial", 90_000), (".young.partial", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    said: list[str] = []
    prune(past.instance, past.root, past.plan(), said.append)
    assert {path.name for path in folder.iterdir()} == {f"{event}.jpg", ".young.partial"}
    assert said == ["1 files that were left half written"]


def test_the_scheduled_job_prunes_by_the_settings(past: Past) -> None:
    past.make(0)
    past.make(1)
    past.catalogue()
    past.overrides["history_events"] = 1
    job = build_defs(past.settings).resolve_job_def("prune")
    assert job.execute_in_process(instance=past.instance).success
    assert past.known() == {EVENTS[1]}
    with pytest.raises(SettingsError, match="CYGNO_PRUNE_CRON: 'nightly' is no cron line"):
        build_defs(load_settings({"prune_cron": "nightly"}))


def test_the_command_says_what_would_go_and_takes_it_out(past: Past) -> None:
    past.make(0)
    past.make(1)
    past.catalogue()
    past.overrides["history_events"] = 1
    said: list[str] = []
    run_prune(past.settings, said.append, dry_run=True, as_json=False)
    assert said == [
        "would take out 1 events with 1 runs, 0 other runs, 0 raw images; 0 events kept back"
    ]
    assert past.known() == set(EVENTS[:2])
    run_prune(past.settings, said.append, dry_run=False, as_json=True)
    assert json.loads(said[-1])["events"] == 1
    assert past.known() == {EVENTS[1]}
    empty = load_settings({"home": past.home / "empty"})
    with pytest.raises(ServiceError, match=r"nothing has run in .*empty yet"):
        run_prune(empty, said.append, dry_run=True, as_json=False)
