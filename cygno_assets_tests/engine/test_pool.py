"""The pool of processes by itself: what becomes of tasks whatever becomes of processes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from cygno_assets.engine.pool import Died, Finished, Limits, Pool
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

FOREVER = Limits(tasks=10**9, memory_bytes=0, grace_s=0.5)


def serve(pipe: Connection) -> None:
    """Does what the task's name says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kept = []
    while True:
        try:
            task = pipe.recv_bytes().decode()
        except EOFError:
            return
        what = task.partition(":")[0]
        if what == "exit":
            os._exit(3)
        if what == "memory":
            kept.append(bytearray(os.urandom(1000)) * 200_000)
            time.sleep(60)
        if what in {"stubborn", "interruptible"}:
            handler = signal.SIG_IGN if what == "stubborn" else signal.default_int_handler
            signal.signal(signal.SIGINT, handler)
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                pipe.send_bytes(b"interrupted")
                continue
        if what == "pickle":
            pipe.send_bytes(pickle.dumps("unpickled"))
            continue
        if what == "slow":
            time.sleep(0.5)
        pipe.send_bytes(str(os.getpid()).encode())


@dataclass
class Desk:
    """Hands tasks in and keeps what became of them."""

    pool: Pool = field(init=False)
    outcomes: dict[str, Finished | Died] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    to_stop: set[str] = field(default_factory=set)
    fails: bool = False

    def open(self, size: int = 1, limits: Limits = FOREVER) -> None:
        self.pool = Pool(
            serve, (), size, limits, ended=self._ended, wants_stop=self.to_stop.__contains__
        )

    def _ended(self, task: str, outcome: Finished | Died) -> None:
        assert task not in self.outcomes, "done twice"
        self.outcomes[task] = outcome
        self.order.append(task)
        if self.fails:
            raise RuntimeError("whoever is told fails")

    def of(self, *tasks: str) -> list[Finished | Died]:
        wait_until(f"{tasks} have ended", lambda: set(tasks) <= self.outcomes.keys())
        return [self.outcomes[task] for task in tasks]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.pool.withdraw_all()
    desk.pool.kill()
    desk.pool.close()
    assert desk.pool.join(20)


def pids(outcomes: list[Finished | Died]) -> list[int]:
    assert all(isinstance(outcome, Finished) for outcome in outcomes), outcomes
    return [int(outcome.value) for outcome in outcomes]  # type: ignore[union-attr]


def test_a_process_does_task_after_task(desk: Desk) -> None:
    desk.open()
    tasks = [f"quick:{n}" for n in range(50)]
    for task in tasks:
        desk.pool.submit(task)
    assert len(set(pids(desk.of(*tasks)))) == 1
    assert desk.order == tasks


def test_what_a_process_answers_is_not_unpickled(desk: Desk) -> None:
    desk.open()
    desk.pool.submit("pickle:1")
    [answered] = desk.of("pickle:1")
    assert isinstance(answered, Finished)
    assert "unpickled" in answered.value != "unpickled"


def test_several_processes_share_the_tasks(desk: Desk) -> None:
    desk.open(size=2)
    tasks = [f"slow:{n}" for n in range(6)]
    for task in tasks:
        desk.pool.submit(task)
    assert len(set(pids(desk.of(*tasks)))) == 2


def test_what_matters_more_is_done_first_and_nothing_twice(desk: Desk) -> None:
    desk.open()
    desk.pool.submit("slow:first")
    wait_until("it is under way", lambda: desk.pool.pid_of("slow:first"))
    for task, priority in (("a", 0), ("b", 10), ("c", 0), ("d", 10)):
        desk.pool.submit(task, priority)
        desk.pool.submit(task, priority)
        desk.pool.submit("slow:first")
    desk.of("a", "b", "c", "d")
    assert desk.order == ["slow:first", "b", "d", "a", "c"]


def test_a_process_that_dies_fails_its_task_alone(desk: Desk) -> None:
    desk.open()
    for task in ("a", "exit:1", "b"):
        desk.pool.submit(task)
    first, died, after = desk.of("a", "exit:1", "b")
    assert died == Died("its process exited with status 3")
    assert pids([first]) != pids([after])


def test_a_process_that_is_killed_while_it_waits_loses_nothing(desk: Desk) -> None:
    desk.open()
    desk.pool.submit("a")
    [pid] = pids(desk.of("a"))
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    desk.pool.submit("b")
    assert isinstance(desk.of("b")[0], Finished)


def test_a_process_is_replaced_after_its_tasks(desk: Desk) -> None:
    desk.open(limits=Limits(tasks=2, memory_bytes=0, grace_s=1))
    for task in "abcdef":
        desk.pool.submit(task)
    found = pids(desk.of(*"abcdef"))
    assert [found.count(pid) for pid in dict.fromkeys(found)] == [2, 2, 2]


def test_too_much_memory_ends_it(desk: Desk) -> None:
    desk.open(limits=Limits(tasks=99, memory_bytes=150_000_000, grace_s=1))
    desk.pool.submit("memory:1")
    desk.pool.submit("a")
    died, after = desk.of("memory:1", "a")
    assert isinstance(died, Died)
    assert "more than the 150 MB allowed" in died.reason
    assert isinstance(after, Finished)


def test_a_task_is_asked_to_stop_and_its_process_killed_if_it_does_not(desk: Desk) -> None:
    desk.open()
    desk.pool.submit("a process that is up")
    desk.of("a process that is up")
    desk.to_stop |= {"interruptible:1", "stubborn:1"}
    for task in ("interruptible:1", "stubborn:1", "a"):
        desk.pool.submit(task)
    stopped, killed, _ = desk.of("interruptible:1", "stubborn:1", "a")
    assert stopped == Finished("interrupted")
    assert killed == Died("did not stop within 0.5 s and was killed")


def test_what_waits_can_be_taken_back(desk: Desk) -> None:
    desk.open()
    desk.pool.submit("slow:1")
    wait_until("it is under way", lambda: desk.pool.pid_of("slow:1"))
    for task in "abcd":
        desk.pool.submit(task, priority=1 if task == "d" else 0)
    assert desk.pool.withdraw("b")
    assert not desk.pool.withdraw("b")
    assert not desk.pool.withdraw("slow:1")
    assert desk.pool.holds("a")
    assert not desk.pool.holds("b")
    assert desk.pool.withdraw_all() == [("d", 1), ("a", 0), ("c", 0)]
    desk.of("slow:1")
    desk.pool.submit("b")  # again
    desk.of("b")
    assert desk.order == ["slow:1", "b"]


def test_whoever_is_told_may_fail(desk: Desk) -> None:
    desk.fails = True
    desk.open()
    for task in "ab":
        desk.pool.submit(task)
    assert len(set(pids(desk.of(*"ab")))) == 1


def test_closed_it_finishes_what_it_has_and_leaves_no_process(desk: Desk) -> None:
    desk.open(size=2)
    tasks = [f"slow:{n}" for n in range(4)]
    for task in tasks:
        desk.pool.submit(task)
    desk.pool.close()
    assert desk.pool.join(20)
    found = pids(desk.of(*tasks))
    assert not any(psutil.pid_exists(pid) for pid in found)
    assert not [t for t in threading.enumerate() if t.name.startswith("pool-")]
