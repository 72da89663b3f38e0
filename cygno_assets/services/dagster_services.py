"""Dagster's processes: one code server, shared by the web UI and the daemon, and those two.

Shared, because only then does "Reload definitions" in the UI reach the daemon too.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cygno_assets.services.process import (
    Service,
    ServiceError,
    accepts_connections,
    claim,
    free_port,
)
from cygno_assets.services.web_ui import WebUI
from cygno_assets.settings import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cygno_assets.settings import Settings

LOCATION = "cygno_assets"
"""Name of the code location; part of the sensor's identity, so workspace.yaml has the same."""

_USUAL_PORT = 3000
_READY_TIMEOUT_S = 120.0


class DagsterServices:
    """Code server, webserver and daemon on one dagster.yaml.

    Args:
        settings: home, host and port.
        environ: settings that are not in our own environment.
        definitions: module that holds them.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        definitions: str = "cygno_assets.definitions",
    ) -> None:
        # Two systems that start at once would both find the usual port free.
        self._usual_port = None if settings.webserver_port else claim("cygno-assets web UI")
        port = settings.webserver_port
        if port is None:
            free = self._usual_port is not None and not accepts_connections(_USUAL_PORT)
            port = _USUAL_PORT if free else free_port()
        self._settings = settings
        self._port = port
        self.url = f"http://{settings.webserver_host}:{port}"
        self._ui = WebUI(self.url)
        self._code_port = free_port()
        self._workspace = settings.dagster_state / "workspace.yaml"
        logs = settings.home / "logs"
        environ = dict(environ) | {
            "DAGSTER_HOME": str(settings.dagster_config),
            "CYGNO_HOME": str(settings.home),
            # Off in dagster.yaml too, but only this keeps it from making folders in the checkout.
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }

        def service(name: str, *arguments: str, works_by_children: bool = False) -> Service:
            return Service(
                name,
                [sys.executable, "-m", *arguments],
                logs / f"{name.replace(' ', '-')}.log",
                environ,
                cwd=CHECKOUT,
                works_by_children=works_by_children,
            )

        self.code_server = service(
            "code server",
            *("dagster", "code-server", "start", "--module-name", definitions),
            *("--host", "127.0.0.1", "--port", str(self._code_port)),
            *("--location-name", LOCATION),
            works_by_children=True,
        )
        self.webserver = service(
            "web UI",
            *("dagster_webserver", "--workspace", str(self._workspace)),
            *("--host", settings.webserver_host, "--port", str(port)),
        )
        self.daemon = service(
            "daemon", "cygno_assets.engine.daemon", "run", "-w", str(self._workspace)
        )

    @property
    def services(self) -> list[Service]:
        """In the order in which they start."""
        return [self.code_server, self.webserver, self.daemon]

    def start(self) -> None:
        """Starts all three and waits until the definitions are loaded and the daemon runs.

        Raises:
            ServiceError: one of them does not come up, or the definitions do not load.
        """
        self._workspace.parent.mkdir(parents=True, exist_ok=True)
        self._workspace.write_text(
            "load_from:\n"
            "  - grpc_server:\n"
            "      host: 127.0.0.1\n"
            f"      port: {self._code_port}\n"
            f"      location_name: {LOCATION}\n"
        )
        self._create_databases()
        self.code_server.start().wait_ready(
            lambda: self.code_server.listens_on(self._code_port), _READY_TIMEOUT_S
        )
        self.webserver.start()
        self.daemon.start()
        self.webserver.wait_ready(self._definitions_loaded, _READY_TIMEOUT_S)
        self.daemon.wait_ready(self._daemon_healthy, _READY_TIMEOUT_S)
        self._settings.web_ui_url_file.write_text(self.url + "\n")

    def stop(self) -> None:
        """Stops all three."""
        self._settings.web_ui_url_file.unlink(missing_ok=True)
        for service in reversed(self.services):
            service.stop()
        if self._usual_port is not None:
            self._usual_port.close()

    def _create_databases(self) -> None:
        """Here, by one process: several that start on an empty home at once can corrupt it."""
        from dagster import DagsterInstance

        os.environ["DAGSTER_HOME"] = str(self._settings.dagster_config)
        os.environ["CYGNO_HOME"] = str(self._settings.home)
        with DagsterInstance.get() as instance:
            instance.get_runs_count()
            instance.all_instigator_state()

    def _definitions_loaded(self) -> bool:
        # Two systems that start at once may choose the same port: the answer must be ours.
        if not self.webserver.listens_on(self._port):
            return False
        answer = self._ui.ask(
            """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus
            locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
        )
        entries = answer["workspaceOrError"].get("locationEntries", [])
        for entry in entries:
            outcome = entry["locationOrLoadError"] or {}
            if outcome.get("__typename") == "PythonError":
                raise ServiceError(f"the definitions do not load: {outcome['message']}")
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

    def _daemon_healthy(self) -> bool:
        answer = self._ui.ask(
            "{ instance { daemonHealth { allDaemonStatuses { required healthy } } } }"
        )
        statuses = answer["instance"]["daemonHealth"]["allDaemonStatuses"]
        return all(status["healthy"] for status in statuses if status["required"])
