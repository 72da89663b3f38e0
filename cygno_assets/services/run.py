"""`cygno-assets demo` and `cygno-assets up`: the running system, followed on the terminal."""

from __future__ import annotations

import os
import secrets
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cygno_assets.daq.inbox import Inbox, InboxUnavailableError
from cygno_assets.daq.recorder import received_together
from cygno_assets.services.guardian import pause
from cygno_assets.services.process import Service
from cygno_assets.services.progress import LiveLine, Progress, TrainingProgress
from cygno_assets.services.stack import running_daq_servers, running_stack
from cygno_assets.settings import Settings, SettingsError, environment_name, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dagster import DagsterInstance

    from cygno_assets.daq.inbox import StoredMessage
    from cygno_assets.daq.recorder import RecorderCounts
    from cygno_assets.daq.simulator.truth import TruthTable
    from cygno_assets.services.simulated_training_set import SimulatedTrainingSet
    from cygno_assets.services.stack import Stack

_LOOK_EVERY_S = 1.0
_STUCK_AFTER_S = 300.0
_READ_AT_ONCE = 1000


def run_up(overrides: dict[str, object]) -> None:
    """Runs the system against a real DAQ until it is interrupted.

    Args:
        overrides: settings by field name, beyond those of the environment.

    Raises:
        SettingsError: no host is listed to fetch images from, so that every event would fail.
    """
    if not load_settings(overrides).download_hosts:
        raise SettingsError(
            f"{environment_name('download_hosts')}: no host to fetch images from. Set it to the "
            "object store's, as it stands in the announced URLs (host or host:port), or say "
            "`up --image-host HOST`"
        )
    with running_stack(overrides, _say) as stack:
        _say(f"DAQ        {stack.settings.daq_subject} – Ctrl-C ends")
        _follow_up(stack)


def run_demo(
    overrides: dict[str, object],
    *,
    events: int | None,
    rate_hz: float,
    seed: int | None,
    images: Path | None,
    training: bool,
    faults: Mapping[str, object],
) -> int:
    """Runs the system against a simulated DAQ, which offers a training set too.

    Args:
        overrides: settings by field name, beyond those of the environment.
        events: end after so many; None runs until interrupted.
        rate_hz: of arrivals, in events/s.
        seed: of images and gaps; None draws one.
        images: folder to take images from instead of simulating them.
        training: wait for the training set's assets too, and count them in what is returned.
        faults: of the DAQ, by the options of `simulate daq`; None is no fault.

    Returns:
        0 if all that was waited for was materialized, else 1.
    """
    from cygno_assets.daq.simulator.truth import TruthTable
    from cygno_assets.services.simulated_training_set import SimulatedTrainingSet

    for field in Settings.model_fields:
        if field.startswith("daq_nats_"):  # of a real DAQ, whose login is none of the simulated one
            os.environ.pop(environment_name(field), None)
    home = load_settings(overrides).home
    seed = secrets.randbelow(2**31) if seed is None else seed
    with running_daq_servers(home) as daq:
        offered = SimulatedTrainingSet(daq, home / "logs" / "training-set.log")
        overrides |= {
            "daq_nats_url": daq.nats_url,
            "daq_timezone": "UTC",
            "download_hosts": daq.bucket.endpoint,
            "download_ca_file": daq.bucket.ca_file,
            **offered.settings,
        }
        with offered, running_stack(overrides, _say) as stack:
            stack.services.extend(daq.services)
            truth = daq.folder / "truth.sqlite"
            simulator = Service(
                "DAQ",
                [
                    *(sys.executable, "-m", "cygno_assets.cli", "simulate", "daq"),
                    *("--nats", daq.nats_url, "--timezone", "UTC"),
                    *("--s3-endpoint", daq.bucket.endpoint, "--bucket", daq.bucket.bucket),
                    *("--ca-file", str(daq.bucket.ca_file), "--truth", str(truth)),
                    *("--rate", str(rate_hz), "--seed", str(seed)),
                    *(() if events is None else ("--events", str(events))),
                    *(() if images is None else ("--images", str(images))),
                    *(
                        f"--{name.replace('_', '-')}={n}"
                        for name, n in faults.items()
                        if n is not None
                    ),
                ],
                home / "logs" / "daq.log",
                {
                    "AWS_ACCESS_KEY_ID": daq.bucket.access_key_id,
                    "AWS_SECRET_ACCESS_KEY": daq.bucket.secret_access_key,
                },
            )
            try:
                simulator.start()
                _say(
                    f"DAQ        simulated, {rate_hz:g} events/s, seed {seed}"
                    + ("" if events is not None else " – Ctrl-C ends")
                )
                return _follow_demo(
                    stack, simulator, TruthTable(truth), events, offered, wait_for_training=training
                )
            finally:
                simulator.stop()


def _follow_demo(
    stack: Stack,
    daq: Service,
    truth: TruthTable,
    events: int | None,
    offered: SimulatedTrainingSet,
    *,
    wait_for_training: bool,
) -> int:
    progress = Progress()
    training = TrainingProgress()
    # Not the recorders' counts, which begin anew when one of them is started again.
    inbox = Inbox(stack.settings.resolve_inbox_url)
    recorded_before = inbox.state().events
    changed, before = time.monotonic(), ""
    with _instance() as instance, LiveLine() as line:
        stack.supervisor.say = line.say
        while True:
            stack.keep_alive()
            daq.check_alive(may_end=events is not None)
            offered.offer_when_written()
            rows = truth.rows()
            new = {_event_id(row.filename) for row in rows[progress.announced :]}
            progress.announced = len(rows)
            with suppress(InboxUnavailableError):  # it is started again
                progress.recorded = inbox.state().events - recorded_before
            with _database_may_be_away() as database:
                progress.update(instance, new)
                training.update(instance)
            now = f"{progress.line()}  {training.line()}{database.trouble}"
            line.show(now)
            if events is not None and len(rows) >= events and not progress.pending:
                if not wait_for_training or training.complete:
                    break
                if training.failed:
                    break
            if now != before:
                changed, before = time.monotonic(), now
            elif events is not None and time.monotonic() - changed > _STUCK_AFTER_S:
                _say(f"nothing has moved for {_STUCK_AFTER_S:g} s: giving up")
                break
            pause(_LOOK_EVERY_S)
    _say(progress.summary())
    if wait_for_training:
        _say(training.summary())
    good = not (progress.pending or progress.failed)
    return 0 if good and (training.complete or not wait_for_training) else 1


def _follow_up(stack: Stack) -> None:
    progress = Progress()
    inbox = Inbox(stack.settings.resolve_inbox_url)
    read_to = inbox.state().last_sequence
    with _instance() as instance, LiveLine() as line:
        stack.supervisor.say = line.say
        while True:
            stack.keep_alive()
            messages: list[StoredMessage] = []
            with suppress(InboxUnavailableError):  # it is started again
                _, messages = inbox.read_after(read_to, limit=_READ_AT_ONCE)
            if messages:
                read_to = messages[-1].sequence
            events = [m.event_id for m in messages if m.event_id is not None]
            progress.recorded += len(events)
            with _database_may_be_away() as database:
                progress.update(instance, events)
            counts = _recorder_counts(stack)
            if counts:
                progress.announced = received_together(counts)
            trouble = (
                "  NO RECORDER"
                if not counts
                else ""
                if any(recorder.daq_connected for recorder in counts)
                else "  DAQ NOT CONNECTED"
            )
            line.show(progress.line() + trouble + database.trouble)
            pause(_LOOK_EVERY_S)


def _recorder_counts(stack: Stack) -> list[RecorderCounts]:
    """None of any while the inbox or all recorders are away: they are started again."""
    try:
        return stack.recorder_counts()
    except InboxUnavailableError:
        return []


@dataclass
class _Database:
    """Dagster's, as the live line tells of it."""

    trouble: str = ""


@contextmanager
def _database_may_be_away() -> Iterator[_Database]:
    """Whoever follows the system also keeps it alive: it must not end with the database."""
    database = _Database()
    try:
        yield database
    except Exception as error:  # noqa: BLE001 – of SQLAlchemy, its drivers or Dagster
        database.trouble = f"  NO DATABASE ({type(error).__name__})"


def _instance() -> DagsterInstance:
    from dagster import DagsterInstance

    return DagsterInstance.get()


def _event_id(filename: str) -> str:
    return filename.rpartition(".")[0]


def _say(line: str) -> None:
    print(line, flush=True)
