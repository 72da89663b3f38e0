"""What the live line counts, on a real (in-memory) Dagster instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from cygno_assets.names import TRAINING_ASSETS, TRAINING_CELLS
from cygno_assets.records import history
from cygno_assets.services import progress as progress_module
from cygno_assets.services.progress import Progress, TrainingProgress

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def materialize(instance: DagsterInstance, event: str, latency_s: float) -> None:
    instance.report_runless_asset_event(
        AssetMaterialization(
            "preprocessed_tensor", partition=event, metadata={"latency_s": latency_s}
        )
    )


def run(instance: DagsterInstance, event: str, status: DagsterRunStatus, **tags: str) -> None:
    create_run_for_test(instance, status=status, tags={"dagster/partition": event, **tags})


def test_events_are_counted_until_their_end(instance: DagsterInstance) -> None:
    progress = Progress(announced=3, recorded=3)
    progress.update(instance, ["a", "b", "c"])
    assert progress.pending == {"a", "b", "c"}
    materialize(instance, "a", 1.0)
    run(instance, "b", DagsterRunStatus.FAILURE)
    progress.update(instance, [])
    assert (progress.materialized, set(progress.failed), progress.pending) == (1, {"b"}, {"c"})
    assert progress.line() == (
        "announced 3  recorded 3  materialized 1  failed 1  backlog 1  latency 1.0 s"
    )
    materialize(instance, "b", 5.0)
    materialize(instance, "c", 3.0)
    progress.update(instance, [])
    assert (progress.materialized, progress.failed, progress.pending) == (3, {}, set())
    assert progress.latency_s == 3.0
    progress.update(instance, [])
    assert progress.materialized == 3


def test_more_events_than_a_database_takes_in_one_list(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PAGE", 2)
    progress = Progress()
    events = ["a", "b", "c", "d", "e"]
    for event in events:
        run(instance, event, DagsterRunStatus.FAILURE)
    progress.update(instance, events)
    assert progress.failed.keys() == {*events}


def test_a_failed_run_that_is_tried_again_has_not_failed_yet(instance: DagsterInstance) -> None:
    progress = Progress()
    run(instance, "a", DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    run(instance, "b", DagsterRunStatus.FAILURE)
    run(instance, "b", DagsterRunStatus.STARTED)
    progress.update(instance, ["a", "b"])
    assert (progress.failed, progress.pending) == ({}, {"a", "b"})


def test_the_summary_names_what_is_missing(instance: DagsterInstance) -> None:
    progress = Progress(announced=2, recorded=2)
    run(instance, "a", DagsterRunStatus.CANCELED)
    progress.update(instance, ["a", "b"])
    assert "2 announced, 2 recorded, 0 materialized, 1 failed" in progress.summary()
    assert "ended as CANCELED" in progress.summary()
    assert "not materialized: b" in progress.summary()


def made(instance: DagsterInstance, *keys: AssetKey, partition: str | None = None) -> None:
    for key in keys:
        instance.report_runless_asset_event(AssetMaterialization(key, partition=partition))


def test_the_training_set_is_complete_when_each_of_its_assets_is(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "_TRAINING_EVERY_S", 0.0)
    training = TrainingProgress()
    assert not training.complete
    training.update(instance)
    assert training.line() == "training –"
    instance.add_dynamic_partitions("training_energy", ["6keV"])
    everything = TRAINING_ASSETS
    made(instance, *(key for key in everything if key not in TRAINING_CELLS))
    made(instance, *TRAINING_CELLS, partition="6keV|NR")
    made(instance, *TRAINING_CELLS[:-1], partition="6keV|ER")
    training.update(instance)
    assert training.line() == "training 1/2 cells"
    assert training.missing == [TRAINING_CELLS[-1].to_user_string()]
    assert "not materialized: training_tensors" in training.summary()
    made(instance, TRAINING_CELLS[-1], partition="6keV|ER")
    training.update(instance)
    assert training.complete
    assert training.line() == "training complete"
    assert training.summary() == "training set: 2 of 2 cells materialized"


def test_a_failed_run_of_the_training_set_is_named(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "_TRAINING_EVERY_S", 0.0)
    create_run_for_test(
        instance,
        status=DagsterRunStatus.FAILURE,
        asset_selection=frozenset([TRAINING_ASSETS[0]]),
    )
    training = TrainingProgress()  # that one was before
    run(instance, "an event", DagsterRunStatus.FAILURE)
    training.update(instance)
    assert training.failed == []
    create_run_for_test(
        instance,
        status=DagsterRunStatus.FAILURE,
        asset_selection=frozenset([TRAINING_ASSETS[0]]),
    )
    training.update(instance)
    assert training.line() == "training FAILED"
    assert "ended as FAILURE" in training.summary()
