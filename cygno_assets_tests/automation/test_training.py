"""When the training set is made: conditions evaluated as the daemon does, and the archive's sensor.

The same on a real daemon is end_to_end/test_training.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetSelection,
    DagsterInstance,
    DagsterRunStatus,
    DataVersion,
    SensorResult,
    SkipReason,
    build_sensor_context,
    evaluate_automation_conditions,
)
from dagster._core.test_utils import create_run_for_test

from cygno_assets.automation import training as automation
from cygno_assets.automation.training import ARCHIVE_TAG, build_archive_sensor
from cygno_assets.build import build_defs
from cygno_assets.names import (
    TRAINING_ARCHIVE,
    TRAINING_ASSETS,
    TRAINING_CELLS,
    TRAINING_DATASET_ASSETS,
    TRAINING_FIGURES,
)
from cygno_assets.partitions import training_cells, training_energies
from cygno_assets.settings import SettingsError, load_settings
from cygno_assets_tests.training.archives import cell, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dagster import AutomationConditionCursor

CELLS = {key.to_user_string() for key in TRAINING_CELLS}
FIGURES = {key.to_user_string() for key in TRAINING_FIGURES}
DATASET = [key.to_user_string() for key in TRAINING_DATASET_ASSETS]
TOTALS = {
    *("ground_truth_table", "dataset_pixel_histogram", "suggested_window"),
    *FIGURES,
    *DATASET,
}
SUNDAY = datetime(2026, 11, 22, 12, 7, tzinfo=UTC)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@dataclass
class Daemon:
    """Evaluates the conditions again and again, as time goes on."""

    instance: DagsterInstance
    now: datetime = SUNDAY
    overrides: dict[str, object] = field(default_factory=dict)
    cursor: AutomationConditionCursor | None = None

    def requested(self, minutes: float = 0.1) -> dict[str, set[str]]:
        """What one tick, so many minutes later, requests: partitions by asset."""
        self.now += timedelta(minutes=minutes)
        result = evaluate_automation_conditions(
            defs=build_defs(load_settings(self.overrides)),
            instance=self.instance,
            asset_selection=AssetSelection.assets(*TRAINING_ASSETS),
            evaluation_time=self.now,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return {
            key.to_user_string(): {str(k) for k in result.get_requested_partitions(key)}
            for key in TRAINING_ASSETS
            if result.get_num_requested(key)
        }

    def materialize(self, keys: Sequence[str], version: str = "1") -> None:
        """As if runs had made these; cells in all their partitions."""
        for name in keys:
            for partition in self.partitions if name in CELLS else [None]:
                self.instance.report_runless_asset_event(
                    AssetMaterialization(
                        AssetKey(name),
                        partition=partition,
                        tags={"dagster/data_version": version},
                    )
                )

    @property
    def partitions(self) -> list[str]:
        return list(training_cells.get_partition_keys(dynamic_partitions_store=self.instance))

    def archive(self, version: str, *energies: str) -> None:
        self.instance.add_dynamic_partitions(str(training_energies.name), list(energies))
        self.materialize(["training_archive"], version)


@pytest.fixture
def daemon(instance: DagsterInstance) -> Daemon:
    return Daemon(instance)


@pytest.fixture
def settled(daemon: Daemon) -> Daemon:
    """Everything is made, and nothing is to do."""
    assert daemon.requested() == {}
    daemon.archive("first", "6keV", "30keV")
    daemon.requested()
    daemon.materialize([*CELLS, "unlabelled_paths"])
    daemon.requested()
    daemon.materialize(sorted(TOTALS))
    daemon.requested()
    assert daemon.requested() == {}
    return daemon


def test_before_the_first_archive_nothing_is_made(daemon: Daemon) -> None:
    assert [daemon.requested(60) for _ in range(4)] == [{}] * 4


def test_the_first_archive_sets_off_its_cells_and_these_the_totals(daemon: Daemon) -> None:
    assert daemon.requested() == {}
    daemon.archive("first", "6keV", "30keV")
    first = daemon.requested()
    grid = {"6keV|NR", "6keV|ER", "30keV|NR", "30keV|ER"}
    assert {name: first.get(name) for name in CELLS} == dict.fromkeys(CELLS, grid)
    assert "unlabelled_paths" in first
    assert daemon.requested() == {}

    daemon.materialize(sorted(CELLS))
    second = daemon.requested()
    assert not CELLS & set(second)
    assert set(first) | set(second) >= TOTALS
    daemon.materialize(sorted(TOTALS))
    assert daemon.requested() == {}


def test_a_new_archive_is_not_waited_for_and_makes_its_new_energies(settled: Daemon) -> None:
    settled.archive("second", "45keV")
    requested = settled.requested()
    assert requested["pixel_histogram"] == requested["ground_truth"] == set(settled.partitions)
    assert "45keV|NR" in requested["pixel_histogram"]
    assert "unlabelled_paths" in requested
    # Figures show what the table has, so they wait for it.
    settled.requested()
    assert settled.requested() == {}


def test_the_same_archive_again_sets_off_nothing(settled: Daemon) -> None:
    settled.archive("first")
    assert settled.requested() == {}


def test_every_tick_of_the_cron_requests_all_cells_and_once(settled: Daemon) -> None:
    ticks = []
    for _ in range(12 * 7):
        requested = settled.requested(2 * 60)
        if set(requested) >= CELLS:
            ticks.append((settled.now.strftime("%a %H:%M"), requested["pixel_histogram"]))
    assert ticks == [("Mon 04:07", set(settled.partitions))]


def test_the_cron_is_a_setting(instance: DagsterInstance) -> None:
    daemon = Daemon(instance, overrides={"training_backfill_cron": "*/10 * * * *"})
    daemon.requested()
    daemon.archive("first", "6keV")
    daemon.requested()
    daemon.materialize([*CELLS, "unlabelled_paths", *TOTALS])
    minutes = [daemon.requested(1) for _ in range(30)]
    assert len([what for what in minutes if set(what) >= CELLS]) == 3
    with pytest.raises(SettingsError, match="CYGNO_TRAINING_BACKFILL_CRON: 'weekly' is no cron"):
        build_defs(load_settings({"training_backfill_cron": "weekly"}))


def test_another_window_makes_what_shows_it_again_and_of_the_cells_only_tensors(
    settled: Daemon,
) -> None:
    settled.overrides["window_low"] = 60.0
    requested = settled.requested()
    assert {"dataset_pixel_histogram", "recoils_figure", "histogram_figure"} <= set(requested)
    assert CELLS & set(requested) == {"training_tensors"}
    assert requested["training_tensors"] == set(settled.partitions)
    # Of tensors of two windows no dataset is made: it waits for the last of them.
    assert "training_dataset" not in requested
    settled.materialize(["training_tensors"], "60")
    requested = settled.requested()
    assert {"training_dataset", "training_audit"} <= set(requested)
    assert "training_splits" not in requested


def test_the_dataset_is_made_in_the_run_that_makes_its_splits(settled: Daemon) -> None:
    settled.archive("second", "1keV")
    settled.requested()
    settled.materialize(sorted(CELLS), "2")
    requested = settled.requested()
    assert {"ground_truth_table", *DATASET} <= set(requested)


def test_another_seed_divides_again_and_makes_no_tensor(settled: Daemon) -> None:
    settled.overrides["split_seed"] = 7
    assert set(settled.requested()) == set(DATASET)


def test_cells_that_a_person_backfills_are_followed_by_the_totals(settled: Daemon) -> None:
    settled.materialize(sorted(CELLS), "2")
    assert set(settled.requested()) >= {"ground_truth_table", "dataset_pixel_histogram"}


def test_a_cell_that_read_the_archive_before_is_made_again(settled: Daemon) -> None:
    """Cells of a backfill are seen together with the archive that came meanwhile."""
    settled.materialize(["ground_truth", "pixel_histogram"], "of the first")
    settled.archive("second")
    assert settled.requested()["pixel_histogram"] == set(settled.partitions)
    settled.materialize(sorted(CELLS), "of the second")
    assert not CELLS & set(settled.requested())
    assert not CELLS & set(settled.requested())


def test_tensors_follow_a_ground_truth_that_was_made_alone(settled: Daemon) -> None:
    settled.materialize(["ground_truth"], "2")
    requested = settled.requested()
    assert CELLS & set(requested) == {"training_tensors"}
    assert requested["training_tensors"] == set(settled.partitions)


def test_a_cell_that_is_made_while_totals_are_is_not_forgotten(settled: Daemon) -> None:
    settled.materialize(sorted(CELLS), "2")
    assert "dataset_pixel_histogram" in settled.requested()
    settled.requested()
    settled.materialize(sorted(CELLS), "3")  # while they are made of 2
    settled.materialize(["ground_truth_table", "dataset_pixel_histogram"], "2")
    assert set(settled.requested()) >= {"ground_truth_table", "dataset_pixel_histogram"}


def test_cells_made_between_the_request_of_totals_and_the_next_tick_are_followed(
    settled: Daemon,
) -> None:
    settled.materialize(sorted(CELLS), "2")
    settled.now = datetime.now(UTC)
    assert "dataset_pixel_histogram" in settled.requested(minutes=0)
    settled.materialize(sorted(TOTALS), "2")
    settled.materialize(sorted(CELLS), "3")
    assert set(settled.requested()) >= TOTALS
    settled.materialize(sorted(TOTALS), "3")
    assert settled.requested() == {}


def test_while_a_cell_is_missing_there_are_no_totals(daemon: Daemon) -> None:
    daemon.requested()
    daemon.archive("first", "6keV")
    daemon.requested()
    for name in CELLS:
        daemon.instance.report_runless_asset_event(
            AssetMaterialization(AssetKey(name), partition="6keV|NR")
        )
    assert [set(daemon.requested(60)) & TOTALS for _ in range(5)] == [set()] * 5


# The sensor that looks for a new archive.


def look(
    instance: DagsterInstance, archive: Path | str, cursor: str | None = None
) -> SensorResult | SkipReason:
    settings = load_settings({"training_archive": str(archive)})
    result = build_archive_sensor(settings)(
        build_sensor_context(instance=instance, cursor=cursor, definitions=build_defs(settings))
    )
    assert isinstance(result, SensorResult | SkipReason)
    return result


def why(result: SensorResult | SkipReason) -> str:
    assert isinstance(result, SkipReason)
    return str(result.skip_message)


def materialized(instance: DagsterInstance) -> None:
    version = DataVersion("1").value
    instance.report_runless_asset_event(
        AssetMaterialization(TRAINING_ARCHIVE, tags={"dagster/data_version": version})
    )


def test_an_archive_is_requested_once_and_again_when_it_is_another(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    archive = tmp_path / "set.zip"
    assert why(look(instance, archive)) == f"there is no file {str(archive)!r} yet"
    write_archive(archive, cell("NR/6_keV", 1))
    first = look(instance, archive)
    assert isinstance(first, SensorResult)
    [request] = first.run_requests or []
    assert request.tags[ARCHIVE_TAG] == "true"
    assert why(look(instance, archive, first.cursor)).startswith("requested already: ")
    materialized(instance)
    assert why(look(instance, archive, first.cursor)).startswith("unchanged: ")
    write_archive(archive, cell("NR/6_keV", 1, 3))
    second = look(instance, archive, first.cursor)
    assert isinstance(second, SensorResult)
    assert len(second.run_requests or []) == 1


def test_one_that_could_not_be_fetched_is_requested_again_after_a_day(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    archive = tmp_path / "set.zip"
    write_archive(archive, cell("NR/6_keV", 1))
    first = look(instance, archive)
    assert isinstance(first, SensorResult)
    cursor = json.loads(str(first.cursor))
    cursor["time"] -= automation._ASK_AGAIN_S + 1
    assert isinstance(look(instance, archive, json.dumps(cursor)), SensorResult)


def test_one_that_is_being_fetched_is_not_requested_again(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    archive = tmp_path / "set.zip"
    write_archive(archive, cell("NR/6_keV", 1))
    create_run_for_test(instance, tags={ARCHIVE_TAG: "true"}, status=DagsterRunStatus.STARTED)
    assert why(look(instance, archive)) == "the last one is still being fetched"


def test_a_server_that_is_away_is_said_and_fails_nothing(instance: DagsterInstance) -> None:
    away = "http://127.0.0.1:1/set.zip?X-Amz-Signature=c0ffee"
    assert why(look(instance, away)) == ("cannot look: http://127.0.0.1:1/set.zip: ConnectionError")
