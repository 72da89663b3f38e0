"""The Celery launcher with real broker, database, daemon and workers; jobs that misbehave."""

from __future__ import annotations

import re
import shutil
import ssl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from kombu.exceptions import ContentDisallowed

from cygno_assets.engine.celery_launcher import LIVE_QUEUE, TASK, HeldRunLauncher
from cygno_assets.engine.code_digest import code_digest
from cygno_assets.services.certificates import make_certificates
from cygno_assets_tests.engine.system import DEFINITIONS, System
from cygno_assets_tests.scale.servers import RabbitServer
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu.message import Message

    from cygno_assets.services.process import Service
    from cygno_assets_tests.scale.servers import PostgresServer

PACKAGE = Path(__file__).resolve().parent.parent


class CelerySystem(System):
    """The engine's test system, whose runs go to Celery workers."""

    def __init__(self, folder: Path, postgres_url: str, broker: RabbitServer) -> None:
        self.broker = broker
        self._begun = 0
        engine = "cygno_assets.engine"
        super().__init__(
            folder,
            more={
                "run_launcher": {
                    "module": f"{engine}.celery_launcher",
                    "class": "HeldRunLauncher",
                    "config": {
                        "broker": broker.url,
                        "definitions": DEFINITIONS,
                        "stop_grace_seconds": 2,
                        "resend_seconds": 5,
                    },
                },
                "storage": {
                    "custom": {
                        "module": f"{engine}.pooled_postgres",
                        "class": "PooledPostgresStorage",
                        "config": {"postgres_url": postgres_url},
                    }
                },
            },
        )

    def worker(self, code: Path | None = None) -> Service:
        """A worker with one process; to be stopped by the test."""
        self._begun += 1
        service = self._service(
            f"worker-{self._begun}",
            *("cygno_assets.engine.celery_worker", "--queue", "live", "--processes", "1"),
        )
        service.cwd = code
        return service.start()

    @contextmanager
    def running_worker(self, code: Path | None = None) -> Iterator[Service]:
        """A worker that takes runs, of our code or of what is in a folder."""
        worker = self.worker(code)
        try:
            wait_until("it takes runs", lambda: " ready." in worker.log_file.read_text(), 60)
            yield worker
        finally:
            worker.stop()

    def send(self, run_id: str) -> None:
        """The message of a run once more."""
        launcher = HeldRunLauncher(self.broker.url, DEFINITIONS)
        launcher.celery.send_task(TASK, args=(run_id, code_digest(DEFINITIONS)), queue=LIVE_QUEUE)

    def retries_of(self, run_id: str) -> list[str]:
        """Status of each run that retries another one."""
        answer = self.ui.ask(
            """query($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) {
            ... on Runs { results { status } } } }""",
            tags=[{"key": "dagster/parent_run_id", "value": run_id}],
        )
        return [run["status"] for run in answer["runsOrError"]["results"]]


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> Iterator[CelerySystem]:
    folder = tmp_path_factory.mktemp("celery")
    broker = RabbitServer(folder / "broker", folder / "broker.log")
    try:
        broker.start()
        with CelerySystem(
            folder / "system", postgres.url(postgres.make_database()), broker
        ) as system:
            yield system
    finally:
        broker.stop()


@pytest.fixture
def worker(system: CelerySystem) -> Iterator[Service]:
    with system.running_worker() as worker:
        yield worker


def pid_of(system: System, run_id: str) -> int:
    """The process that executed a run, as its event log has it."""
    for message in system.messages(run_id):
        if match := re.fullmatch(r"Executed by a worker on \S+ \(pid: (\d+)\)\.", message):
            return int(match[1])
    raise AssertionError(system.messages(run_id))


@pytest.mark.usefixtures("worker")
def test_one_process_executes_run_after_run_and_goes_on_after_one_that_fails(
    system: CelerySystem,
) -> None:
    runs = [system.launch(job) for job in ("quick_job", "fails_job", "quick_job", "quick_job")]
    assert [system.ends(run) for run in runs] == ["SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]
    assert len({pid_of(system, run) for run in runs}) == 1


@pytest.mark.usefixtures("worker")
def test_nothing_stays_of_a_run(system: CelerySystem) -> None:
    assert system.runs("leaves_traces_job") == "SUCCESS"
    looked = system.launch("looks_for_traces_job")
    assert system.ends(looked) == "SUCCESS"
    assert system.noted(looked).split()[1:] == ["none"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("job", ["exits_job", "crashes_job"])
def test_a_process_that_dies_fails_its_run_and_is_replaced(system: CelerySystem, job: str) -> None:
    dies, after = system.launch(job), system.launch("quick_job")
    assert system.ends(dies) == "FAILURE"
    assert any("process that executed it is gone" in said for said in system.messages(dies))
    assert system.ends(after) == "SUCCESS"
    assert pid_of(system, after) != pid_of(system, dies)


@pytest.mark.usefixtures("worker")
def test_a_run_whose_process_died_is_retried(system: CelerySystem) -> None:
    first = system.launch("exits_once_job")
    assert system.ends(first) == "FAILURE"
    wait_until("the retry succeeds", lambda: system.retries_of(first) == ["SUCCESS"], 90)


@pytest.mark.usefixtures("worker")
def test_a_run_whose_process_died_when_all_was_done_is_a_success(system: CelerySystem) -> None:
    """Its process is killed between the last step's end and the run's."""
    run = system.launch("stops_when_all_is_done_job")
    assert system.noted(run) == "all is done"
    psutil.Process(pid_of(system, run)).kill()
    assert system.ends(run) == "SUCCESS"
    why = "The process that executed it is gone. All of its steps had succeeded."
    assert why in system.messages(run)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("job", ["sleeps_job", "is_stuck_in_c_job"])
def test_a_run_under_way_is_stopped_from_the_web_ui(system: CelerySystem, job: str) -> None:
    run = system.launch(job)
    assert system.noted(run) == "started"
    pid = pid_of(system, run)
    system.terminate(run)
    assert system.status(run) in {"CANCELING", "CANCELED"}
    assert system.ends(run, 15) == "CANCELED"
    after = system.launch("quick_job")
    assert system.ends(after) == "SUCCESS"
    # One that is stuck in C can only be killed.
    assert (pid_of(system, after) != pid) == (job == "is_stuck_in_c_job")


@pytest.mark.usefixtures("worker")
def test_a_run_that_waits_for_a_worker_can_be_canceled(system: CelerySystem) -> None:
    first = system.launch("naps_job")
    system.noted(first)
    waits = system.launch("quick_job")
    wait_until("it is handed over", lambda: system.status(waits) == "STARTING")
    system.terminate(waits, "MARK_AS_CANCELED_IMMEDIATELY")  # Dagster offers no other way then
    assert system.status(waits) == "CANCELED"
    after = system.launch("quick_job")
    assert system.ends(after) == system.ends(first) == "SUCCESS"
    assert not (system.notes / waits).exists()


@pytest.mark.usefixtures("worker")
def test_a_run_that_is_delivered_again_is_executed_once(system: CelerySystem) -> None:
    with system.running_worker():
        run = system.launch("naps_job")
        pid = system.noted(run).split()[0]
        system.send(run)  # the other worker is free, and gets it at once
        system.send(run)
        assert system.ends(run) == "SUCCESS"
    assert system.noted(run) == f"{pid} ended"
    messages = system.messages(run)
    assert sum(message.startswith("Executed by") for message in messages) == 1
    assert not any("is gone" in message for message in messages)


@pytest.mark.usefixtures("worker")
def test_an_executor_that_starts_processes_is_refused(system: CelerySystem) -> None:
    run = system.launch("naps_in_processes_job")
    assert system.ends(run) == "FAILURE"
    assert any("choose the in-process executor" in message for message in system.messages(run))


def test_a_worker_that_is_killed_costs_a_retry_of_what_it_did(system: CelerySystem) -> None:
    with system.running_worker() as doomed:
        run = system.launch("naps_job", **{"dagster/max_retries": "1"})
        system.noted(run)
        mine = psutil.Process(doomed.pid)
        for process in (*mine.children(recursive=True), mine):
            process.kill()
    with system.running_worker():
        assert system.ends(run) == "FAILURE"
        wait_until("it is retried", lambda: system.retries_of(run) == ["SUCCESS"], 60)


def test_a_run_whose_message_is_lost_is_sent_again(system: CelerySystem) -> None:
    run = system.launch("quick_job")
    wait_until("it is sent", lambda: system.broker.messages_in(LIVE_QUEUE) == 1)
    assert system.broker.purge(LIVE_QUEUE) == 1
    with system.running_worker():
        assert system.ends(run) == "SUCCESS"


def test_the_certificate_of_a_broker_is_checked_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(tmp_path)
    broker = RabbitServer(tmp_path / "broker", tmp_path / "broker.log", certificates=tmp_path)

    def connect(url: str) -> None:
        with HeldRunLauncher(url, DEFINITIONS).celery.connection_for_write() as connection:
            connection.connect()

    try:
        broker.start()
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            connect(broker.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # an authority we trust
        connect(broker.url)
        with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '127\.0\.0\.2'"):
            connect(broker.url.replace("127.0.0.1", "127.0.0.2"))
    finally:
        broker.stop()


def test_a_pickled_message_is_refused() -> None:
    app = HeldRunLauncher("memory://", DEFINITIONS).celery
    for serializer in ("json", "pickle"):
        app.send_task(TASK, args=("run", "code"), queue=LIVE_QUEUE, serializer=serializer)
    messages: list[Message] = []
    queues = [app.amqp.queues.select_add(LIVE_QUEUE)]
    with app.connection_for_read() as connection:
        # As a worker takes them.
        channel = connection.default_channel
        with app.amqp.TaskConsumer(channel, queues=queues, on_message=messages.append):
            while len(messages) < 2:
                connection.drain_events(timeout=10)
        fine, pickled = messages
        assert fine.decode()[0] == ["run", "code"]
        with pytest.raises(ContentDisallowed, match="untrusted content of type pickle"):
            pickled.decode()


def test_a_worker_with_other_code_refuses_and_ends(system: CelerySystem, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / PACKAGE.name / "engine" / "definitions.py").open("a") as file:
        file.write("# of another commit\n")
    with system.running_worker(tmp_path) as other:
        run = system.launch("quick_job")
        wait_until("it ends", lambda: other.status is not None, 60)
        assert "has other code" in other.log_file.read_text()
    assert any("has other code" in message for message in system.messages(run))
    assert system.status(run) == "STARTING"
    with system.running_worker():
        assert system.ends(run) == "SUCCESS"
