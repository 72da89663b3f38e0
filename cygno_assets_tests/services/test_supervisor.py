"""Services that end by themselves, and are started again."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from cygno_assets.services import supervisor as supervisor_module
from cygno_assets.services.process import Service
from cygno_assets.services.supervisor import Supervisor
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOREVER = "import signal; signal.pause()"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """One that goes on for ever."""
    one = Service("one", [sys.executable, "-c", FOREVER], tmp_path / "one.log")
    yield one.start()
    one.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(supervisor_module, "_LONGEST_PAUSE_S", 0.2)


def until_started_again(supervisor: Supervisor, service: Service, times: int) -> None:
    def started() -> bool:
        supervisor.look([service])
        return supervisor.restarts == times

    wait_until("started again", started)


def test_what_is_killed_is_started_again_and_both_is_said(service: Service) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    supervisor.look([service])
    assert said == []
    for times in (1, 2):
        before = service.pid
        os.kill(before, signal.SIGKILL)
        until_started_again(supervisor, service, times)
        assert service.pid != before
        assert psutil.Process(service.pid).is_running()
        assert said[-2].startswith("one ended by itself with status -9; it is started again in ")
        assert said[-1] == "one started again"


def test_what_it_left_in_its_group_is_gone_before(tmp_path: Path) -> None:
    code = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); {FOREVER}"
    )
    parent = Service("parent", [sys.executable, "-c", code], tmp_path / "parent.log").start()
    try:
        wait_until("a child", lambda: psutil.Process(parent.pid).children())
        [child] = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
        until_started_again(Supervisor(lambda _: None), parent, 1)
        wait_until("the child is gone", lambda: not child.is_running())
    finally:
        parent.stop()


def test_one_that_only_stands_still_is_left_alone(service: Service) -> None:
    supervisor, before = Supervisor(lambda _: None), service.pid
    os.kill(before, signal.SIGSTOP)
    wait_until("it stands", lambda: psutil.Process(before).status() == psutil.STATUS_STOPPED)
    for _ in range(3):
        supervisor.look([service])
    assert service.pid == before
    os.kill(before, signal.SIGCONT)


def test_one_that_has_lost_the_children_it_works_by_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_HOLLOW_S", 0.1)
    code = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); {FOREVER}"
    )
    parent = Service(
        "parent", [sys.executable, "-c", code], tmp_path / "p.log", works_by_children=True
    ).start()
    said: list[str] = []
    supervisor = Supervisor(said.append)
    try:
        wait_until("a child", lambda: psutil.Process(parent.pid).children())
        supervisor.look([parent])
        before = parent.pid
        [child] = psutil.Process(before).children()
        os.kill(child.pid, signal.SIGKILL)
        wait_until("the child is a zombie or gone", lambda: not living(before))
        until_started_again(supervisor, parent, 1)
        assert parent.pid != before
        assert said[0].startswith("parent has lost its processes")
    finally:
        parent.stop()


def living(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children() if c.status() != psutil.STATUS_ZOMBIE]


def test_one_that_ends_at_once_is_tried_for_ever_with_longer_pauses(tmp_path: Path) -> None:
    broken = Service("broken", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "b.log")
    said: list[str] = []
    supervisor = Supervisor(said.append)
    broken.start()
    until_started_again(supervisor, broken, 4)
    pauses = [float(line.split(" again in ")[1].split()[0]) for line in said if "ended" in line]
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.2]
    assert "status 3" in said[0]
    assert str(tmp_path / "b.log") in said[0]
    broken.stop()
