"""Jobs that behave, and jobs that do everything a run should not."""

import hashlib
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

from dagster import (
    DagsterEvent,
    Definitions,
    DynamicPartitionsDefinition,
    OpExecutionContext,
    asset,
    in_process_executor,
    job,
    multiprocess_executor,
    op,
)

CODE = Path(os.environ["ENGINE_TEST_CODE"]).read_text() if "ENGINE_TEST_CODE" in os.environ else ""
"""What the definitions were when they were loaded."""


def note(context: OpExecutionContext, text: str) -> None:
    """Leaves a line in a file, for tests to read: what this run saw."""
    folder = Path(os.environ["ENGINE_TEST_NOTES"])
    (folder / context.run_id).write_text(text)


@op
def quick(context: OpExecutionContext) -> None:
    note(context, f"{os.getpid()} {CODE}")


@op
def prints(context: OpExecutionContext) -> None:
    print("printed to stdout")
    print("printed to stderr", file=sys.stderr)
    os.write(1, b"written to the descriptor\n")
    context.log.info("said to the log")


@op
def fails(context: OpExecutionContext) -> None:
    raise ValueError("as expected")


@op
def exits(context: OpExecutionContext) -> None:
    os._exit(7)


@op
def crashes(context: OpExecutionContext) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@op
def exits_once(context: OpExecutionContext) -> None:
    first = (
        Path(os.environ["ENGINE_TEST_NOTES"]) / f"first-{context.run.root_run_id or context.run_id}"
    )
    if not first.exists():
        first.write_text("")
        os._exit(7)


@op
def uses_much_memory(context: OpExecutionContext) -> None:
    kept = [bytearray(os.urandom(1000)) * 100_000 for _ in range(12)]
    time.sleep(60)
    del kept


@op
def sleeps(context: OpExecutionContext) -> None:
    note(context, "started")
    time.sleep(120)


@op
def naps(context: OpExecutionContext) -> None:
    note(context, f"{os.getpid()} started")
    time.sleep(4)
    note(context, f"{os.getpid()} ended")


@op
def stops_when_all_is_done(context: OpExecutionContext) -> None:
    def job_success(*_: object) -> None:
        note(context, "all is done")
        time.sleep(120)

    # For ever: its process is to be killed.
    DagsterEvent.job_success = staticmethod(job_success)


@op
def is_stuck_in_c(context: OpExecutionContext) -> None:
    note(context, "started")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # signals are handled when it returns


@op
def leaves_traces(context: OpExecutionContext) -> None:
    os.environ["LEFT_BEHIND"] = "1"
    os.environ.pop("HOME", None)
    os.chdir("/")
    os.umask(0)
    sys.path.insert(0, "/left/behind")
    logging.getLogger("left").setLevel(logging.DEBUG)
    logging.getLogger("left").addHandler(logging.NullHandler())
    logging.getLogger().addHandler(logging.NullHandler())
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    random.seed(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 – left open on purpose


@op
def looks_for_traces(context: OpExecutionContext) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    traces = [
        name
        for name, left in {
            "environment": "LEFT_BEHIND" in os.environ or "HOME" not in os.environ,
            "folder": os.getcwd() == "/",  # noqa: PTH109
            "umask": mask == 0,
            "path": "/left/behind" in sys.path,
            "level": logging.getLogger("left").level != logging.NOTSET,
            "handlers": bool(logging.getLogger("left").handlers)
            or any(isinstance(h, logging.NullHandler) for h in logging.getLogger().handlers),
            "disabled": logging.root.manager.disable > 0,
            "signals": signal.getsignal(signal.SIGTERM) == signal.SIG_IGN,
            "streams": sys.stdout.name == os.devnull,
        }.items()
        if left
    ]
    note(context, f"{os.getpid()} {' '.join(traces) or 'none'}")


def job_of(the_op, kind="job", executor=in_process_executor, **options):  # type: ignore[no-untyped-def]
    @job(name=f"{the_op.name}_{kind}", executor_def=executor, **options)
    def made() -> None:
        the_op()

    return made


parts = DynamicPartitionsDefinition(name="part")


@asset(partitions_def=parts)
def one_part() -> int:
    return 1


defs = Definitions(
    assets=[one_part],
    jobs=[
        *(job_of(one) for one in (quick, prints, fails, exits, crashes, uses_much_memory, sleeps)),
        *(job_of(one) for one in (naps, is_stuck_in_c, leaves_traces, looks_for_traces)),
        job_of(stops_when_all_is_done),
        job_of(exits_once, tags={"dagster/max_retries": "2"}),
        *(job_of(one, "in_processes_job", multiprocess_executor) for one in (naps, sleeps)),
    ],
    executor=in_process_executor,
)
