"""The pooled storage: many processes, an empty folder, and who is told of an event."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as db
import yaml
from dagster import (
    AssetCheckResult,
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    AssetSelection,
    DagsterEventType,
    DagsterInstance,
    Definitions,
    DynamicPartitionsDefinition,
    asset_check,
    define_asset_job,
)
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.test_utils import create_run_for_test

from cygno_assets.engine.pooled_sqlite import PooledEventLogStorage
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPENS = """
import sys
from dagster import DagsterInstance, AssetMaterialization
with DagsterInstance.get() as instance:
    instance.get_runs_count()
    instance.all_instigator_state()
    instance.add_dynamic_partitions("part", [sys.argv[1]])
    for n in range(20):
        instance.report_runless_asset_event(AssetMaterialization(f"asset_{sys.argv[1]}"))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME without a database."""
    home = tmp_path / "home"
    home.mkdir()
    config = {
        "storage": {
            "custom": {
                "module": "cygno_assets.engine.pooled_sqlite",
                "class": "PooledSqliteStorage",
                "config": {"base_dir": str(tmp_path / "state")},
            }
        },
        "telemetry": {"enabled": False},
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    return home


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return DagsterInstance.get()


def test_many_processes_open_an_empty_folder_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    processes = [
        subprocess.Popen([sys.executable, "-c", OPENS, str(n)], stderr=subprocess.PIPE)
        for n in range(6)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    with DagsterInstance.get() as instance:
        assert set(instance.get_dynamic_partitions("part")) == set("012345")
        assert len(instance.all_asset_keys()) == 6
        for key in instance.all_asset_keys():
            assert len(instance.fetch_materializations(key, limit=100).records) == 20


def test_another_process_is_told_of_an_event_within_a_second(
    home: Path, instance: DagsterInstance
) -> None:
    run = create_run_for_test(instance)
    told: list[tuple[float, str]] = []
    came = threading.Event()

    def callback(event: object, cursor: str) -> None:
        told.append((time.time(), cursor))
        came.set()

    instance.watch_event_logs(run.run_id, None, callback)
    try:
        code = (
            "import sys, time; from dagster import DagsterInstance\n"
            "with DagsterInstance.get() as i:\n"
            "    for _ in range(3):\n"
            "        i.report_engine_event('hello', i.get_run_by_id(sys.argv[1]))\n"
            "        print(time.time(), flush=True); time.sleep(0.5)\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, run.run_id], capture_output=True, text=True, check=True
        ).stdout
        wait_until("three events", lambda: len(told) == 3, 10)
    finally:
        instance.end_watch_event_logs(run.run_id, callback)
        instance.dispose()
    for (heard, _), stored in zip(told, map(float, said.split()), strict=True):
        assert heard - stored < 1  # what a person sees as at once
    assert len({cursor for _, cursor in told}) == 3


def test_everything_is_in_one_database(home: Path, instance: DagsterInstance) -> None:
    create_run_for_test(instance)
    instance.report_runless_asset_event(AssetMaterialization("asset"))
    instance.add_dynamic_partitions("part", ["a"])
    instance.dispose()
    state = home.parent / "state"
    assert {path.name for path in state.glob("*.db")} == {"dagster.db"}


def test_an_event_is_stored_whole_or_not_at_all(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise OSError("as if the disk were full")

    key = AssetKey("asset")
    instance.report_runless_asset_event(AssetMaterialization(key))
    with monkeypatch.context() as patch:
        patch.setattr(PooledEventLogStorage, "_store_asset_event", breaks)
        with pytest.raises(OSError, match="disk"):
            instance.report_runless_asset_event(AssetMaterialization(key))
    assert len(instance.fetch_materializations(key, limit=10).records) == 1
    instance.report_runless_asset_event(AssetMaterialization(key))
    assert len(instance.fetch_materializations(key, limit=10).records) == 2


def test_a_partition_is_known_as_soon_as_it_is_added_and_forgotten_when_it_is_deleted(
    instance: DagsterInstance,
) -> None:
    assert not instance.has_dynamic_partition("part", "a")
    instance.add_dynamic_partitions("part", ["a"])
    assert instance.has_dynamic_partition("part", "a")
    instance.delete_dynamic_partition("part", "a")
    assert not instance.has_dynamic_partition("part", "a")


def test_a_partition_that_another_process_deletes_is_remembered_for_a_second(
    home: Path, instance: DagsterInstance
) -> None:
    instance.add_dynamic_partitions("part", ["a"])
    assert instance.has_dynamic_partition("part", "a")
    with DagsterInstance.from_config(str(home)) as another:
        another.delete_dynamic_partition("part", "a")
    wait_until("forgotten", lambda: not instance.has_dynamic_partition("part", "a"), 5)


def materialize(instance: DagsterInstance, *partitions: str) -> None:
    for partition in partitions:
        instance.report_runless_asset_event(AssetMaterialization("asset", partition=partition))


def materialized(instance: DagsterInstance, partitions: DynamicPartitionsDefinition) -> set[str]:
    """As the web UI asks."""
    status = get_and_update_asset_status_cache_value(instance, AssetKey("asset"), partitions)
    assert status is not None
    with partition_loading_context(dynamic_partitions_store=instance):
        return set(
            status.deserialize_materialized_partition_subsets(partitions).get_partition_keys()
        )


def test_which_partitions_are_made_is_remembered_until_it_is_wiped(
    home: Path, instance: DagsterInstance
) -> None:
    partitions = DynamicPartitionsDefinition(name="part")
    instance.add_dynamic_partitions("part", ["a", "b", "c"])
    materialize(instance, "a")
    assert materialized(instance, partitions) == {"a"}

    def remembered() -> bool:
        [record] = instance.get_asset_records([AssetKey("asset")])
        return record.asset_entry.cached_status is not None

    assert remembered()
    with DagsterInstance.from_config(str(home)) as another:
        assert materialized(another, partitions) == {"a"}
        materialize(another, "b")
        assert materialized(instance, partitions) == {"a", "b"}
        assert remembered()
        another.wipe_asset_cached_status([AssetKey("asset")])
        assert not remembered()
        assert materialized(instance, partitions) == {"a", "b"}
        another.wipe_assets([AssetKey("asset")])
        materialize(another, "c")
        assert materialized(instance, partitions) == {"c"}


def test_what_is_remembered_of_partitions_does_not_burden_each_event(
    instance: DagsterInstance,
) -> None:
    many = [f"{n:06}" for n in range(200)]
    instance.add_dynamic_partitions("part", many)
    materialize(instance, *many)
    partitions = DynamicPartitionsDefinition(name="part")
    assert materialized(instance, partitions) == set(many)
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    with storage.index_connection() as connection:
        [kept] = connection.execute(db.text("SELECT cached_status_data FROM asset_keys")).scalars()
    assert len(kept) < 1000


def plans(instance: DagsterInstance, ask: Callable[[], object]) -> list[str]:
    """How the database does the statements of a question."""
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    found: list[str] = []
    with storage.index_connection() as connection:

        def explain(_: object, cursor: Any, statement: str, values: Any, *__: object) -> None:
            rows = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            found.append(" ".join(row[-1] for row in rows))

        db.event.listen(connection.engine, "before_cursor_execute", explain)
        try:
            ask()
        finally:
            db.event.remove(connection.engine, "before_cursor_execute", explain)
    return found


@pytest.mark.parametrize("older", [False, True], ids=["new", "made before there was advice"])
def test_few_rows_are_looked_up_by_what_is_rare(
    home: Path, instance: DagsterInstance, older: bool
) -> None:
    """As with 10⁵ runs: the plans must not depend on how many there are today."""
    run = create_run_for_test(instance)
    if older:
        with closing(sqlite3.connect(home.parent / "state" / "dagster.db")) as connection:
            connection.execute("DROP TABLE sqlite_stat1")
        opens = "from dagster import DagsterInstance as D; D.get().get_runs_count()"
        subprocess.run([sys.executable, "-c", opens], check=True)
    [plan] = plans(
        instance, lambda: instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    )
    assert "idx_events_by_run_id (run_id=?)" in plan
    some = AssetRecordsFilter(AssetKey("asset"), asset_partitions=["a", "b"])
    asked = plans(instance, lambda: instance.fetch_materializations(some, limit=1000))
    [plan] = [plan for plan in asked if "event_logs" in plan]
    assert "partition=?" in plan


def test_a_folder_must_be_named_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    config = yaml.safe_load((home / "dagster.yaml").read_text())
    config["storage"]["custom"]["config"]["base_dir_from"] = "os:getcwd"
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="give either base_dir or base_dir_from"):
        DagsterInstance.get().get_runs_count()


def test_what_a_run_took_is_given_back_to_the_disk_when_it_is_deleted(
    home: Path, instance: DagsterInstance
) -> None:
    def whole_size() -> int:
        instance.dispose()  # folds the log into the database
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return database.stat().st_size

    database = home.parent / "state" / "dagster.db"
    create_run_for_test(instance)
    before = whole_size()
    runs = [create_run_for_test(instance) for _ in range(20)]
    for run in runs:
        for _ in range(20):
            instance.report_engine_event("x" * 1000, run)
    assert whole_size() > before + 300_000
    for run in runs:
        instance.delete_run(run.run_id)
    assert whole_size() < before + 50_000
    assert instance.all_logs(runs[0].run_id) == []


@asset_check(asset="asset")
def a_check() -> AssetCheckResult:
    return AssetCheckResult(passed=True)


def test_with_a_run_go_what_its_checks_have_found(instance: DagsterInstance) -> None:
    job = Definitions(
        asset_checks=[a_check], jobs=[define_asset_job("check", AssetSelection.all_asset_checks())]
    ).resolve_job_def("check")
    first, second = (job.execute_in_process(instance=instance).run_id for _ in range(2))
    history = instance.event_log_storage.get_asset_check_execution_history
    assert [e.run_id for e in history(a_check.check_key, limit=5)] == [second, first]
    instance.delete_run(first)
    assert [e.run_id for e in history(a_check.check_key, limit=5)] == [second]
