"""A Celery worker that executes Dagster's runs: `python -m …engine.celery_worker --queue …`.

Here belongs what a worker does with the message of a run. The definitions are loaded once, before
the processes fork that execute the runs; each of these opens Dagster's storage once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import threading
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import Reject
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.instance.ref import InstanceRef
from dagster._utils import send_interrupt

from .celery_launcher import BACKGROUND_QUEUE, LIVE_QUEUE, TASK, HeldRunLauncher
from .code_digest import code_digest
from .pooled_postgres import holds_of
from .run_ends import GONE, end_run
from .worker import NOT_HERE, as_it_was, execute, keep_loaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagster import DagsterRun

QUEUES = {"live": LIVE_QUEUE, "background": BACKGROUND_QUEUE}
_LOOK_EVERY_S = 0.5
_STOPPING = {DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED, DagsterRunStatus.FAILURE}
_log = logging.getLogger(__name__)


def main() -> None:
    """Entry point; DAGSTER_HOME says where dagster.yaml is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queue", choices=QUEUES, required=True, help="whose runs to execute")
    parser.add_argument("--processes", type=int, required=True, help="runs at a time")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    launcher = _launcher()
    _Runs(launcher).serve()
    launcher.celery.worker_main(
        [
            *("worker", "--hostname", f"{arguments.queue}-{os.getpid()}@{socket.gethostname()}"),
            *("--queues", QUEUES[arguments.queue], "--concurrency", str(arguments.processes)),
            *("--pool", "prefork", "-O", "fair", "--loglevel", "INFO"),
            # Workers need to know nothing of each other: the broker and the storage do.
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]
    )


def _launcher() -> HeldRunLauncher:
    """What dagster.yaml names. The storage is not opened: that is for the processes that fork."""
    home = os.environ["DAGSTER_HOME"]
    launcher = InstanceRef.from_dir(home).run_launcher
    if not isinstance(launcher, HeldRunLauncher):
        raise SystemExit(
            f"{home}/dagster.yaml: its run launcher is {type(launcher).__name__} and not "
            f"{HeldRunLauncher.__name__}, so that no run would ever come here"
        )
    return launcher


class _Runs:
    """What is done with the messages; its own in each process.

    Args:
        launcher: what sends them.
    """

    def __init__(self, launcher: HeldRunLauncher) -> None:
        self._launcher = launcher
        self._code = code_digest(launcher.definitions)
        self._instance: DagsterInstance | None = None

    def serve(self) -> None:
        """Loads the definitions, and has Celery call when a process or a message is there."""
        import_module(self._launcher.definitions)
        keep_loaded()
        signals.worker_process_init.connect(self._begin, weak=False)
        self._launcher.celery.task(name=TASK)(self.execute)

    def _begin(self, **_: Any) -> None:
        # How its connections are called in the database, where `cygno-assets status` looks.
        os.environ["PGAPPNAME"] = f"worker {os.getpid()} on {socket.gethostname()}"
        self._opened()  # should the storage be away now, the first run opens it

    def _opened(self) -> DagsterInstance:
        if self._instance is None:
            self._instance = DagsterInstance.get()
        return self._instance

    def execute(self, run_id: str, code: str) -> None:
        """Sees to it that a run ends: by executing it, unless another process does, or has.

        Args:
            run_id: of the run.
            code: digest of the daemon's code.

        Raises:
            Reject: it has not ended; the broker gives it to a worker once more.
        """
        try:
            instance = self._opened()
            holds = holds_of(instance)
            if not holds.hold(run_id):
                return  # delivered twice, and the other one is at it
            try:
                if self._is_open(instance, run_id, code):
                    self._execute(instance, run_id)
                # Not by what the run has raised: where its storage was away, only that tells.
                run = instance.get_run_by_id(run_id)
                if run is not None and not run.is_finished:
                    raise Reject(f"run {run_id} has not ended", requeue=True)
            finally:
                holds.release(run_id)
        except Reject:
            raise
        except Exception as error:
            _log.exception("run %s is given back to the broker", run_id)
            raise Reject(str(error), requeue=True) from error

    def _is_open(self, instance: DagsterInstance, run_id: str, code: str) -> bool:
        """Whether a run that this process holds is still to be executed."""
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if run.status == DagsterRunStatus.STARTED:
            end_run(instance, run, GONE)
            return False
        if code != self._code:
            self._refuse(instance, run, code)
        return True

    def _execute(self, instance: DagsterInstance, run_id: str) -> None:
        with as_it_was(), self._stoppable(instance, run_id):
            done = execute(instance, run_id, f"a worker on {socket.gethostname()}")
        run = instance.get_run_by_id(run_id) if done == NOT_HERE else None
        if run is not None:
            instance.report_run_failed(
                run,
                "Its job asks for an executor that starts processes of its own, which workers of "
                "Celery cannot: choose the in-process executor.",
            )

    def _refuse(self, instance: DagsterInstance, run: DagsterRun, code: str) -> None:
        """Gives a run back to the broker, and ends this worker, which can execute none of them."""
        why = (
            f"The worker on {socket.gethostname()} has other code ({self._code}) than the daemon "
            f"({code}), refuses the run, and ends. Install the same commit there, with the same "
            "versions of Python and Dagster, and start it again."
        )
        _log.error(why)
        instance.report_engine_event(why, run)
        os.kill(os.getppid(), signal.SIGTERM)  # it takes no more, and waits for what is under way
        raise Reject(why, requeue=True)

    @contextmanager
    def _stoppable(self, instance: DagsterInstance, run_id: str) -> Iterator[None]:
        """Interrupts a run when somebody stops it; and kills this process if it goes on then."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_LOOK_EVERY_S):
                try:
                    run = instance.get_run_by_id(run_id)
                except Exception:  # noqa: BLE001 – whatever a storage raises that is away
                    _log.warning("whether %s shall stop cannot be looked up", run_id, exc_info=True)
                    continue
                if run is None or run.status in _STOPPING:
                    send_interrupt()
                    if not over.wait(self._launcher.stop_grace_s):
                        if run is not None:
                            instance.report_run_canceled(run, "Canceled: its process was killed.")
                        os.kill(os.getpid(), signal.SIGKILL)
                    return

        watcher = threading.Thread(target=watch, name="stop", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


if __name__ == "__main__":
    main()
