"""The Postgres storage: what Dagster does through it, many processes, a server that goes away."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg2
import pytest
import sqlalchemy as db
from dagster import (
    AssetCheckResult,
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    DynamicPartitionsDefinition,
    RunsFilter,
    asset,
    asset_check,
    define_asset_job,
    in_process_executor,
)
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.test_utils import create_run_for_test
from dagster._time import get_current_timestamp
from dagster_postgres.utils import DagsterPostgresException

from cygno_assets.engine.pooled_postgres import (
    PooledEventLogStorage,
    PooledPostgresStorage,
    PooledRunStorage,
    PooledScheduleStorage,
)
from cygno_assets.engine.postgres_connections import connections_to
from cygno_assets_tests.scale.conftest import dagster_home
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from dagster._serdes import ConfigurableClassData

    from cygno_assets_tests.scale.servers import PostgresServer

KEY = AssetKey("made")
parts = DynamicPartitionsDefinition(name="part")


@asset(partitions_def=parts)
def made() -> int:
    return 1


@asset_check(asset=made)
def a_check() -> AssetCheckResult:
    return AssetCheckResult(passed=True)


job = Definitions(
    assets=[made],
    asset_checks=[a_check],
    jobs=[define_asset_job("job", [made], executor_def=in_process_executor)],
).resolve_job_def("job")

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
WRITES = """
from dagster import DagsterInstance, AssetMaterialization
with DagsterInstance.get() as instance:
    for n in range(300):
        instance.report_runless_asset_event(AssetMaterialization("made", partition=str(n)))
"""


def backends(server: PostgresServer, url: str) -> int:
    """Connections to a database, as the server counts them."""
    name = url.rpartition("/")[2]
    return server.ask("SELECT datname FROM pg_stat_activity").count((name,))


def materialize(instance: DagsterInstance, *partitions: str) -> None:
    for partition in partitions:
        instance.report_runless_asset_event(AssetMaterialization(KEY, partition=partition))


def backend_of(storage: PooledRunStorage) -> int:
    [row] = storage.fetchall(db.text("SELECT pg_backend_pid() AS pid"))
    return int(row["pid"])


def test_a_run_leaves_what_dagster_asks_for(instance: DagsterInstance) -> None:
    instance.add_dynamic_partitions("part", ["a"])
    result = job.execute_in_process(instance=instance, partition_key="a", tags={"team": "x"})
    assert result.success
    [record] = instance.get_run_records(RunsFilter(tags={"team": "x"}))
    assert record.dagster_run.run_id == result.run_id
    assert record.dagster_run.status == DagsterRunStatus.SUCCESS
    assert record.start_time is not None
    assert record.end_time is not None
    logs = instance.all_logs(result.run_id)
    assert [log.dagster_event_type for log in logs][-1] == DagsterEventType.RUN_SUCCESS
    [page] = instance.fetch_materializations(KEY, limit=5).records
    assert page.partition_key == "a"
    [asset_record] = instance.get_asset_records([KEY])
    assert asset_record.asset_entry.last_materialization_storage_id == page.storage_id
    assert instance.get_materialized_partitions(KEY) == {"a"}
    [checked] = instance.event_log_storage.get_asset_check_execution_history(a_check.check_key, 5)
    assert checked.run_id == result.run_id


def test_with_a_run_goes_all_of_it(instance: DagsterInstance) -> None:
    instance.add_dynamic_partitions("part", ["a"])
    first, second = (
        job.execute_in_process(instance=instance, partition_key="a").run_id for _ in range(2)
    )
    instance.delete_run(first)
    assert instance.get_run_by_id(first) is None
    assert instance.all_logs(first) == []
    history = instance.event_log_storage.get_asset_check_execution_history(a_check.check_key, 5)
    assert [execution.run_id for execution in history] == [second]
    assert len(instance.fetch_materializations(KEY, limit=5).records) == 1


def test_what_is_wiped_is_gone(instance: DagsterInstance) -> None:
    create_run_for_test(instance)
    materialize(instance, "a")
    instance.wipe_assets([KEY])
    assert instance.all_asset_keys() == []
    instance.wipe()
    assert instance.get_runs_count() == 0


def test_partitions_are_added_once_and_known_until_they_are_deleted(
    instance: DagsterInstance,
) -> None:
    assert not instance.has_dynamic_partition("part", "a")
    instance.add_dynamic_partitions("part", ["a", "b"])
    instance.add_dynamic_partitions("part", ["b", "c"])
    assert instance.get_dynamic_partitions("part") == ["a", "b", "c"]
    assert instance.has_dynamic_partition("part", "a")
    instance.delete_dynamic_partition("part", "a")
    assert not instance.has_dynamic_partition("part", "a")
    many = [f"{n:06}" for n in range(40_000)]  # more than SQLite takes at once
    instance.add_dynamic_partitions("many", many)
    assert instance.get_dynamic_partitions("many") == many


def test_backfills_and_states_are_kept(instance: DagsterInstance) -> None:
    backfill = PartitionBackfill(
        backfill_id="one",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={"team": "x"},
        backfill_timestamp=get_current_timestamp(),
    )
    instance.add_backfill(backfill)
    instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    [kept] = instance.get_backfills()
    assert (kept.backfill_id, kept.status) == ("one", BulkActionStatus.COMPLETED_SUCCESS)
    instance.run_storage.set_cursor_values({"cursor": "7"})
    instance.run_storage.set_cursor_values({"cursor": "8"})
    assert instance.run_storage.get_cursor_values({"cursor"}) == {"cursor": "8"}


def test_a_slot_of_a_pool_is_had_by_one_step_at_a_time(instance: DagsterInstance) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("pool", 1)
    first, second = (create_run_for_test(instance).run_id for _ in range(2))
    assert storage.claim_concurrency_slot("pool", first, "step").is_claimed
    assert not storage.claim_concurrency_slot("pool", second, "step").is_claimed
    instance.delete_run(first)
    assert storage.claim_concurrency_slot("pool", second, "step").is_claimed


def test_which_partitions_are_made_is_remembered_until_another_process_wipes_it(
    home: Path, instance: DagsterInstance
) -> None:
    def made_partitions() -> set[str]:
        """As the web UI asks."""
        status = get_and_update_asset_status_cache_value(instance, KEY, parts)
        assert status is not None
        with partition_loading_context(dynamic_partitions_store=instance):
            subsets = status.deserialize_materialized_partition_subsets(parts)
            return set(subsets.get_partition_keys())

    instance.add_dynamic_partitions("part", ["a", "b", "c"])
    materialize(instance, "a")
    assert made_partitions() == {"a"}
    with DagsterInstance.from_config(str(home)) as another:
        materialize(another, "b")
        assert made_partitions() == {"a", "b"}
        another.wipe_assets([KEY])
        materialize(another, "c")
    assert made_partitions() == {"c"}


def test_an_event_is_stored_whole_or_not_at_all(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise OSError("as if the network were gone")

    materialize(instance, "a")
    with monkeypatch.context() as patch:
        patch.setattr(PooledEventLogStorage, "_store_asset_event", breaks)
        with pytest.raises(OSError, match="network"):
            materialize(instance, "b")
    assert instance.get_materialized_partitions(KEY) == {"a"}
    materialize(instance, "b")
    assert instance.get_materialized_partitions(KEY) == {"a", "b"}


def test_events_appear_in_the_order_of_their_ids(
    instance: DagsterInstance, postgres: PostgresServer
) -> None:
    """Else whoever reads on from the last id it has seen would never see the one that was late."""
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    materialize(instance, "first")
    with ThreadPoolExecutor(1) as another:
        with storage.transaction():
            materialize(instance, "slow")  # has its id, and is not committed yet
            quick = another.submit(materialize, instance, "quick")
            wait_until(
                "the other one waits",
                lambda: postgres.ask(
                    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                ),
            )
        quick.result(timeout=60)
    records = instance.fetch_materializations(
        AssetRecordsFilter(KEY), limit=10, ascending=True
    ).records
    assert [record.partition_key for record in records] == ["first", "slow", "quick"]


def test_what_others_read_on_from_misses_nothing(home: Path, instance: DagsterInstance) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITES]) for _ in range(3)]
    seen: list[int] = []
    while True:
        ended = all(writer.poll() is not None for writer in writers)
        page = instance.fetch_materializations(
            AssetRecordsFilter(KEY, after_storage_id=seen[-1] if seen else 0),
            limit=1000,
            ascending=True,
        ).records
        seen += [record.storage_id for record in page]
        if ended and not page:
            break
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(seen) == 900


def test_many_processes_open_an_empty_database_at_once(home: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", OPENS, str(n)], stderr=subprocess.PIPE)
        for n in range(6)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    with DagsterInstance.get() as instance:
        assert set(instance.get_dynamic_partitions("part")) == set("012345")
        for key in instance.all_asset_keys():
            assert len(instance.fetch_materializations(key, limit=100).records) == 20


def test_a_database_of_dagsters_own_storage_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    from dagster_postgres import DagsterPostgresStorage

    stock = DagsterPostgresStorage(database_url.replace("://", "+psycopg2://"))
    stock.event_log_storage.add_dynamic_partitions("part", ["a"])
    dagster_home(tmp_path, monkeypatch, database_url)
    with DagsterInstance.get() as instance:
        assert instance.get_dynamic_partitions("part") == ["a"]
        materialize(instance, "a")
        assert instance.get_materialized_partitions(KEY) == {"a"}


def test_a_forked_process_has_connections_of_its_own(instance: DagsterInstance) -> None:
    storage = instance.run_storage
    assert isinstance(storage, PooledRunStorage)
    before = backend_of(storage)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()

    def in_child() -> None:
        results.put(backend_of(storage))
        materialize(instance, "by the child")

    with storage.connect():  # one is in use while it forks
        child = context.Process(target=in_child)
        child.start()
        child.join(60)
    assert child.exitcode == 0
    assert results.get(timeout=10) != before
    assert backend_of(storage) == before
    assert instance.get_materialized_partitions(KEY) == {"by the child"}


def test_connections_are_bounded_and_shared(
    instance: DagsterInstance, postgres: PostgresServer, database_url: str
) -> None:
    most = 0

    def work(n: int) -> None:
        nonlocal most
        materialize(instance, str(n))
        instance.all_instigator_state()
        instance.get_runs_count()
        most = max(most, backends(postgres, database_url))

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(120)))
    assert most == 4
    with DagsterInstance.get() as another:
        another.get_runs_count()
    assert backends(postgres, database_url) == 4


def test_after_a_restart_of_the_server_nobody_sees_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_postgres: PostgresServer
) -> None:
    url = own_postgres.url(own_postgres.make_database())
    dagster_home(tmp_path, monkeypatch, url)
    with DagsterInstance.get() as instance, ThreadPoolExecutor(4) as threads:
        together = threading.Barrier(4)

        def ask(_: int) -> int:
            with instance.run_storage.connect():  # else one could answer for all, one by one
                together.wait(60)
                return instance.get_runs_count()

        assert list(threads.map(ask, range(4))) == [0] * 4
        assert backends(own_postgres, url) == 4
        own_postgres.stop()
        own_postgres.start()
        assert list(threads.map(ask, range(4))) == [0] * 4
        own_postgres.stop()
        asked = [threads.submit(instance.get_runs_count) for _ in range(4)]  # while it is away
        own_postgres.start()
        assert [one.result(60) for one in asked] == [0] * 4
        materialize(instance, "a")
        assert instance.get_materialized_partitions(KEY) == {"a"}


def test_a_statement_that_breaks_is_an_error_and_the_next_one_works(
    instance: DagsterInstance, postgres: PostgresServer
) -> None:
    storage = instance.run_storage
    assert isinstance(storage, PooledRunStorage)
    with storage.connect():
        pid = backend_of(storage)
        postgres.ask(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(db.exc.OperationalError):
            backend_of(storage)
    assert backend_of(storage) != pid


def test_the_web_uis_limit_holds_for_new_connections(instance: DagsterInstance) -> None:
    storage = instance.run_storage
    assert isinstance(storage, PooledRunStorage)
    storage.fetchall(db.text("SELECT pg_sleep(0.2)"))
    instance.optimize_for_webserver(100, pool_recycle=60, max_overflow=2)
    with pytest.raises(db.exc.OperationalError, match="statement timeout"):
        storage.fetchall(db.text("SELECT pg_sleep(10)"))


def test_another_process_is_told_of_an_event(instance: DagsterInstance) -> None:
    run = create_run_for_test(instance)
    told: list[str] = []
    callback = lambda _, cursor: told.append(cursor)  # noqa: E731 – ended by its identity
    instance.watch_event_logs(run.run_id, None, callback)
    try:
        code = (
            "import sys; from dagster import DagsterInstance\n"
            "with DagsterInstance.get() as i:\n"
            "    i.report_engine_event('hello', i.get_run_by_id(sys.argv[1]))\n"
        )
        subprocess.run([sys.executable, "-c", code, run.run_id], check=True)
        wait_until("told", lambda: len(told) == 1)
    finally:
        instance.end_watch_event_logs(run.run_id, callback)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_a_url_means_the_driver_that_is_installed(postgres: PostgresServer, scheme: str) -> None:
    """SQLAlchemy's own choice for `postgresql://` is, from 2.1 on, one that is not."""
    connections = connections_to(postgres.url(postgres.make_database(), scheme), 2)
    with connections.connection() as connection:
        assert isinstance(connection.connection.dbapi_connection, psycopg2.extensions.connection)


def test_nothing_is_said_to_listeners(
    instance: DagsterInstance, postgres: PostgresServer, database_url: str
) -> None:
    """Dagster's own tells each event to nobody, in a way that fails with psycopg 3."""
    listener = psycopg2.connect(database_url)
    try:
        listener.autocommit = True
        with listener.cursor() as cursor:
            cursor.execute("LISTEN run_events")
            materialize(instance, "a")
            cursor.execute("SELECT 1")
            assert listener.notifies == []
    finally:
        listener.close()


class Derived(PooledPostgresStorage):
    """A site's own."""


def test_a_derived_storage_is_not_replaced_by_its_parent(database_url: str) -> None:
    config: Mapping[str, Any] = {"postgres_url": database_url, "max_connections": 2}
    inst_data: ConfigurableClassData | None = None
    storage = Derived.from_config_value(inst_data, config)
    assert type(storage) is Derived
    assert type(storage.run_storage) is PooledRunStorage
    assert type(storage.event_log_storage) is PooledEventLogStorage
    assert type(storage.schedule_storage) is PooledScheduleStorage


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:topsecret@x@127.0.0.1:5432/db",
        "postgresql://me:topsecret@127.0.0.1:54a2/db",
        "mysql://me:topsecret@127.0.0.1:5432/db",
        "topsecret",
    ],
)
def test_what_is_no_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="postgres_url is not postgresql://") as refused:
        PooledPostgresStorage(url)
    assert "topsecret" not in "".join(traceback.format_exception(refused.value))


def test_no_error_and_no_description_has_the_password(
    postgres: PostgresServer,
    instance: DagsterInstance,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = instance.get_ref().storage
    assert isinstance(storage, PooledPostgresStorage)
    said = [repr(storage), repr(storage.run_storage), instance.info_str(), repr(instance.get_ref())]
    wrong = postgres.url("no_such_database")
    with pytest.raises(DagsterPostgresException) as refused:
        PooledPostgresStorage(wrong)
    said += ["".join(traceback.format_exception(refused.value)), caplog.text]
    assert "no_such_database" in caplog.text
    assert [text for text in said if postgres.password in text] == []


def test_a_process_that_ends_leaves_no_connection(
    home: Path, instance: DagsterInstance, postgres: PostgresServer, database_url: str
) -> None:
    instance.get_runs_count()
    before = backends(postgres, database_url)
    subprocess.run(
        [sys.executable, "-c", OPENS, "0"], check=True, env=os.environ | {"DAGSTER_HOME": str(home)}
    )
    wait_until("gone", lambda: backends(postgres, database_url) == before)
