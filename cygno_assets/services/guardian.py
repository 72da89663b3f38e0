"""Nothing we start outlives us: not after Ctrl-C, not after an error, not after kill -9.

Here belong the means of the operating system; which processes there are is stack.py's to say.

`guarded` splits a command in two processes that watch each other. The inner one starts the
services. If the outer one is killed, the kernel sends the inner one SIGTERM, and it takes the
services down; if the inner one is killed, what it leaves behind becomes the outer one's, which
kills it. Beyond that, each service asked the kernel to be killed if its parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Terminated(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP arrived: end in order.

    A KeyboardInterrupt, for asyncio lets that one through wherever it is raised.
    """


def guarded(command: Callable[[], int]) -> int:
    """Runs a command such that nothing it starts is left running, however it ends.

    Args:
        command: starts processes and returns an exit status. Ctrl-C, SIGTERM and SIGHUP reach it
            as Terminated.

    Returns:
        The command's exit status; 128 + the signal's number if one killed it.
    """
    adopt_orphans()
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        status = 1
        try:
            os.setsid()  # Ctrl-C in a terminal reaches the outer one alone, which passes it on
            die_with_parent(outer, signal.SIGTERM)
            adopt_orphans()
            # SIGINT too, though Python has a handler for it: a shell starts what it puts into the
            # background with SIGINT ignored, and asyncio replaces Python's own handler by one
            # that cancels a task, which a task may swallow.
            for number in _SIGNALS:
                signal.signal(number, _terminate)
            status = command()
        except KeyboardInterrupt:
            status = 130
        except SystemExit as request:
            status = request.code if isinstance(request.code, int) else 1
        except BaseException:  # noqa: BLE001 – the process ends here; nothing must be swallowed
            sys.excepthook(*sys.exc_info())
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            kill_descendants()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(inner, number)

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    status = os.waitstatus_to_exitcode(_wait(inner))
    kill_descendants()
    return status if status >= 0 else 128 - status


def _wait(pid: int) -> int:
    while True:
        ended, status = os.wait()  # others are orphans that became ours
        if ended == pid:
            return status


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


def adopt_orphans() -> None:
    """Makes processes whose parent dies ours, so that `kill_descendants` finds them."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel for a signal to this process when its parent dies; call it in the child.

    Args:
        parent: the parent's pid, for it may be dead before we ask.
        number: the signal.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def kill_descendants() -> None:
    """Kills everything below this process, and waits until it is gone."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=5)
