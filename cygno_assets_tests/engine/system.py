"""A Dagster system with the engine, on definitions made for its tests."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import psutil
import yaml

from cygno_assets.services.process import Service, free_port
from cygno_assets.services.web_ui import WebUI
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path

LOCATION = "engine_tests"
DEFINITIONS = "cygno_assets_tests.engine.definitions"
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


@dataclass
class System:
    """Code server, webserver and daemon; all of it ends with the block."""

    folder: Path
    launcher: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.notes = self.folder / "notes"
        self.code = self.folder / "code"
        for path in (self.home, self.notes):
            path.mkdir(parents=True)
        self.code.write_text("first")
        state = {"base_dir": str(self.folder / "state")}
        engine = "cygno_assets.engine"
        config = {
            "run_launcher": {
                "module": f"{engine}.warm_launcher",
                "class": "WarmRunLauncher",
                "config": {"workers": 1, **self.launcher},
            },
            "storage": {
                "custom": {
                    "module": f"{engine}.pooled_sqlite",
                    "class": "PooledSqliteStorage",
                    "config": state,
                }
            },
            "compute_logs": {
                "module": f"{engine}.compute_logs",
                "class": "QuietComputeLogManager",
                "config": state,
            },
            "run_coordinator": {
                "module": "dagster.core.run_coordinator",
                "class": "QueuedRunCoordinator",
                "config": {"max_concurrent_runs": 4, "dequeue_interval_seconds": 1},
            },
            "run_monitoring": {"enabled": True, "poll_interval_seconds": 2},
            "run_retries": {"enabled": True},
            "telemetry": {"enabled": False},
            **self.more,
        }
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(config))
        self._code_port, self._port = free_port(), free_port()
        workspace = self.folder / "workspace.yaml"
        server = {"host": "127.0.0.1", "port": self._code_port, "location_name": LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        self._workspace = str(workspace)
        self.ui = WebUI(f"http://127.0.0.1:{self._port}")
        self.code_server = self._service(
            "code-server",
            *("dagster", "code-server", "start", "-m", DEFINITIONS, "--location-name", LOCATION),
            *("--host", "127.0.0.1", "--port", str(self._code_port)),
        )
        self.webserver = self._service(
            "webserver", "dagster_webserver", "-w", self._workspace, "-p", str(self._port)
        )
        self.daemon = self.new_daemon()

    def _service(self, name: str, *arguments: str) -> Service:
        environ = {
            "DAGSTER_HOME": str(self.home),
            "ENGINE_TEST_NOTES": str(self.notes),
            "ENGINE_TEST_CODE": str(self.code),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }
        return Service(
            name, [sys.executable, "-m", *arguments], self.folder / f"{name}.log", environ
        )

    def new_daemon(self) -> Service:
        return self._service("daemon", "cygno_assets.engine.daemon", "run", "-w", self._workspace)

    def __enter__(self) -> Self:
        self.code_server.start().wait_ready(
            lambda: self.code_server.listens_on(self._code_port), 60
        )
        self.webserver.start()
        self.daemon.start()
        self.webserver.wait_ready(self._loaded, 60)
        return self

    def __exit__(self, *_: object) -> None:
        for service in (self.daemon, self.webserver, self.code_server):
            service.stop()

    def _loaded(self) -> bool:
        answer = self.ui.ask(
            """{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"""
        )
        return bool(answer["repositoriesOrError"].get("nodes"))

    def launch(self, job: str, **tags: str) -> str:
        """Queues a run; returns its id."""
        answer = self.ui.ask(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
            """,
            params={
                "selector": {
                    "repositoryLocationName": LOCATION,
                    "repositoryName": "__repository__",
                    "jobName": job,
                },
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in tags.items()]
                },
            },
        )["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> str:
        query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        return str(self.ui.ask(query, id=run_id)["runOrError"]["status"])

    def ends(self, run_id: str, timeout_s: float = 60) -> str:
        """Waits for a run's end; returns its status."""
        wait_until(f"{run_id} ends", lambda: self.status(run_id) in ENDED, timeout_s)
        return self.status(run_id)

    def runs(self, job: str, **tags: str) -> str:
        """Launches a run and waits for it; returns its status."""
        return self.ends(self.launch(job, **tags))

    def noted(self, run_id: str) -> str:
        """What a run left a note of."""
        path = self.notes / run_id
        wait_until(f"a note of {run_id}", path.exists)
        return path.read_text()

    def messages(self, run_id: str) -> list[str]:
        """The run's event log, as the UI shows it."""
        answer = self.ui.ask(
            """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection {
            events { ... on MessageEvent { message } } } } }""",
            id=run_id,
        )["logsForRun"]
        return [event["message"] for event in answer["events"] if event.get("message")]

    def terminate(self, run_id: str, policy: str = "SAFE_TERMINATE") -> None:
        """As the UI's button."""
        answer = self.ui.ask(
            """mutation($id: String!, $policy: TerminateRunPolicy!) {
            terminateRun(runId: $id, terminatePolicy: $policy) {
            __typename ... on TerminateRunFailure { message } } }""",
            id=run_id,
            policy=policy,
        )["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def reload(self) -> None:
        """As the UI's button."""
        answer = self.ui.ask(
            """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) {
            __typename } }""",
            name=LOCATION,
        )["reloadRepositoryLocation"]
        assert answer["__typename"] == "WorkspaceLocationEntry", answer

    def workers(self) -> list[psutil.Process]:
        """The daemon's warm workers."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("DAGSTER_HOME") == str(self.home)
                spawned = "spawn_main" in " ".join(process.cmdline())
            except psutil.Error:
                continue
            if mine and spawned:
                found.append(process)
        return found

    def kill_daemon(self) -> None:
        os.kill(self.daemon.pid, signal.SIGKILL)
