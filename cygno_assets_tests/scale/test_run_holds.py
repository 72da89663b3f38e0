"""Who executes a run: one process at a time, until it dies or loses its connection."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as db
from dagster import DagsterInstance, job, op
from dagster._core.test_utils import create_run_for_test
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygno_assets.engine.pooled_postgres import PooledPostgresStorage, PooledRunStorage
from cygno_assets.engine.run_holds import RunLostError
from cygno_assets_tests.scale.conftest import dagster_home
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cygno_assets_tests.scale.servers import PostgresServer

RUN = "0b2f3f3e-1f9c-4a8e-9d56-0d9e1f3c2b1a"
HOLDS = """
import sys, time
from dagster import DagsterInstance
with DagsterInstance.get() as instance:
    print(instance.get_ref().storage.hold_run(sys.argv[1]), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def storage(database_url: str) -> PooledPostgresStorage:
    return PooledPostgresStorage(database_url, 4)


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Another thread, always the same."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


def backend_of(storage: PooledPostgresStorage) -> int:
    """The server's process that this thread talks to."""
    assert isinstance(storage.run_storage, PooledRunStorage)
    [row] = storage.run_storage.fetchall(db.text("SELECT pg_backend_pid() AS pid"))
    return int(row["pid"])


def test_a_run_is_held_by_one_at_a_time(
    storage: PooledPostgresStorage, elsewhere: ThreadPoolExecutor
) -> None:
    assert not storage.is_held(RUN)
    assert storage.hold_run(RUN)
    assert storage.hold_run(RUN)  # still the same hold
    assert storage.is_held(RUN)
    assert not storage.is_held("another")
    assert not elsewhere.submit(storage.hold_run, RUN).result(60)
    assert elsewhere.submit(storage.hold_run, "another").result(60)
    storage.release_run(RUN)
    assert not storage.is_held(RUN)
    elsewhere.submit(storage.release_run, "another").result(60)
    assert elsewhere.submit(storage.hold_run, RUN).result(60)
    storage.release_run(RUN)  # it is not this thread's
    assert storage.is_held(RUN)
    assert not storage.hold_run(RUN)


def test_a_thread_holds_one_run(storage: PooledPostgresStorage) -> None:
    assert storage.hold_run(RUN)
    with pytest.raises(RuntimeError, match=RUN):
        storage.hold_run("another")
    storage.release_run(RUN)
    assert storage.hold_run("another")
    storage.release_run("another")


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(run_id=st.text(st.characters(codec="utf-8"), max_size=40))
def test_whatever_its_id_a_held_run_is_found(storage: PooledPostgresStorage, run_id: str) -> None:
    assert storage.hold_run(run_id)
    assert storage.is_held(run_id)
    storage.release_run(run_id)
    assert not storage.is_held(run_id)


def test_all_that_its_thread_says_goes_over_the_connection_that_holds_it(
    instance: DagsterInstance, postgres: PostgresServer
) -> None:
    @op
    def looks() -> list[int]:
        return [backend_of(storage) for _ in range(2)]

    @job
    def a_job() -> None:
        looks()

    storage = instance.get_ref().storage
    assert isinstance(storage, PooledPostgresStorage)
    assert storage.hold_run(RUN)
    holders = {pid for (pid,) in postgres.ask("SELECT pid FROM pg_locks WHERE objsubid = 1")}
    result = a_job.execute_in_process(instance=instance)
    assert set(result.output_for_node("looks")) == holders
    storage.release_run(RUN)


def test_killing_its_process_frees_it_at_once(home: Path, instance: DagsterInstance) -> None:
    storage = instance.get_ref().storage
    assert isinstance(storage, PooledPostgresStorage)
    process = subprocess.Popen([sys.executable, "-c", HOLDS, RUN], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        assert storage.is_held(RUN)
        assert not storage.hold_run(RUN)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    wait_until("free", lambda: not storage.is_held(RUN), 5)
    assert storage.hold_run(RUN)
    storage.release_run(RUN)


def test_who_has_lost_it_writes_nothing_more(
    instance: DagsterInstance, postgres: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    storage = instance.get_ref().storage
    assert isinstance(storage, PooledPostgresStorage)
    run = create_run_for_test(instance)
    assert storage.hold_run(run.run_id)
    postgres.ask(f"SELECT pg_terminate_backend({backend_of(storage)})")
    assert elsewhere.submit(storage.hold_run, run.run_id).result(60)  # taken over
    for _ in range(3):
        with pytest.raises(RunLostError, match=run.run_id):
            instance.report_run_failed(run)
        with pytest.raises(RunLostError, match=run.run_id):
            instance.get_run_by_id(run.run_id)
        with pytest.raises(RunLostError, match=run.run_id):
            storage.hold_run(run.run_id)
    elsewhere.submit(instance.report_engine_event, "hello", run).result(60)
    assert [log.message for log in elsewhere.submit(instance.all_logs, run.run_id).result(60)] == [
        "hello"
    ]
    storage.release_run(run.run_id)
    assert not storage.hold_run(run.run_id)
    assert instance.get_run_by_id(run.run_id) == run


def test_it_is_lost_amid_a_transaction_too(
    storage: PooledPostgresStorage, postgres: PostgresServer
) -> None:
    runs = storage.run_storage
    assert isinstance(runs, PooledRunStorage)

    def is_broken_off() -> None:
        with runs.transaction():
            postgres.ask(f"SELECT pg_terminate_backend({backend_of(storage)})")
            backend_of(storage)

    assert storage.hold_run(RUN)
    with pytest.raises(RunLostError, match=RUN):
        is_broken_off()
    with pytest.raises(RunLostError, match=RUN):
        backend_of(storage)
    storage.release_run(RUN)
    backend_of(storage)


def test_an_error_that_leaves_the_connection_whole_loses_nothing(
    storage: PooledPostgresStorage,
) -> None:
    assert isinstance(storage.run_storage, PooledRunStorage)
    assert storage.hold_run(RUN)
    before = backend_of(storage)
    with pytest.raises(db.exc.ProgrammingError):
        storage.run_storage.fetchall(db.text("SELECT * FROM no_such_table"))
    with pytest.raises(db.exc.ProgrammingError), storage.run_storage.transaction():
        storage.run_storage.fetchall(db.text("SELECT * FROM no_such_table"))
    assert backend_of(storage) == before
    assert storage.is_held(RUN)
    storage.release_run(RUN)


def test_a_restart_of_the_server_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_postgres: PostgresServer
) -> None:
    dagster_home(tmp_path, monkeypatch, own_postgres.url(own_postgres.make_database()))
    with DagsterInstance.get() as instance:
        storage = instance.get_ref().storage
        assert isinstance(storage, PooledPostgresStorage)
        assert storage.hold_run(RUN)
        own_postgres.stop()
        own_postgres.start()
        with pytest.raises(RunLostError, match=RUN):
            instance.get_runs_count()
        storage.release_run(RUN)
        assert not storage.is_held(RUN)
        assert storage.hold_run(RUN)
        own_postgres.stop()
        storage.release_run(RUN)  # nobody has noticed yet
        storage.release_run(RUN)
        own_postgres.start()
        assert storage.hold_run(RUN)
        storage.release_run(RUN)


def test_nobody_inherits_the_hold_of_a_thread_that_ended(storage: PooledPostgresStorage) -> None:
    thread = threading.Thread(target=storage.hold_run, args=(RUN,))
    thread.start()
    thread.join()
    gc.collect()
    wait_until("free", lambda: not storage.is_held(RUN), 5)


def test_a_forked_process_does_not_have_its_parents_hold(storage: PooledPostgresStorage) -> None:
    assert storage.hold_run(RUN)
    before = backend_of(storage)
    child = os.fork()
    if child == 0:
        got = storage.hold_run(RUN)
        gc.collect()
        os._exit(1 if got or backend_of(storage) == before else 0)
    assert os.waitpid(child, 0)[1] == 0
    assert backend_of(storage) == before
    assert storage.is_held(RUN)
    storage.release_run(RUN)
