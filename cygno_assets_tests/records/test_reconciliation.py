"""What inbox, runs, records and files say of events, and where they do not agree."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetMaterialization,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Definitions,
)
from dagster._core.test_utils import create_run_for_test

from cygno_assets.build import build_defs
from cygno_assets.daq import inbox
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import (
    ATTEMPT_TAG,
    DAQ_EVENTS,
    FAILED_EVENTS,
    FINAL_TAG,
    LIVE_JOB,
    LIVE_TAG,
    MAX_ATTEMPTS,
)
from cygno_assets.records import losses, reconciliation
from cygno_assets.records.history import newest_failure
from cygno_assets.records.losses import MEANINGS as LOSSES
from cygno_assets.records.losses import Losses
from cygno_assets.records.reconciliation import Reconciliation, reconcile, still_to_make
from cygno_assets.settings import SettingsError, load_settings
from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets_tests.records.sensors import remembers
from cygno_assets_tests.wire import fill_inbox, message, with_jetstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nats.js import JetStreamContext
    from upath import UPath


def event(number: int) -> str:
    return f"cygno-{number:032x}"


@dataclass
class Books:
    """An inbox, an instance and files, each as a test wants them."""

    url: str
    instance: DagsterInstance

    def announce(self, *numbers: int, taken: str = "2024-11-27 14:27:36") -> None:
        fill_inbox(
            self.url, [message(f"{event(n)}.jpg", "https://daq.invalid/x", taken) for n in numbers]
        )

    def reject(self) -> None:
        async def store(jetstream: JetStreamContext) -> None:
            await jetstream.publish(inbox.REJECTED_SUBJECT, b"{}")

        with_jetstream(self.url, store)

    def read(self, sequence: int, **more: object) -> None:
        """The sensor has read so far."""
        stream = Inbox(lambda: self.url).state().created
        remembers(self.instance, DAQ_EVENTS, stream=stream, sequence=sequence, **more)

    def retries(self, *waiting: int) -> None:
        """The sensor `failed_events` has read all failures, and is to make these again."""
        fields = {"run_id": "", "due": 0.0, "sequence": 0}
        remembers(
            self.instance,
            FAILED_EVENTS,
            storage_id=newest_failure(self.instance),
            waiting={event(number): fields for number in waiting},
        )

    def fails(self, number: int, **tags: str) -> None:
        """A run of it fails just now."""
        run = self.run(number, DagsterRunStatus.STARTED, **tags)
        self.instance.report_run_failed(run)

    def made(self, number: int, *, image: bool = True, tensor: bool = True) -> None:
        for asset in ("raw_image", "preprocessed_tensor"):
            self.instance.report_runless_asset_event(
                AssetMaterialization(asset, partition=event(number))
            )
        self.stored(number, image=image, tensor=tensor)

    def stored(self, number: int, *, image: bool = True, tensor: bool = True) -> None:
        root = data_root(load_settings())
        if image:
            write_whole(root / "raw_image" / f"{event(number)}.jpg", b"image")
        if tensor:
            write_whole(root / "preprocessed_tensor" / f"{event(number)}.npy", b"tensor")

    def run(self, number: int, status: DagsterRunStatus, **tags: str) -> DagsterRun:
        return create_run_for_test(
            self.instance,
            LIVE_JOB,
            status=status,
            tags={"dagster/partition": event(number), **tags},
        )

    def reconciled(self) -> Reconciliation:
        return reconcile(self.instance, Inbox(lambda: self.url), data_root(load_settings()))

    def differences(self) -> dict[str, tuple[str, str]]:
        return {d.event_id: (d.what, d.detail) for d in self.reconciled().differences}


@pytest.fixture
def books(inbox_url: str, tmp_path: Path) -> Iterator[Books]:
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Books(inbox_url, instance)


def test_where_everything_agrees_nothing_is_said(books: Books) -> None:
    books.announce(1, 2, 3)
    books.reject()
    books.read(3)
    for number in (1, 2):
        books.made(number)
    books.run(3, DagsterRunStatus.STARTED)
    found = books.reconciled()
    assert found == Reconciliation(3, 1, 0, 1, 2, [], Losses(dict.fromkeys(LOSSES, 0)))
    assert found.counts() == {}


def test_what_the_sensor_has_not_read_is_waiting_and_not_lost(books: Books) -> None:
    books.announce(1, 2, 3)
    books.read(1)
    books.made(1)
    found = books.reconciled()
    assert (found.announced, found.waiting, found.differences) == (1, 2, [])


@pytest.mark.parametrize(
    ("what", "detail"),
    [
        ("never ran", "announced and read, but no run of it is known"),
        ("no record", "its tensor is stored, but Dagster knows of no materialization"),
        ("no image", "its tensor is materialized, but its image is not stored"),
        ("no tensor", "its tensor is materialized, but not stored"),
    ],
)
def test_each_difference_is_found_with_its_reason(books: Books, what: str, detail: str) -> None:
    books.announce(1, 2)
    books.read(2)
    books.made(2)
    if what == "no record":
        books.stored(1)
    elif what != "never ran":
        books.made(1, image=what != "no image", tensor=what != "no tensor")
    assert books.differences() == {event(1): (what, detail)}
    assert books.reconciled().differences[0].mendable


def test_failures_are_told_by_their_kind_unless_they_are_tried_again(books: Books) -> None:
    books.announce(1, 2, 3, 4, 5)
    books.read(5)
    live = {LIVE_TAG: "true"}
    failure = DagsterRunStatus.FAILURE
    books.run(1, failure, **live, **{FINAL_TAG: "expired"})
    books.run(2, failure, **live)
    books.retries(1, 2)  # the first of its failure before: until the next tick
    books.run(3, failure, **live, **{ATTEMPT_TAG: str(MAX_ATTEMPTS)})
    books.run(4, DagsterRunStatus.CANCELED, **live)
    books.run(5, failure, **{"dagster/will_retry": "true"})
    assert books.differences() == {
        event(1): ("failed", "expired"),
        event(3): ("failed", "failure"),
        event(4): ("failed", "canceled"),
    }
    found = books.reconciled()
    assert found.running == 2
    assert found.failures() == {"canceled": 1, "expired": 1, "failure": 1}
    assert not any(one.mendable for one in found.differences)


def test_a_failure_that_may_pass_but_that_no_sensor_comes_back_to_is_forgotten(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = {LIVE_TAG: "true"}
    books.announce(1, 2)
    books.read(2)
    books.fails(1, **live)
    books.fails(2, **{"dagster/will_retry": "true"})
    assert books.differences() == {event(1): ("forgotten", "failure")}  # before any tick of it
    books.announce(3)
    books.read(3)
    books.retries()
    books.fails(3, **live)  # the sensor will read of it
    assert books.differences() == {event(1): ("forgotten", "failure")}
    assert books.reconciled().differences[0].mendable
    assert books.reconciled().running == 2
    books.retries(1)
    assert books.differences() == {event(3): ("forgotten", "failure")}
    monkeypatch.setattr(reconciliation, "RETRIED_WITHIN", timedelta(0))
    assert set(books.differences()) == {event(2), event(3)}


def test_an_event_that_was_passed_over_is_not_forgotten(books: Books) -> None:
    books.announce(1)
    books.read(1)
    books.retries()
    books.run(1, DagsterRunStatus.FAILURE, **{FINAL_TAG: "expired"})
    assert set(books.differences()) == {event(1)}
    books.read(1, passed_over={event(1): 1})
    assert books.differences() == {}
    assert books.reconciled().running == 1


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "not any more"])
def test_a_failure_stays_one_when_its_announcement_has_left_the_inbox(
    books: Books, announced: bool
) -> None:
    books.announce(*([1, 2] if announced else [2]))
    books.read(2)
    books.made(2)
    books.run(1, DagsterRunStatus.FAILURE, **{FINAL_TAG: "gone"})
    assert books.differences() == {event(1): ("failed", "gone")}


def test_an_image_that_nothing_else_is_known_of_is_found(books: Books) -> None:
    books.announce(1)
    books.read(1)
    books.made(1)
    books.stored(2, tensor=False)
    assert {e: what for e, (what, _) in books.differences().items()} == {event(2): "only an image"}


@pytest.mark.parametrize("ended", [False, True], ids=["under way", "made"])
def test_what_is_made_while_one_looks_is_no_difference(
    books: Books, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Its run is requested after the runs were looked at, and stores before the files are."""
    books.announce(1)
    books.read(1)
    books.made(1)

    def made_meanwhile() -> None:
        if ended:
            books.made(2)
        else:
            books.run(2, DagsterRunStatus.STARTED, **{LIVE_TAG: "true"})
            books.stored(2)

    before_the_files(monkeypatch, made_meanwhile)
    assert books.differences() == {}
    books.stored(3)
    assert set(books.differences()) == {event(3)}


def before_the_files(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Something happens, once, just before files are listed."""
    names, events = reconciliation.file_names, [happens]

    def listed(folder: UPath) -> dict[str, str]:
        while events:
            events.pop()()
        return names(folder)

    monkeypatch.setattr(reconciliation, "file_names", listed)


def test_what_has_begun_since_is_not_made_once_more(books: Books) -> None:
    books.announce(1, 2, 3, 4)
    books.read(4)
    books.made(4, tensor=False)
    found = books.reconciled().differences
    assert len(found) == 4
    books.run(1, DagsterRunStatus.NOT_STARTED)
    books.made(2)
    left = still_to_make(books.instance, found)
    assert [one.event_id for one in left] == [event(3), event(4)]


def test_what_was_lost_before_it_was_read_fails_the_check_for_a_day(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.announce(1)
    books.made(1)

    def verdict(**counted: int) -> tuple[bool, str | None]:
        books.read(1, **counted)
        check = evaluated(books)["every_event_is_accounted_for"]
        return check.passed, check.description

    agrees = "0 of 1 events of which not everything agrees"
    lost = f"{agrees}; 3 messages left the inbox, for age or size, before they were read"
    assert verdict() == (True, agrees)
    assert verdict(aged_out=3) == (False, lost)
    assert verdict(aged_out=3) == (False, lost)
    assert books.reconciled().losses.recent
    noticed = books.reconciled().losses.noticed
    assert verdict(aged_out=3) == (False, lost)
    assert books.reconciled().losses.noticed == noticed
    with monkeypatch.context() as patch:
        patch.setattr(losses, "_SAID_FOR_S", 0.0)  # a day later
        assert verdict(aged_out=3) == (True, agrees)
    assert verdict(aged_out=4)[0] is False
    assert books.reconciled().losses.noticed != noticed


@pytest.mark.parametrize(
    "cursor", [{"waiting": {}, "storage_id": "x"}, {"waiting": 7}, {"waiting": {"a": 7}}]
)
def test_a_damaged_cursor_is_named(books: Books, cursor: dict[str, object]) -> None:
    books.announce(1)
    books.read(1)
    remembers(books.instance, FAILED_EVENTS, **cursor)
    with pytest.raises(ValueError, match=r"cursor .*is damaged"):
        books.reconciled()


def test_when_it_is_asked_is_a_setting() -> None:
    schedule = build_defs(load_settings({"reconciliation_cron": "7 * * * *"})).resolve_schedule_def(
        "reconciliation"
    )
    assert schedule.cron_schedule == "7 * * * *"
    with pytest.raises(SettingsError, match="CYGNO_RECONCILIATION_CRON: 'often' is no cron line"):
        build_defs(load_settings({"reconciliation_cron": "often"}))


def test_the_check_yields_to_live_events() -> None:
    job = build_defs(load_settings()).resolve_job_def("reconciliation_check")
    assert int(job.tags["dagster/priority"]) < 0


def test_an_event_that_was_made_after_a_failure_is_no_difference(books: Books) -> None:
    books.announce(1)
    books.read(1)
    books.run(1, DagsterRunStatus.FAILURE, **{FINAL_TAG: "expired"})
    books.made(1)
    assert books.differences() == {}


def test_files_of_events_that_have_left_the_inbox_are_compared_too(books: Books) -> None:
    books.announce(1)
    books.read(1)
    books.made(1)
    books.made(7, tensor=False)
    books.stored(8)
    assert {e: what for e, (what, _) in books.differences().items()} == {
        event(7): "no tensor",
        event(8): "no record",
    }


def test_half_written_files_do_not_count(books: Books) -> None:
    books.announce(1)
    books.read(1)
    books.made(1, tensor=False)
    folder = data_root(load_settings()) / "preprocessed_tensor"
    write_whole(folder / f".{event(1)}.partial", b"half")
    assert books.differences()[event(1)][0] == "no tensor"


def test_the_checks_say_it_in_the_web_ui(books: Books) -> None:
    books.announce(1, 2, 3)
    books.reject()
    books.read(4)
    books.made(1)
    books.run(2, DagsterRunStatus.FAILURE, **{FINAL_TAG: "expired"})
    checks = evaluated(books)
    assert not checks["every_event_is_accounted_for"].passed
    assert checks["every_event_is_accounted_for"].description == (
        "1 of 3 events of which not everything agrees"
    )
    failed = checks["no_event_failed_or_was_rejected"]
    assert not failed.passed
    assert failed.description == "1 events failed, 1 messages were rejected"
    assert failed.metadata["failed_expired"].value == 1
    assert failed.severity.value == "WARN"
    books.made(3)
    books.made(2)
    checks = evaluated(books)
    assert checks["every_event_is_accounted_for"].passed
    assert checks["no_event_failed_or_was_rejected"].description == (
        "0 events failed, 1 messages were rejected"
    )


def evaluated(books: Books) -> dict[str, AssetCheckEvaluation]:
    definitions = build_defs(load_settings({"inbox_url": books.url}))
    Definitions.validate_loadable(definitions)
    result = definitions.resolve_job_def("reconciliation_check").execute_in_process(
        instance=books.instance
    )
    return {check.check_name: check for check in result.get_asset_check_evaluations()}
