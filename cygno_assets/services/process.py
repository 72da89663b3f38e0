"""One process that we start: its log, whether it is ready, and its end. Not what it is."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Self

import psutil

from cygno_assets.services.guardian import pause, prepare_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_POLL_S = 0.05
_WATCH_S = 1.0
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_LINES = 15
_PORTS = range(10_000, 30_000)
_given_ports: set[int] = set()


class ServiceError(RuntimeError):
    """A process did not come up, or ended by itself; the message has the end of its log."""


@dataclass
class Service:
    """A process started by us, in a process group of its own, that dies with us.

    Attributes:
        name: for messages, and of its log file.
        argv: program and arguments; secrets belong into the environment.
        log_file: where its output goes; appended to.
        environ: added to our own environment.
        stop_signal: what asks it to end.
        works_by_children: it is of no use without a child process.
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    works_by_children: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def start(self) -> Self:
        """Starts it and returns at once.

        Call it in the main thread: for the kernel, the parent whose end ends it is the thread.
        """
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        us = os.getpid()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(self.environ),
                cwd=self.cwd,
                # Ctrl-C in a terminal is for us; we then stop our services in order.
                start_new_session=True,
                preexec_fn=lambda: prepare_child(us),  # noqa: PLW1509 – a libc call, no lock
            )
        return self

    @property
    def pid(self) -> int:
        """Of the running process.

        Raises:
            ServiceError: it was not started.
        """
        if self._process is None:
            raise ServiceError(f"{self.name} was not started")
        return self._process.pid

    def check_alive(self, *, may_end: bool = False) -> None:
        """Raises ServiceError, with the end of the log, if the process has ended by itself.

        Args:
            may_end: it may, if with status 0.
        """
        if self.status is not None and not (may_end and self.status == 0):
            raise ServiceError(f"{self.name} ended with status {self.status}; {self._log_tail()}")

    @property
    def status(self) -> int | None:
        """With which it has ended; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def is_hollow(self) -> bool:
        """Whether it runs, but has lost the children by which it works."""
        if not self.works_by_children or self._process is None or self.status is not None:
            return False
        try:
            children = psutil.Process(self.pid).children()
            return all(child.status() == psutil.STATUS_ZOMBIE for child in children)
        except psutil.Error:
            return False

    @property
    def ended_well(self) -> bool:
        """Whether it has ended by itself, with status 0."""
        return self.status == 0

    def restart(self) -> None:
        """Starts it once more; what it has left in its process group is killed first."""
        self.stop()
        self.start()

    def listens_on(self, port: int) -> bool:
        """Whether it, and not some other process, listens on this port."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in connections
        )

    def wait_ready(self, answers: Callable[[], bool], timeout_s: float) -> Self:
        """Waits until it answers.

        Args:
            answers: asks it; an OSError counts as no.
            timeout_s: seconds after which it is given up.

        Raises:
            ServiceError: it ended, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                if answers():
                    return self
            except OSError:
                pass
            pause(_POLL_S)
        raise ServiceError(f"{self.name} does not answer after {timeout_s:g} s; {self._log_tail()}")

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Asks it to end, kills it with its process group if it does not, and waits for it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # children it left in its group

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return f"the end of {self.log_file}:\n" + "\n".join(f"  {line}" for line in lines)


def watch(services: Sequence[Service]) -> NoReturn:
    """Waits until this process is told to end.

    Raises:
        StopRequested: it was.
        ServiceError: one of the processes ended by itself.
    """
    while True:
        for service in services:
            service.check_alive()
        pause(_WATCH_S)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on just now, never the same twice.

    Below the ports that systems give to outgoing connections (from 32768 on), or one of those
    could take it before our server does.

    Raises:
        ServiceError: there is none.
    """
    for _ in _PORTS:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            if port not in _given_ports:
                probe.bind(("127.0.0.1", port))
                _given_ports.add(port)
                return port
    raise ServiceError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}")


def accepts_connections(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens on this port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def claim(name: str) -> socket.socket | None:
    """What one process of this machine can have at a time; ends with the process or the socket.

    Returns:
        The claim, to be kept open and closed; None if another has it. Where the system knows no
        such names (they are Linux's) everybody gets it.
    """
    mine = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            mine.bind(f"\0{name}")  # in no folder: nothing to clean up, whoever dies how
        except OSError:
            mine.close()
            return None
    return mine
