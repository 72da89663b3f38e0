"""A pool of persistent processes, one task at a time each. Knows nothing of Dagster.

The standard library's pools lose every task when one process dies, cannot kill the one that is
stuck, and do not say how a process ended; pebble's breaks for good when a process dies that does
nothing, and knows no order of tasks. Hence this one, of `multiprocessing`'s own parts.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.25
_PR_SET_PDEATHSIG = 1
_LAST = 2**62
"""Priority of the sentinels that end the pool's threads: after every task."""


@dataclass(frozen=True)
class Finished:
    """The process did the task.

    Attributes:
        value: what it answered.
    """

    value: str


@dataclass(frozen=True)
class Died:
    """The process ended before the task did.

    Attributes:
        reason: in words.
    """

    reason: str


@dataclass(frozen=True)
class Limits:
    """When a process is replaced.

    Attributes:
        tasks: after so many.
        memory_bytes: with more resident memory than this; at once, even amid a task. 0 for never.
        grace_s: seconds between being asked to stop a task and being killed.
    """

    tasks: int
    memory_bytes: int
    grace_s: float


class Pool:
    """Processes that are started at once, and kept until the pool is closed.

    Args:
        serve: what each process runs: given its end of the pipe and `arguments`, it receives tasks
            and answers each, in UTF-8, until the pipe is closed. Importable, for processes are
            spawned.
        arguments: for `serve`; pickled, by us for our own process.
        size: how many processes.
        limits: when one is replaced.
        niceness: what the processes yield to others on a busy CPU; 0 for nothing, 19 for most.
        ended: told of each task and what became of it, in a thread of the pool's.
        wants_stop: asked, now and then, whether a task under way is to be stopped.
    """

    def __init__(
        self,
        serve: Callable[..., None],
        arguments: tuple[Any, ...],
        size: int,
        limits: Limits,
        *,
        niceness: int = 0,
        ended: Callable[[str, Finished | Died], None],
        wants_stop: Callable[[str], bool],
    ) -> None:
        self._serve = serve
        self._arguments = arguments
        self._limits = limits
        self._niceness = niceness
        self._ended = ended
        self._wants_stop = wants_stop
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._queue: queue.PriorityQueue[tuple[int, int, str | None]] = queue.PriorityQueue()
        self._waiting: set[str] = set()
        self._pids: dict[str, int] = {}
        self._threads = [
            threading.Thread(target=self._keep_one, name=f"pool-{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: str, priority: int = 0) -> None:
        """Has a task done, once; higher priorities first, then in order."""
        with self._lock:
            if task in self._waiting or task in self._pids:
                return
            self._waiting.add(task)
        self._queue.put((-priority, next(self._order), task))

    def withdraw(self, task: str) -> bool:
        """Takes a task back that waits; False if it does not."""
        with self._lock:
            if task not in self._waiting:
                return False
            self._waiting.remove(task)
            return True

    def withdraw_all(self) -> list[tuple[str, int]]:
        """Takes back all tasks that wait, in their order, with their priorities."""
        with self._lock:
            waiting = [
                (task, -urgency)
                for urgency, _, task in sorted(self._queue.queue)
                if task is not None and task in self._waiting
            ]
            self._waiting.clear()
            return waiting

    def holds(self, task: str) -> bool:
        """Whether a task waits or is under way."""
        with self._lock:
            return task in self._waiting or task in self._pids

    def pid_of(self, task: str) -> int | None:
        """The process that does the task; None if none does."""
        with self._lock:
            return self._pids.get(task)

    def close(self) -> None:
        """Ends each process when nothing waits any more and its task is done; returns at once."""
        for _ in self._threads:
            self._queue.put((_LAST, next(self._order), None))

    def join(self, timeout_s: float) -> bool:
        """Waits until all processes have ended; False if one has not in time."""
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def kill(self) -> None:
        """Kills all processes that do a task."""
        with self._lock:
            pids = list(self._pids.values())
        for pid in pids:
            _kill(pid)

    def _keep_one(self) -> None:
        worker = self._new_worker()
        done = 0
        while True:
            _, _, task = self._queue.get()
            if task is None:
                break
            with self._lock:
                if task not in self._waiting:
                    continue  # withdrawn
                if not worker.alive or done >= self._limits.tasks or self._too_large(worker):
                    worker.close()
                    worker, done = self._new_worker(), 0
                self._waiting.remove(task)
                self._pids[task] = worker.pid
            outcome = self._have_done(worker, task)
            done += 1
            with self._lock:
                del self._pids[task]
            if isinstance(outcome, Died) or done >= self._limits.tasks or self._too_large(worker):
                # Now, so that the next task finds it ready.
                worker.close()
                worker, done = self._new_worker(), 0
            try:
                self._ended(task, outcome)
            except Exception:  # noqa: BLE001 – a thread that ends would leave a process unused
                # Whatever it is, the pool goes on; who looks after the task finds it gone.
                _log.exception("after task %s", task)
        worker.close()

    def _new_worker(self) -> _Worker:
        return _Worker(self._serve, self._arguments, self._niceness)

    def _have_done(self, worker: _Worker, task: str) -> Finished | Died:
        asked_to_stop = 0.0
        try:
            worker.pipe.send_bytes(task.encode())
        except OSError:
            return Died(worker.how_it_ended())
        while True:
            ready = wait([worker.pipe, worker.sentinel], _LOOK_EVERY_S)
            if worker.pipe in ready:
                try:
                    # Not `recv`, which unpickles: what runs there has decoded what others sent us.
                    return Finished(worker.pipe.recv_bytes().decode(errors="replace"))
                except (EOFError, OSError):
                    return Died(worker.how_it_ended())
            if worker.sentinel in ready:
                return Died(worker.how_it_ended())
            if self._too_large(worker):
                used = worker.memory_bytes
                worker.kill()
                return Died(
                    f"its process used {used / 1e6:.0f} MB of memory, more than the "
                    f"{self._limits.memory_bytes / 1e6:.0f} MB allowed"
                )
            if asked_to_stop:
                asked_to_stop += _LOOK_EVERY_S
                if asked_to_stop > self._limits.grace_s:
                    worker.kill()
                    return Died(f"did not stop within {self._limits.grace_s:g} s and was killed")
            elif self._is_to_stop(task):
                asked_to_stop = _LOOK_EVERY_S
                worker.interrupt()

    def _is_to_stop(self, task: str) -> bool:
        try:
            return self._wants_stop(task)
        except Exception:  # noqa: BLE001 – as above
            _log.exception("whether task %s is to stop", task)
            return False

    def _too_large(self, worker: _Worker) -> bool:
        return 0 < self._limits.memory_bytes < worker.memory_bytes


class _Worker:
    """One process, and our end of its pipe."""

    def __init__(
        self, serve: Callable[..., None], arguments: tuple[Any, ...], niceness: int
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fresh interpreter: nothing of ours leaks
        self.pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_run, args=(serve, theirs, arguments, niceness, os.getpid()), name="warm-worker"
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def memory_bytes(self) -> int:
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Ends it; it does nothing just now."""
        self.pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self.kill()

    def how_it_ended(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process exited with status {code}"


def _run(
    serve: Callable[..., None],
    pipe: Connection,
    arguments: tuple[Any, ...],
    niceness: int,
    parent: int,
) -> None:
    """A process's beginning: out of the terminal's reach, and dead when its parent is."""
    os.setpgid(0, 0)
    die_with(parent)
    os.nice(niceness)
    serve(pipe, *arguments)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        threading.Event().wait(_LOOK_EVERY_S)
    os._exit(1)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
