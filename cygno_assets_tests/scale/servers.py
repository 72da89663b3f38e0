"""Servers that a site beyond one machine has, as processes of their own: programs of Debian.

They refuse to run as root: whoever is root starts them as the user that Debian made for them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import amqp
import kombu
import psycopg2

from cygno_assets.services.process import Service, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_READY_TIMEOUT_S = 60.0
_USER = "postgres"
_RABBIT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The one in the search path can be started by two users only."""


def as_user(user: str, argv: Sequence[str]) -> list[str]:
    """What to start so that a program runs as this user if we are root; it dies with us, too.

    A process that changes its user is no longer killed with its parent, unless that is said again.
    """
    if os.geteuid() != 0:
        return list(argv)
    return [
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--pdeathsig=KILL"),
        *argv,
    ]


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for servers of whatever user, deleted in the end."""
    with tempfile.TemporaryDirectory(prefix="cygno-scale-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def own_folder(user: str, folder: Path) -> None:
    """Makes a folder that belongs to this user if we are root."""
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(folder, user, user)


def postgres_programs() -> Path:
    """Folder of Postgres' programs; Debian keeps it out of the search path.

    Raises:
        FileNotFoundError: they are not there; says what to install.
    """
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    for newest in sorted(versions, key=lambda path: float(path.parts[4]), reverse=True):
        return newest.parent
    raise FileNotFoundError("there is no initdb: sudo apt-get install postgresql")


class PostgresServer:
    """A Postgres on 127.0.0.1 that asks for a password; what it stores outlives its stop.

    Args:
        folder: of its data and its log; see `server_folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._data = folder / "data"
        self._programs = postgres_programs()
        self.service = Service(
            "Postgres",
            as_user(
                _USER,
                [
                    *(str(self._programs / "postgres"), "-D", str(self._data)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}"),
                    *("-c", "unix_socket_directories="),
                ],
            ),
            folder / "postgres.log",
            stop_signal=signal.SIGINT,  # SIGTERM waits for who is connected to leave
        )

    def url(self, database: str = "postgres", scheme: str = "postgresql") -> str:
        """Of one of its databases, with the password."""
        return f"{scheme}://{_USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> PostgresServer:
        """Starts it, on what it has stored before, and waits until it answers.

        Raises:
            ServiceError: it does not come up.
        """
        if not (self._data / "PG_VERSION").exists():
            self._make()
        self.service.start().wait_ready(self._answers, _READY_TIMEOUT_S)
        return self

    def stop(self) -> None:
        """Ends it, and every session with it."""
        self.service.stop()

    def make_database(self) -> str:
        """Makes an empty one, and returns its name."""
        name = f"test_{secrets.token_hex(8)}"
        self.ask(f"CREATE DATABASE {name}")
        return name

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """What it answers to a statement, on a connection of its own."""
        connection = psycopg2.connect(self.url())
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _make(self) -> None:
        own_folder(_USER, self._data)
        password_file = self._data.parent / "password"
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            shutil.chown(password_file, _USER)
        subprocess.run(
            as_user(
                _USER,
                [
                    *(str(self._programs / "initdb"), "-D", str(self._data), "--no-sync"),
                    *("--auth=scram-sha-256", f"--username={_USER}"),
                    f"--pwfile={password_file}",
                ],
            ),
            check=True,
            capture_output=True,
            cwd="/",
        )
        password_file.unlink()

    def _answers(self) -> bool:
        if not self.service.listens_on(self.port):
            return False
        try:
            psycopg2.connect(self.url(), connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False  # it is starting up
        return True


class RabbitServer:
    """RabbitMQ on 127.0.0.1 with a password; what it stores outlives its stop.

    Args:
        folder: of its configuration and its data.
        log_file: where its output goes.
        certificates: folder of its cert.pem and key.pem: it speaks TLS alone.
    """

    def __init__(self, folder: Path, log_file: Path, certificates: Path | None = None) -> None:
        self._folder = folder
        self._certificates = certificates
        self._password = secrets.token_hex(16)
        self.port = free_port()
        # It would start one by itself, which would stay when it ends.
        names = free_port()
        self._names = Service(
            "broker's names",
            ["epmd", "-address", "127.0.0.1", "-port", str(names)],
            log_file.with_name("broker-names.log"),
        )
        self.service = Service(
            "broker",
            [str(_RABBIT)],
            log_file,
            {
                "RUNNING_UNDER_SYSTEMD": "1",  # without a shell between it and us
                "HOME": str(folder),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "ERL_EPMD_PORT": str(names),
                "RABBITMQ_NODENAME": f"cygno-{self.port}@localhost",
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                    "-kernel inet_dist_use_interface {127,0,0,1}"
                    " +sbwt none +sbwtdcpu none +sbwtdio none"  # idle, it leaves the CPU to others
                ),
                "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
                "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
                "RABBITMQ_MNESIA_BASE": str(folder / "data"),
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_LOG_BASE": str(folder),  # of upgrades, all the same
            },
            cwd=folder,
        )

    @property
    def url(self) -> str:
        """Its address, with the password."""
        scheme = "amqp" if self._certificates is None else "amqps"
        return f"{scheme}://cygno:{self._password}@127.0.0.1:{self.port}//"

    def start(self) -> RabbitServer:
        """Starts it, on what it had stored before, and waits until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "rabbitmq.conf").write_text(
            f"{self._listener}\ndefault_user = cygno\ndefault_pass = {self._password}\n"
        )
        self._names.start()
        self.service.start().wait_ready(self._answers, _READY_TIMEOUT_S)
        return self

    @property
    def _listener(self) -> str:
        address = f"127.0.0.1:{self.port}"
        if self._certificates is None:
            return f"listeners.tcp.1 = {address}"
        return (
            f"listeners.tcp = none\nlisteners.ssl.1 = {address}\n"
            f"listeners.ssl.2 = 127.0.0.2:{self.port}\n"  # by a name that is not its own
            f"ssl_options.certfile = {self._certificates}/cert.pem\n"
            f"ssl_options.keyfile = {self._certificates}/key.pem"
        )

    def messages_in(self, queue: str) -> int:
        """That wait in one of its queues, which need not be there yet."""
        with suppress(amqp.NotFound), kombu.Connection(self.url) as connection:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
        return 0

    def purge(self, queue: str) -> int:
        """Takes out of one of its queues what waits there, and says how many these were."""
        with kombu.Connection(self.url) as connection:
            return int(connection.default_channel.queue_purge(queue))

    def _answers(self) -> bool:
        if not self.service.listens_on(self.port):
            return False
        if self._certificates is not None:
            return True
        with suppress(OSError, amqp.AMQPError), kombu.Connection(self.url) as connection:
            return bool(connection.connect())
        return False

    def stop(self) -> None:
        """Ends it; what it stored stays."""
        self.service.stop()
        self._names.stop()
