"""What a warm worker does: it executes one run after the other, and nothing stays of any."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from dagster import DagsterInstance, DagsterRun
    from dagster._core.definitions.reconstruct import ReconstructableJob
    from dagster._core.instance.ref import InstanceRef
    from dagster._core.origin import RepositoryPythonOrigin

DONE = "done"
NOT_HERE = "not here"
"""The job asks for an executor that needs processes of its own: another launcher must run it."""

_COLLECT_AFTER = 20_000
"""Objects more than there were at the last collection; Python's 700 is for small programs."""
_IN_PROCESS = "in_process"
_executors: dict[str, str] = {}
"""Name of the executor, by job. A process knows one state of the code."""


def serve(pipe: Connection, instance_ref: InstanceRef, origin: RepositoryPythonOrigin) -> None:
    """Executes each run whose id comes through the pipe, and answers DONE or NOT_HERE.

    Args:
        pipe: closed when there is nothing more to do.
        instance_ref: of the Dagster instance.
        origin: of the definitions, loaded before the first run comes.
    """
    from dagster import DagsterInstance
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    # Only who knows that a run is under way may interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DagsterInstance.from_ref(instance_ref) as instance:
        try:
            ReconstructableRepository(pointer=origin.code_pointer).get_definition()
        except Exception:
            # The first run meets the same, and tells in its log.
            logging.getLogger(__name__).exception("the definitions do not load")
        keep_loaded()
        while True:
            try:
                run_id = pipe.recv_bytes().decode()
            except EOFError:
                return
            with as_it_was():
                answer = execute(instance, run_id)
            pipe.send_bytes(answer.encode())


def keep_loaded() -> None:
    """Has Python look for garbage only in what comes from now on.

    What is loaded stays: to look through it again and again takes a tenth of a short run's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def execute(instance: DagsterInstance, run_id: str, worker: str = "a warm worker") -> str:
    """Executes a run to its end; what goes wrong is in its event log.

    Args:
        instance: Dagster's.
        run_id: of a run that has not started.
        worker: who does, for the log.

    Returns:
        DONE or NOT_HERE.
    """
    from dagster import DagsterRunStatus
    from dagster._core.events import EngineEventData
    from dagster._grpc.impl import core_execute_run
    from dagster._utils.hosted_user_process import recon_job_from_origin
    from dagster._utils.interrupts import capture_interrupts

    with capture_interrupts():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished or run.status == DagsterRunStatus.STARTED:
            return DONE  # nothing left to do, or somebody does it
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
            return DONE
        if run.job_code_origin is None:
            return NOT_HERE
        job = recon_job_from_origin(run.job_code_origin)
        if not _runs_in_process(job, run):
            return NOT_HERE
        instance.report_engine_event(
            f"Executed by {worker} (pid: {os.getpid()}).",
            run,
            EngineEventData.in_process(os.getpid()),
        )
        try:
            for _ in core_execute_run(job, run, instance, inject_env_vars=True):
                pass
        except BaseException:  # noqa: BLE001 – written into the run's log before it is raised
            return DONE
    return DONE


def _runs_in_process(job: ReconstructableJob, run: DagsterRun) -> bool:
    """Whether the job's executor, or what the run's configuration makes of it, is in-process."""
    executor = _executors.get(run.job_name)
    if executor is None:
        try:
            executor = str(job.get_definition().executor_def.name)
        except Exception:  # noqa: BLE001 – they do not load: the run will say so in its log
            return True
        # Kept by name: Dagster caches one definition, which this would push out each time.
        _executors[run.job_name] = executor
    if executor == _IN_PROCESS:
        return True
    # Dagster's default executor is either, by the run's configuration.
    chosen: Any = run.run_config
    for part in ("execution", "config"):
        chosen = chosen.get(part, {})
    return executor == "multi_or_in_process_executor" and "in_process" in chosen


@contextmanager
def as_it_was() -> Iterator[None]:
    """Puts back what a run may have changed: environment, folder, signals, paths, logging."""
    environ, folder = dict(os.environ), os.getcwd()  # noqa: PTH109 – chdir's own kind
    mask = os.umask(0o022)
    os.umask(mask)
    path, argv = list(sys.path), list(sys.argv)
    streams = (sys.stdin, sys.stdout, sys.stderr)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loggers = {
        logger: (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
        for logger in _loggers()
    }
    disabled = logging.root.manager.disable
    try:
        yield
    finally:
        if dict(os.environ) != environ:
            os.environ.clear()
            os.environ.update(environ)
        os.chdir(folder)
        os.umask(mask)
        sys.path[:], sys.argv[:] = path, argv
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for logger in _loggers():
            level, its_handlers, propagate, was_disabled = loggers.get(
                logger, (logging.NOTSET, [], True, False)
            )
            if logger.level != level:  # setting it has all loggers look anew what they let pass
                logger.setLevel(level)
            logger.handlers[:] = its_handlers
            logger.propagate, logger.disabled = propagate, was_disabled
        if logging.root.manager.disable != disabled:
            logging.disable(disabled)


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(one for one in known if isinstance(one, logging.Logger))]
