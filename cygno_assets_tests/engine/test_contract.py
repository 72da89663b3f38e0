"""What the engine overrides of Dagster's inside is still there, and still means what it meant."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest
from dagster._cli import api
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.launcher import DefaultRunLauncher, RunLauncher
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.consolidated_sqlite_event_log import (
    ConsolidatedSqliteEventLogStorage,
)
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._daemon import backfill, controller, sensor
from dagster._daemon.daemon import MonitoringDaemon
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.impl import core_execute_run
from dagster._utils.interrupts import capture_interrupts
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage

from cygno_assets.engine import (
    compute_logs,
    daemon,
    pooled,
    pooled_postgres,
    pooled_sqlite,
    warm_launcher,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def changed(what: str, module: object) -> str:
    """What a person reads who has raised Dagster's version."""
    return (
        f"Dagster's {what} has changed; look at {getattr(module, '__file__', module)} before you "
        "raise the version in pyproject.toml"
    )


@pytest.mark.parametrize(
    ("function", "parameters", "module"),
    [
        (RunLauncher.launch_run, ["self", "context"], warm_launcher),
        (RunLauncher.terminate, ["self", "run_id"], warm_launcher),
        (RunLauncher.check_run_worker_health, ["self", "run"], warm_launcher),
        (RunLauncher.dispose, ["self"], warm_launcher),
        (DefaultRunLauncher.__init__, ["self", "inst_data"], warm_launcher),
        (
            core_execute_run,
            ["recon_job", "dagster_run", "instance", "inject_env_vars", "resume_from_failure"],
            warm_launcher,
        ),
        (DagsterGrpcClient.get_server_id, ["self", "timeout"], warm_launcher),
        (
            GrpcServerCodeLocation.get_execution_plan,
            [
                *("self", "remote_job", "run_config", "step_keys_to_execute"),
                *("known_state", "instance"),
            ],
            daemon,
        ),
        (MonitoringDaemon.run_iteration, ["self", "workspace_process_context"], daemon),
        (capture_interrupts, [], warm_launcher),
        (SqliteRunStorage.__init__, ["self", "conn_string", "inst_data"], pooled_sqlite),
        (SqliteRunStorage.connect, ["self"], pooled_sqlite),
        (SqliteScheduleStorage.__init__, ["self", "conn_string", "inst_data"], pooled_sqlite),
        (SqliteScheduleStorage.connect, ["self"], pooled_sqlite),
        (
            ConsolidatedSqliteEventLogStorage.__init__,
            ["self", "base_dir", "inst_data"],
            pooled_sqlite,
        ),
        (ConsolidatedSqliteEventLogStorage._connect, ["self"], pooled_sqlite),
        (ConsolidatedSqliteEventLogStorage._init_db, ["self"], pooled_sqlite),
        (
            ConsolidatedSqliteEventLogStorage.watch,
            ["self", "run_id", "cursor", "callback"],
            pooled_sqlite,
        ),
        (ConsolidatedSqliteEventLogStorage.on_modified, ["self"], pooled_sqlite),
        (SqlEventLogStorage.store_event, ["self", "event"], pooled),
        (
            SqlEventLogStorage._has_asset_key_col_on_connection,
            ["self", "conn", "column_name"],
            pooled,
        ),
        (
            SqlEventLogStorage.has_dynamic_partition,
            ["self", "partitions_def_name", "partition_key"],
            pooled,
        ),
        (
            SqlEventLogStorage.update_asset_cached_status_data,
            ["self", "asset_key", "cache_values"],
            pooled,
        ),
        (
            SqlEventLogStorage._construct_asset_record_from_row,
            ["self", "row", "last_materialization_record", "can_read_asset_status_cache"],
            pooled,
        ),
        (SqlRunStorage._get_snapshot, ["self", "snapshot_id"], pooled),
        (SqlRunStorage._core_add_run, ["self", "col_values", "tags"], pooled_postgres),
        *(
            (method, ["self", *parameters], pooled_postgres)
            for storage in (PostgresRunStorage, PostgresEventLogStorage, PostgresScheduleStorage)
            for method, parameters in (
                (
                    storage.__init__,
                    ["postgres_url", "should_autocreate_tables", "inst_data", "token_provider"],
                ),
                (
                    storage.optimize_for_webserver,
                    ["statement_timeout", "pool_recycle", "max_overflow"],
                ),
            )
        ),
        (PostgresEventLogStorage.index_transaction, ["self"], pooled_postgres),
        (LocalComputeLogManager.capture_logs, ["self", "log_key"], compute_logs),
        (redirect_to_file, ["stream", "filepath"], compute_logs),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_what_is_overridden_or_called_has_its_parameters(
    function: Callable[..., Any], parameters: list[str], module: object
) -> None:
    assert list(inspect.signature(function).parameters) == parameters, changed(
        function.__qualname__, module
    )


@pytest.mark.parametrize("method", ["run_connection", "index_connection"])
def test_all_events_go_through_the_connection_that_is_overridden(method: str) -> None:
    function = getattr(ConsolidatedSqliteEventLogStorage, method)
    assert "_connect" in function.__code__.co_names, changed(method, pooled_sqlite)


@pytest.mark.parametrize("method", ["run_connection", "index_connection", "alembic_version"])
def test_all_events_in_postgres_go_through_the_connection_that_is_overridden(method: str) -> None:
    function = getattr(PostgresEventLogStorage, method)
    assert "_connect" in function.__code__.co_names, changed(method, pooled_postgres)


@pytest.mark.parametrize("storage", [SqlEventLogStorage, PostgresEventLogStorage])
def test_an_event_is_stored_in_the_steps_that_are_done_here(
    storage: type[SqlEventLogStorage],
) -> None:
    steps = {name for name in storage.store_event.__code__.co_names if "store" in name}
    assert steps == {"_store_asset_event_tags", "_store_asset_event", "store_asset_check_event"}, (
        changed("store_event", pooled)
    )
    assert "store_event" not in vars(ConsolidatedSqliteEventLogStorage), changed(
        "store_event", pooled
    )


@pytest.mark.parametrize(
    "method",
    [name for name in vars(SqlRunStorage) if re.fullmatch(r"has_\w+_(cols|column|table)", name)],
)
def test_what_the_tables_have_is_asked_by_questions_that_are_answered_here(method: str) -> None:
    assert method in vars(pooled.PooledRuns), changed(method, pooled)


def test_snapshots_are_read_where_they_are_remembered() -> None:
    for method in (SqlRunStorage.get_job_snapshot, SqlRunStorage.get_execution_plan_snapshot):
        assert "_get_snapshot" in method.__code__.co_names, changed(method.__qualname__, pooled)


def test_assets_are_read_where_what_is_remembered_of_them_is_added() -> None:
    names = SqlEventLogStorage.get_asset_records.__code__.co_names
    assert "_construct_asset_record_from_row" in names, changed("get_asset_records", pooled)


def test_the_watcher_keeps_what_is_used_of_it() -> None:
    names = ConsolidatedSqliteEventLogStorage.__init__.__code__.co_names
    assert {"_watchers", "_obs"} <= set(names), changed("event log's watcher", pooled_sqlite)


def test_tables_of_one_name_in_one_database_are_one_table() -> None:
    columns: dict[str, set[str]] = {}
    for metadata in (
        RunStorageSqlMetadata,
        SqlEventLogStorageMetadata,
        ScheduleStorageSqlMetadata,
    ):
        for table in metadata.sorted_tables:
            found = {column.name for column in table.columns}
            assert columns.setdefault(table.name, found) == found, changed(
                f"table {table.name}", pooled_sqlite
            )


@pytest.mark.parametrize(
    ("module", "name", "loop", "before", "after"),
    [
        (sensor, "MIN_INTERVAL_LOOP_TIME", sensor.execute_sensor_iteration_loop, 5, 1),
        (
            *(controller, "DEFAULT_DAEMON_INTERVAL_SECONDS"),
            *(backfill.execute_backfill_iteration_loop, 30, 5),
        ),
    ],
)
def test_loops_still_take_their_intervals_from_there(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    loop: Callable[..., Any],
    before: int,
    after: int,
) -> None:
    names = {*loop.__code__.co_names, *loop.__code__.co_varnames}
    assert name in names, changed(loop.__name__, daemon)
    assert getattr(module, name) == before, changed(loop.__name__, daemon)
    for changed_module, changed_name in (
        (sensor, "MIN_INTERVAL_LOOP_TIME"),
        (controller, "DEFAULT_DAEMON_INTERVAL_SECONDS"),
    ):  # put back after the test
        monkeypatch.setattr(changed_module, changed_name, getattr(changed_module, changed_name))
    daemon.shorten_loops()
    assert getattr(module, name) == after


def test_a_run_is_executed_as_dagsters_own_process_does() -> None:
    """What worker.py does is what `dagster api execute_run` does, but for its threads."""
    names = set(api._execute_run_command_body.__code__.co_names)
    assert {"core_execute_run", "recon_job_from_origin", "get_run_by_id"} <= names, changed(
        "execute_run", warm_launcher
    )
