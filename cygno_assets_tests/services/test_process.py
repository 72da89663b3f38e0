"""One process that we start, with real processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from cygno_assets.services.process import (
    Service,
    ServiceError,
    accepts_connections,
    claim,
    free_port,
)
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def python(tmp_path: Path, code: str) -> Service:
    return Service("snake", [sys.executable, "-c", code], tmp_path / "logs" / "snake.log")


def test_a_process_that_ends_by_itself_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    service = python(tmp_path, "print('out of eggs'); raise SystemExit(3)").start()
    with pytest.raises(ServiceError, match=r"(?s)snake ended with status 3.*out of eggs"):
        service.wait_ready(lambda: False, 30)
    service.stop()


def test_a_process_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    service = python(tmp_path, "import time; time.sleep(60)").start()
    try:
        with pytest.raises(ServiceError, match=r"snake does not answer after 0\.2 s"):
            service.wait_ready(lambda: False, 0.2)
    finally:
        service.stop()


def test_one_that_ignores_the_request_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print('ready', flush=True); time.sleep(60)"
    )
    service = python(tmp_path, code).start()
    service.wait_ready(lambda: "ready" in service.log_file.read_text(), 30)
    family = [psutil.Process(service.pid), *psutil.Process(service.pid).children()]
    assert len(family) == 2
    service.stop(timeout_s=0.2)
    wait_until("all are gone", lambda: not any(alive(process) for process in family))


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_ending_well_is_an_error_only_where_it_must_not_end(tmp_path: Path) -> None:
    service = python(tmp_path, "").start()
    wait_until("it has ended", lambda: not alive(psutil.Process(service.pid)))
    service.check_alive(may_end=True)
    with pytest.raises(ServiceError, match="snake ended with status 0"):
        service.check_alive()


def test_a_free_port_accepts_nobody() -> None:
    assert not accepts_connections(free_port())


def test_free_ports_differ_from_each_other_and_from_those_of_outgoing_connections() -> None:
    ports = [free_port() for _ in range(2000)]
    assert len(set(ports)) == len(ports)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert max(ports) < server.getsockname()[1]


def test_a_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr("cygno_assets.services.process._PORTS", range(taken, taken + 1))
        monkeypatch.setattr("cygno_assets.services.process._given_ports", set())
        with pytest.raises(ServiceError, match="no free port"):
            free_port()


def test_a_claim_is_one_process_s_until_it_lets_go() -> None:
    name = f"cygno-assets test {free_port()}"
    mine = claim(name)
    assert mine is not None
    program = (
        "import sys; from cygno_assets.services.process import claim; "
        "sys.exit(claim(sys.argv[1]) is None)"
    )
    other = [sys.executable, "-c", program, name]
    assert subprocess.run(other, check=False).returncode == 1
    mine.close()
    assert subprocess.run(other, check=False).returncode == 0
