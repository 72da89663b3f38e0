"""The running system: inbox, recorders, Dagster, and for a demo the simulated DAQ.

Here belong which processes there are, their order, and the lock that keeps two systems out of
one home; what they report is progress.py's.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from cygno_assets.daq.inbox import InboxUnavailableError
from cygno_assets.daq.recorder import recorder_status
from cygno_assets.services.dagster_services import DagsterServices
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import Service, ServiceError
from cygno_assets.services.supervisor import Supervisor
from cygno_assets.settings import environment_name, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cygno_assets.daq.recorder import RecorderCounts
    from cygno_assets.daq.simulator.bucket import BucketSettings
    from cygno_assets.settings import Settings

RECORDERS = ("recorder 1", "recorder 2")
"""Two, so that nothing is lost while one of them starts again."""

INBOX = "inbox"

_READY_TIMEOUT_S = 60.0
_LOOK_AT_INBOX_EVERY_S = 5.0
_REFUSED_S = 10.0
_ROOM_BYTES = 16 * 1024**2
_LOCK = "lock"
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


@dataclass
class Stack:
    """A running system.

    Attributes:
        settings: with the inbox's address filled in.
        dagster: its processes.
        services: all processes.
        supervisor: starts those again that end by themselves.
    """

    settings: Settings
    dagster: DagsterServices
    services: list[Service]
    supervisor: Supervisor
    _looked: float = -math.inf

    def keep_alive(self) -> None:
        """Starts again what has ended by itself; to be called every second or so."""
        self.supervisor.look(self.services)
        if time.monotonic() - self._looked > _LOOK_AT_INBOX_EVERY_S:
            self._looked = time.monotonic()
            self._look_at_inbox()

    def _look_at_inbox(self) -> None:
        """Starts an inbox again that refuses to store though there is room.

        After its disk was full nats-server goes on refusing for ever, whatever is free by then.
        """
        inbox = next((service for service in self.services if service.name == INBOX), None)
        if inbox is None or inbox.status is not None:
            return
        with suppress(InboxUnavailableError):
            counts = self.recorder_counts()
            free = shutil.disk_usage(self.settings.home / "inbox").free
            refused_s = min((one.refused_s for one in counts), default=0.0)
            if refused_s > _REFUSED_S and free > _ROOM_BYTES:
                self.supervisor.say(
                    f"the inbox has stored nothing for {refused_s:.0f} s; it is started "
                    f"again ({inbox.log_file})"
                )
                inbox.restart()
                self._looked = time.monotonic() + _REFUSED_S  # it comes up first

    def recorder_counts(self) -> list[RecorderCounts]:
        """What the recorders have counted since each started; of those that answer.

        Raises:
            InboxUnavailableError: the inbox does not answer.
        """
        url = self.settings.resolve_inbox_url()
        return asyncio.run(recorder_status(url, expected=len(RECORDERS)))


@contextmanager
def running_stack(
    overrides: Mapping[str, object],
    say: Callable[[str], None],
    *,
    definitions: str = "cygno_assets.definitions",
) -> Iterator[Stack]:
    """Starts inbox, recorders and Dagster, and takes them down again.

    Args:
        overrides: settings by field name, beyond those of the environment.
        say: told of each step, in a line.
        definitions: module that holds them.

    Raises:
        SettingsError: a setting is wrong.
        ServiceError: a process does not come up, or the home is in use.
    """
    settings = load_settings(overrides)
    if not (settings.dagster_config / "dagster.yaml").is_file():
        raise ServiceError(
            f"there is no dagster.yaml in {settings.dagster_config}: run this from a checkout"
        )
    with ExitStack() as cleanup:
        cleanup.enter_context(locked_home(settings))
        services: list[Service] = []
        if settings.inbox_url is None:
            inbox = cleanup.enter_context(running_inbox(settings))
            services.append(inbox.service)
            settings = load_settings({**overrides, "inbox_url": inbox.url})
            say(f"inbox      {inbox.url}")
        # Secrets go by the environment: everybody on the machine can read arguments.
        environ = {
            environment_name(field): _as_text(value)
            for field, value in {**overrides, "inbox_url": settings.inbox_url}.items()
            if value is not None
        }
        recorders = [_recorder(name, settings, environ) for name in RECORDERS]
        for recorder in recorders:
            cleanup.callback(recorder.stop)
            recorder.start()
        for recorder in recorders:
            recorder.wait_ready(partial(_answers, settings, recorder.name), _READY_TIMEOUT_S)
        services += recorders
        say("recorders  running")
        dagster = DagsterServices(settings, environ, definitions=definitions)
        cleanup.callback(dagster.stop)
        say("Dagster    starting …")
        dagster.start()
        services += dagster.services
        say(f"web UI     {dagster.url}")
        cleanup.callback(say, "stopping …")
        yield Stack(settings, dagster, services, Supervisor(say))


@contextmanager
def locked_home(settings: Settings) -> Iterator[None]:
    """Keeps a second system out of the same home; the kernel unlocks it when we die.

    Raises:
        ServiceError: a system runs there already.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / _LOCK).open("w") as lock:
        for attempt in reversed(range(_LOCK_ATTEMPTS)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not attempt:
                    raise ServiceError(
                        f"a system runs in {settings.home} already; stop it, or set "
                        f"{environment_name('home')} to another folder"
                    ) from None
                time.sleep(_LOCK_PAUSE_S)  # it may be one that only asks, see below
        os.set_inheritable(lock.fileno(), False)
        yield


def home_is_locked(settings: Settings) -> bool:
    """Whether a system, or an inbox alone, runs in this home."""
    try:
        with (settings.home / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # unlocked as soon as it is closed
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def running_inbox(settings: Settings) -> Iterator[NatsServer]:
    """Our nats-server with JetStream, in the home; its address is left there for others."""
    folder = settings.home / "inbox"
    server = NatsServer(
        folder,
        settings.home / "logs" / "inbox.log",
        name=INBOX,
        port=settings.inbox_port,
        jetstream=True,
    )
    try:
        server.start()
        settings.inbox_url_file.write_text(server.url + "\n")
        yield server
    finally:
        settings.inbox_url_file.unlink(missing_ok=True)
        server.stop()


def _recorder(name: str, settings: Settings, environ: Mapping[str, str]) -> Service:
    return Service(
        name,
        [sys.executable, "-m", "cygno_assets.cli", "record", "--name", name],
        settings.home / "logs" / f"{name.replace(' ', '-')}.log",
        environ,
    )


def _answers(settings: Settings, recorder: str) -> bool:
    url = settings.resolve_inbox_url()
    counts = asyncio.run(recorder_status(url, expected=len(RECORDERS)))
    return recorder in {count.name for count in counts}


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class DaqServers:
    """The simulated DAQ's own servers.

    Attributes:
        nats_url: core NATS, without JetStream.
        bucket: of the S3 server behind HTTPS, with its authority's PEM file.
        folder: of all of it, and of the truth table; deleted in the end.
        services: the processes.
    """

    nats_url: str
    bucket: BucketSettings
    folder: Path
    services: Sequence[Service]


@contextmanager
def running_daq_servers(home: Path) -> Iterator[DaqServers]:
    """A core nats-server and an S3 server, as the school's DAQ has them; needs the extra `demo`.

    Args:
        home: folder of their logs, and of their data as long as they run.
    """
    from cygno_assets.services.s3_server import BucketAccess, S3Server

    home.mkdir(parents=True, exist_ok=True)
    logs = home / "logs"
    with (
        tempfile.TemporaryDirectory(prefix="simulated-daq-", dir=home) as name,
        ExitStack() as cleanup,
    ):
        folder = Path(name)
        nats = NatsServer(folder / "nats", logs / "daq-nats.log", name="DAQ's NATS server")
        cleanup.callback(nats.stop)
        nats.start()
        access = BucketAccess("cygno-daq")
        s3 = S3Server(folder / "s3", logs / "daq-s3.log", [access])
        cleanup.callback(s3.stop)
        s3.start()
        yield DaqServers(nats.url, s3.bucket(access), folder, [nats.service, s3.service])
