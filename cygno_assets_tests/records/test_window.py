"""Which events are in a window, on Dagster's own event log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from dagster import AssetMaterialization, DagsterInstance, MetadataValue

from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.physics.histogram import BINS
from cygno_assets.records import window
from cygno_assets.records.window import Window, numbers, read_window, summed_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_700_000_000.0


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def report(instance: DagsterInstance, number: int, at: float | None, **metadata: object) -> None:
    """An event with an image and a tensor, announced so many seconds after noon."""
    times = {} if at is None else {"announced": MetadataValue.timestamp(NOON + at)}
    image = {"pixel_counts": f"{number}: 2", "mean_adu": float(number), **times, **metadata}
    for asset, shown in ((RAW_IMAGE, image), (PREPROCESSED_TENSOR, {"spec_hash": str(number)})):
        instance.report_runless_asset_event(
            AssetMaterialization(asset, partition=f"run-{number}", metadata=shown)
        )


def ids(found: Window) -> tuple[list[str], list[str], list[str]]:
    return (
        [made.event_id.removeprefix("run-") for made in found.events],
        [made.event_id.removeprefix("run-") for made in found.past],
        [str(made.metadata["spec_hash"]) for made in found.tensors],
    )


def test_without_events_there_is_an_empty_window(instance: DagsterInstance) -> None:
    assert read_window(instance, 60) == Window()
    assert Window().newest is None


def test_it_ends_with_the_newest_event_in_the_order_of_announcements(
    instance: DagsterInstance,
) -> None:
    for number, at in ((1, 0.0), (3, 95.0), (2, 50.0), (4, 100.0)):
        report(instance, number, at)
    found = read_window(instance, 60)
    assert ids(found) == (["2", "3", "4"], ["1"], ["2", "3", "4"])
    assert found.newest == NOON + 100


def test_what_is_made_again_counts_once_and_where_it_was(instance: DagsterInstance) -> None:
    for number in (1, 2, 3):
        report(instance, number, 10.0 * number)
    report(instance, 1, 10.0, mean_adu=7.0)
    found = read_window(instance, 60)
    assert ids(found)[0] == ["1", "2", "3"]
    assert numbers(found.events, "mean_adu").tolist() == [7.0, 2.0, 3.0]


def test_events_without_a_known_time_or_without_counts_are_in_no_window(
    instance: DagsterInstance,
) -> None:
    report(instance, 1, 0.0)
    report(instance, 2, None)
    report(instance, 3, None, acquired=MetadataValue.timestamp(NOON + 5))
    instance.report_runless_asset_event(AssetMaterialization(RAW_IMAGE, partition="run-4"))
    assert ids(read_window(instance, 60))[0] == ["1", "3"]


def test_both_have_a_limit(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "MOST_EVENTS", 2)
    monkeypatch.setattr(window, "MOST_PAST_EVENTS", 3)
    for number in range(8):
        report(instance, number, float(number))
    assert ids(read_window(instance, 60))[:2] == (["6", "7"], ["3", "4", "5"])
    monkeypatch.setattr(window, "PAST_S", 2.0)
    assert ids(read_window(instance, 60))[:2] == (["6", "7"], ["5"])


def test_numbers_and_counts_of_events(instance: DagsterInstance) -> None:
    report(instance, 1, 0.0)
    report(instance, 3, 1.0, brightest_adu=9.0)
    found = read_window(instance, 60)
    assert numbers(found.events, "brightest_adu").tolist() == [9.0]
    counts = summed_counts(found.events)
    assert (counts.shape, counts[1], counts[3], counts.sum()) == ((BINS,), 2, 2, 4)
    assert summed_counts([]).dtype == np.int64
