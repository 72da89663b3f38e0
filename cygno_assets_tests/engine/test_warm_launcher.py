"""The warm launcher in a real daemon, asked through a real webserver."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.utils import make_new_run_id
from dagster._record import copy

from cygno_assets_tests.engine.system import System
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One worker, so that each run is executed where the one before was."""
    folder = tmp_path_factory.mktemp("engine")
    with System(
        folder, {"background_workers": 1, "memory_limit_mb": 700, "stop_grace_seconds": 2}
    ) as system:
        yield system


def pid_of(system: System, run_id: str) -> int:
    """The worker that executed a run, as its event log has it."""
    for message in system.messages(run_id):
        if match := re.fullmatch(r"Executed by a warm worker \(pid: (\d+)\)\.", message):
            return int(match[1])
    raise AssertionError(system.messages(run_id))


def test_one_process_executes_run_after_run(system: System) -> None:
    runs = [system.launch("quick_job") for _ in range(5)]
    assert {system.ends(run) for run in runs} == {"SUCCESS"}
    assert len({pid_of(system, run) for run in runs}) == 1


def test_what_a_run_prints_can_be_read(system: System) -> None:
    run = system.launch("prints_job")
    assert system.ends(run) == "SUCCESS"
    assert "said to the log" in system.messages(run)
    events = system.ui.ask(
        """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
        ... on LogsCapturedEvent { fileKey } } } } }""",
        id=run,
    )["logsForRun"]["events"]
    [key] = [event["fileKey"] for event in events if event.get("fileKey")]
    captured = system.ui.ask(
        "query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }",
        key=[run, "compute_logs", key],
    )["capturedLogs"]
    assert "printed to stdout" in captured["stdout"]
    assert "written to the descriptor" in captured["stdout"]
    assert "printed to stderr" in captured["stderr"]


def test_a_run_that_fails_fails_and_the_worker_goes_on(system: System) -> None:
    failed = system.launch("fails_job")
    assert system.ends(failed) == "FAILURE"
    after = system.launch("quick_job")
    assert system.ends(after) == "SUCCESS"
    assert pid_of(system, after) == pid_of(system, failed)


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ("exits_job", "its process exited with status 7"),
        ("crashes_job", "its process was killed by SIGSEGV"),
        ("uses_much_memory_job", "more than the 700 MB allowed"),
    ],
)
def test_a_process_that_dies_fails_its_own_run_with_the_reason_and_is_replaced(
    system: System, job: str, why: str
) -> None:
    before, dies, after = (system.launch(name) for name in ("quick_job", job, "quick_job"))
    assert system.ends(dies) == "FAILURE"
    assert any(why in message for message in system.messages(dies)), system.messages(dies)
    assert system.ends(before) == system.ends(after) == "SUCCESS"
    assert pid_of(system, after) != pid_of(system, dies)


def test_a_run_whose_process_died_is_retried(system: System) -> None:
    first = system.launch("exits_once_job")
    assert system.ends(first) == "FAILURE"

    def retried() -> list[str]:
        answer = system.ui.ask(
            """query($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) {
            ... on Runs { results { status } } } }""",
            tags=[{"key": "dagster/parent_run_id", "value": first}],
        )
        return [run["status"] for run in answer["runsOrError"]["results"]]

    wait_until("the retry succeeds", lambda: retried() == ["SUCCESS"], 90)


def test_a_run_whose_process_died_when_all_was_done_is_a_success(system: System) -> None:
    """Its process is killed between the last step's end and the run's."""
    run = system.launch("stops_when_all_is_done_job")
    assert system.noted(run) == "all is done"
    psutil.Process(pid_of(system, run)).kill()
    assert system.ends(run) == "SUCCESS"
    why = "The run did not end: its process was killed by SIGKILL. All of its steps had succeeded."
    assert why in system.messages(run)


@pytest.mark.parametrize("job", ["sleeps_job", "is_stuck_in_c_job"])
def test_a_run_under_way_is_stopped_from_the_web_ui(system: System, job: str) -> None:
    run = system.launch(job)
    assert system.noted(run) == "started"
    pid = pid_of(system, run)
    system.terminate(run)
    assert system.ends(run, 15) == "CANCELED"
    after = system.launch("quick_job")
    assert system.ends(after) == "SUCCESS"
    # One that is stuck in C can only be killed.
    assert (pid_of(system, after) != pid) == (job == "is_stuck_in_c_job")


def test_a_run_that_takes_too_long_is_ended_with_its_process(system: System) -> None:
    run = system.launch("is_stuck_in_c_job", **{"dagster/max_runtime": "2"})
    assert system.noted(run) == "started"
    pid = pid_of(system, run)
    assert system.ends(run, 30) == "FAILURE"
    assert "Exceeded maximum runtime of 2 seconds." in system.messages(run)
    after = system.launch("quick_job")
    assert system.ends(after) == "SUCCESS"
    assert pid_of(system, after) != pid


def test_a_run_that_waits_is_canceled(system: System) -> None:
    first = system.launch("naps_job")
    system.noted(first)
    waiting = [system.launch("quick_job") for _ in range(6)]  # launcher's and Dagster's queue
    wait_until("one is handed over", lambda: system.status(waiting[0]) == "STARTING")
    system.terminate(waiting[-1])
    # Of one that is handed over but not started, the UI offers this alone.
    system.terminate(waiting[0], "MARK_AS_CANCELED_IMMEDIATELY")
    assert system.ends(waiting[0]) == system.ends(waiting[-1]) == "CANCELED"
    assert system.ends(first) == "SUCCESS"
    assert {system.ends(run) for run in waiting[1:-1]} == {"SUCCESS"}


@pytest.mark.parametrize("tags", [{"dagster/backfill": "any"}, {"dagster/priority": "-1"}])
def test_nothing_waits_for_what_is_in_the_background(system: System, tags: dict[str, str]) -> None:
    long = system.launch("sleeps_job", **tags)
    system.noted(long)
    run = system.launch("quick_job")
    assert system.ends(run) == "SUCCESS"
    assert system.status(long) == "STARTED"
    assert psutil.Process(pid_of(system, long)).nice() == 10
    assert psutil.Process(pid_of(system, run)).nice() == 0
    system.terminate(long)
    assert system.ends(long, 15) == "CANCELED"


def test_nothing_stays_of_a_run(system: System) -> None:
    assert system.runs("leaves_traces_job") == "SUCCESS"
    run = system.launch("looks_for_traces_job")
    assert system.ends(run) == "SUCCESS"
    pid, traces = system.noted(run).split(" ", 1)
    assert traces == "none"
    assert int(pid) == pid_of(system, run)


def test_another_executor_is_served_by_dagsters_own_launcher(system: System) -> None:
    run = system.launch("naps_in_processes_job")  # for longer than between two health checks
    assert system.ends(run) == "SUCCESS", system.messages(run)
    assert int(system.noted(run).split()[0]) not in {p.pid for p in system.workers()}


def test_a_run_of_another_executor_is_stopped_from_the_web_ui(system: System) -> None:
    run = system.launch("sleeps_in_processes_job")
    system.noted(run)
    system.terminate(run)
    assert system.ends(run, 15) == "CANCELED"


def test_after_a_reload_no_stale_code_runs(system: System) -> None:
    before = system.launch("quick_job")
    assert system.ends(before) == "SUCCESS"
    assert system.noted(before).split()[1] == "first"
    system.code.write_text("second")
    system.reload()
    runs = [system.launch("quick_job") for _ in range(3)]
    assert {system.ends(run) for run in runs} == {"SUCCESS"}
    assert {system.noted(run).split()[1] for run in runs} == {"second"}
    wait_until("the old worker has ended", lambda: len(system.workers()) == 1)


def test_a_worker_is_replaced_after_its_runs(tmp_path: Path) -> None:
    with System(tmp_path, {"runs_per_worker": 2}) as system:
        runs = [system.launch("quick_job") for _ in range(6)]
        assert {system.ends(run) for run in runs} == {"SUCCESS"}
        pids = [pid_of(system, run) for run in runs]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_a_daemon_that_is_stopped_lets_runs_finish(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        run = system.launch("naps_job")
        assert system.noted(run).endswith(" started")
        workers = system.workers()
        system.daemon.stop(30)
        assert system.status(run) == "SUCCESS"
        assert system.noted(run).endswith(" ended")
        psutil.wait_procs(workers, 10)
        assert not system.workers()


def test_a_daemon_that_is_killed_takes_its_workers_along_and_the_runs_are_run_again(
    tmp_path: Path,
) -> None:
    with System(tmp_path, more={"run_retries": {"enabled": True, "max_retries": 2}}) as system:
        run = system.launch("sleeps_job")
        done = system.launch("stops_when_all_is_done_job", **{"dagster/priority": "-1"})
        waiting = system.launch("quick_job")
        assert system.noted(run) == "started"
        assert system.noted(done) == "all is done"
        wait_until("the other is handed over", lambda: system.status(waiting) == "STARTING")
        workers = system.workers()
        assert workers
        system.kill_daemon()
        _, alive = psutil.wait_procs(workers, 10)
        assert not alive
        system.daemon = system.new_daemon().start()
        assert system.ends(waiting, 90) == "SUCCESS"
        assert system.ends(run, 90) == "FAILURE"
        assert system.ends(done, 90) == "SUCCESS"

        def again() -> list[str]:
            answer = system.ui.ask(
                """query($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) {
                ... on Runs { results { runId status } } } }""",
                tags=[{"key": "dagster/parent_run_id", "value": run}],
            )
            return [one["status"] for one in answer["runsOrError"]["results"]]

        wait_until("it runs again", lambda: again() == ["STARTED"], 60)


def test_a_run_that_was_created_and_not_queued_is_executed(tmp_path: Path) -> None:
    """As one is left by a database that is away between the two."""
    with System(tmp_path) as system:
        system.daemon.stop()
        like = system.launch("quick_job")
        forgotten = make_new_run_id()
        with DagsterInstance.from_config(str(system.home)) as instance:
            run = instance.get_run_by_id(like)
            assert run is not None
            instance.run_storage.add_run(
                copy(run, run_id=forgotten, status=DagsterRunStatus.NOT_STARTED)
            )
        system.daemon = system.new_daemon().start()
        assert system.ends(like) == "SUCCESS"
        assert system.status(forgotten) == "NOT_STARTED", "whoever created it may be about to go on"
        assert system.ends(forgotten) == "SUCCESS"
        assert sum("Executed by" in message for message in system.messages(forgotten)) == 1


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        ("Executed by", "its process exited with status 1"),
        ("Started execution of run", "its process could not begin it"),
    ],
)
def test_a_run_whose_end_could_not_be_stored_ends_when_it_can(
    tmp_path: Path, refused: str, why: str
) -> None:
    """As when a disk is full: neither what a run begins with is stored, nor that it failed."""
    with System(tmp_path) as system:
        database = tmp_path / "state" / "dagster.db"
        texts = (refused, "The run did not end")
        refuse = " OR ".join(f"instr(NEW.event, '{text}')" for text in texts)
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute(
                f"CREATE TRIGGER full BEFORE INSERT ON event_logs WHEN {refuse} "
                "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
            )
            run = system.launch("quick_job")
            log = tmp_path / "daemon.log"
            wait_until("its end is refused", lambda: "cannot be ended" in log.read_text())
            assert system.status(run) == "STARTING"
            connection.execute("DROP TRIGGER full")
        assert system.ends(run) == "FAILURE"
        assert f"The run did not end: {why}." in system.messages(run)
        assert system.runs("quick_job") == "SUCCESS"
