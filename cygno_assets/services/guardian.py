"""Nothing we start outlives us: not after Ctrl-C, not after an error, not after kill -9.

Here belong the means of the operating system; which processes there are is stack.py's to say.

`guarded` splits a command in two processes that watch each other. The inner one starts the
services; it is on a leash, a pipe whose other end only the outer one holds. The outer one lets go
of it when a signal asks for the end, and the kernel does when the outer one is killed; either way
the inner one takes the services down. If the inner one is killed, what it leaves behind becomes
the outer one's, which kills it. Beyond that, each service asked the kernel to be killed if its
parent dies.

A leash, because a signal would be an exception at any point of the inner one's code, and some
code swallows those: asyncio, and Dagster while it captures interrupts.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130
"""The exit status that shells give Ctrl-C."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_leash: int | None = None


class StopRequested(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP arrived, or the process that watches us died: end in order."""


def guarded(command: Callable[[], int]) -> int:
    """Runs a command such that nothing it starts is left running, however it ends.

    Args:
        command: starts processes and returns an exit status. It waits by `pause`, which tells it
            to end.

    Returns:
        The command's exit status; 130 if it was told to end, 128 + the signal's number if a signal
        killed it.
    """
    adopt_orphans()
    leash, hand = os.pipe()
    inner = os.fork()
    if inner == 0:
        os.close(hand)
        _run_on_leash(command, leash)
    os.close(leash)
    held = True

    def let_go(_: int, __: FrameType | None) -> None:
        nonlocal held
        if held:
            os.close(hand)
            held = False

    for number in _SIGNALS:
        signal.signal(number, let_go)
    status = os.waitstatus_to_exitcode(_wait(inner))
    kill_descendants()
    return status if status >= 0 else 128 - status


def _run_on_leash(command: Callable[[], int], leash: int) -> NoReturn:
    global _leash  # noqa: PLW0603 – one per process, as the process is one
    _leash = leash
    status = 1
    try:
        os.setsid()  # Ctrl-C in a terminal reaches the outer one alone
        adopt_orphans()
        status = command()
    except StopRequested:
        status = _INTERRUPTED
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else 1
    except BaseException:  # noqa: BLE001 – the process ends here; nothing must be swallowed
        sys.excepthook(*sys.exc_info())
    finally:
        kill_descendants()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int) -> int:
    while True:
        ended, status = os.wait()  # others are orphans that became ours
        if ended == pid:
            return status


def pause(seconds: float) -> None:
    """Sleeps.

    Raises:
        StopRequested: this process was told to end.
    """
    if _leash is None:
        time.sleep(seconds)
    elif select.select([_leash], [], [], seconds)[0]:
        raise StopRequested


async def until_stopped(work: Coroutine[Any, Any, int]) -> int:
    """Awaits some work, and cancels it when this process is told to end.

    Raises:
        StopRequested: it was.
    """
    task = asyncio.ensure_future(work)
    if _leash is None:
        return await task
    loop = asyncio.get_running_loop()
    loop.add_reader(_leash, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise StopRequested from None
    finally:
        loop.remove_reader(_leash)


def adopt_orphans() -> None:
    """Makes processes whose parent dies ours, so that `kill_descendants` finds them."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def prepare_child(parent: int) -> None:
    """To be called in a child before its program: the kernel shall kill it when its parent dies.

    Signals act on it as they usually do, whatever we inherited: a shell starts what it puts into
    the background with SIGINT ignored, and Dagster interrupts a run by SIGINT.

    Args:
        parent: our pid, for we may be dead before the child asks.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_descendants() -> None:
    """Kills everything below this process, and waits until it is gone."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=5)
