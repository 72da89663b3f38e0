"""Reading what was made, in order, on Dagster's own event log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from dagster import AssetMaterialization, DagsterInstance, MetadataValue

from cygno_assets.names import RAW_IMAGE
from cygno_assets.records import made
from cygno_assets.records.made import made_since, newest_made, newest_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        for number in range(5):
            ephemeral.report_runless_asset_event(
                AssetMaterialization(
                    RAW_IMAGE,
                    partition=f"run-{number}",
                    metadata={
                        "acquired": MetadataValue.timestamp(100.0 + number),
                        "mean_adu": 99.5,
                        "path": MetadataValue.path("/x"),
                    },
                )
            )
        yield ephemeral


def test_all_are_read_in_order_over_pages(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_PAGE", 2)
    found = list(made_since(instance, RAW_IMAGE))
    assert [one.event_id for one in found] == [f"run-{n}" for n in range(5)]
    assert found[3].metadata == {"acquired": 103.0, "mean_adu": 99.5, "path": "/x"}


def test_reading_on_and_from_a_time(instance: DagsterInstance) -> None:
    first, *_, last = made_since(instance, RAW_IMAGE)
    later = list(made_since(instance, RAW_IMAGE, storage_id=first.storage_id))
    assert [one.event_id for one in later] == ["run-1", "run-2", "run-3", "run-4"]
    assert list(made_since(instance, RAW_IMAGE, storage_id=last.storage_id)) == []
    assert list(made_since(instance, RAW_IMAGE, since=last.timestamp + 1)) == []
    assert len(list(made_since(instance, RAW_IMAGE, since=first.timestamp - 1))) == 5


def test_reading_back_from_the_newest_takes_each_event_once(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_PAGE", 2)
    again = AssetMaterialization(RAW_IMAGE, partition="run-1", metadata={"mean_adu": 101.0})
    instance.report_runless_asset_event(again)

    def read(limit: int, events: list[str] | None = None) -> list[str]:
        return [one.event_id for one in newest_made(instance, RAW_IMAGE, limit, events=events)]

    assert read(10) == ["run-1", "run-4", "run-3", "run-2", "run-0"]
    assert read(3) == ["run-1", "run-4", "run-3"]
    assert read(10, ["run-0", "run-1", "run-9"]) == ["run-1", "run-0"]
    assert newest_made(instance, RAW_IMAGE, 1)[0].metadata == {"mean_adu": 101.0}


def test_one_that_lies_far_back_is_not_looked_for_row_by_row(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        instance.report_runless_asset_event(AssetMaterialization(RAW_IMAGE, partition="run-1"))
    limits: list[int] = []
    fetch = DagsterInstance.fetch_materializations

    def counted(self: DagsterInstance, *arguments: Any, limit: int, **how: Any) -> Any:
        limits.append(limit)
        return fetch(self, *arguments, limit=limit, **how)

    monkeypatch.setattr(DagsterInstance, "fetch_materializations", counted)
    assert newest_of(instance, RAW_IMAGE, ["run-0", "run-1"]).keys() == {"run-0", "run-1"}
    assert len(limits) == 1
    assert len(newest_made(instance, RAW_IMAGE, 1, events=["run-0", "run-1"])) == 1


def test_the_newest_come_first_and_no_older_than_asked_for(instance: DagsterInstance) -> None:
    times = [one.timestamp for one in made_since(instance, RAW_IMAGE)]
    lately = newest_made(instance, RAW_IMAGE, 2, since=times[0] - 1)
    assert [one.event_id for one in lately] == ["run-4", "run-3"]
    assert lately[0].metadata["acquired"] == 104.0
    assert newest_made(instance, RAW_IMAGE, 2, since=times[-1]) == []
