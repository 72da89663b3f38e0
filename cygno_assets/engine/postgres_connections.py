"""This process's connections to a Postgres database: how many, whose, and whether they still live.

Knows nothing of Dagster's tables. A thread has one connection at a time, from where it begins to
use it until that ends; everything within goes over the same. Outside of a transaction each
statement is one by itself, which saves the roundtrips of BEGIN and COMMIT.
"""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as db
from dagster_postgres.utils import retry_pg_connection_fn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection, Engine

_PING_AFTER_S = 5.0
"""A connection that nobody has used for so long is asked whether it lives."""
_WAIT_S = 10.0
"""That a thread waits for a connection while all are in use."""
_CLIENT = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""A server whose machine is gone is noticed in half a minute, not in two hours. libpq's names."""
_SESSION = {
    # A commit does not wait for the disk: docs/engine.md says what that can lose.
    "synchronous_commit": "off",
    # The same the other way round: what a machine that is gone has locked is free again.
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Told to the server as a session begins, which takes no roundtrip."""
_PINNED = "pinned"
_BACK = "back"
"""When a connection was given back."""
_known: dict[tuple[db.URL, int], Connections] = {}


def connections_to(url: str, limit: int) -> Connections:
    """This process's connections to a database; the same ones for whoever asks.

    Args:
        url: of the database, `postgresql://…` or with a driver, `postgresql+psycopg2://…`.
        limit: connections open at a time, at the most.

    Raises:
        ValueError: it is no URL of a Postgres database.
    """
    parsed = _parse(url)
    if parsed.drivername == "postgresql":
        # SQLAlchemy's default from 2.1 on is another driver than what dagster-postgres installs.
        parsed = parsed.set(drivername="postgresql+psycopg2")
    key = (parsed, limit)
    return _known.get(key) or _known.setdefault(key, Connections(parsed, limit))


def _parse(url: str) -> db.URL:
    """Reads it; an error has nothing of it, for what cannot be read may be the password."""
    with suppress(ValueError, db.exc.ArgumentError):
        parsed = db.make_url(url)
        if parsed.get_backend_name() == "postgresql" and "@" not in (parsed.host or ""):
            return parsed
    raise ValueError(
        "postgres_url is not postgresql://user:password@host:port/database; in user and password, "
        "special characters are written as %40 (for @)"
    )


@dataclass(frozen=True)
class _Pin:
    name: str
    connection: Connection
    lost: Callable[[], Exception]


class _OfThread(threading.local):
    connection: Connection | None = None
    """In use."""
    in_transaction = False
    pin: _Pin | None = None


class Connections:
    """Connections of one process to one database.

    Args:
        url: of the database.
        limit: connections open at a time, at the most.
    """

    def __init__(self, url: db.URL, limit: int) -> None:
        self.url = url
        self._limit = limit
        self._statement_timeout_ms: int | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets all connections, and leaves them to the process that has forked this one."""
        self._engine = self._make_engine()
        self._mine = _OfThread()

    def _make_engine(self) -> Engine:
        engine = db.create_engine(
            self.url,
            isolation_level="AUTOCOMMIT",
            pool_size=self._limit,
            max_overflow=0,
            pool_timeout=_WAIT_S,
            pool_use_lifo=True,
            pool_reset_on_return=None,  # what is begun here is ended here
        )
        db.event.listen(engine, "do_connect", self._before_connect)
        db.event.listen(engine, "checkout", self._check_alive)
        db.event.listen(engine, "checkin", _take_back)
        return engine

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """This thread's connection, given back when the outermost use of it ends.

        Raises:
            dagster_postgres.utils.DagsterPostgresException: none was to be had for some seconds.
            Exception: the one that was given to `pin`, if the pinned connection has broken.
        """
        mine = self._mine
        if mine.pin is not None:
            pin = mine.pin
            if pin.connection.invalidated:
                raise pin.lost()
            try:
                yield pin.connection
            except db.exc.SQLAlchemyError as error:
                if pin.connection.invalidated:
                    raise pin.lost() from error
                raise
        elif mine.connection is not None:
            yield mine.connection
        else:
            connection = mine.connection = self._open()
            try:
                yield connection
            finally:
                mine.connection = None
                connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction on this thread's connection; within another one, a part of it."""
        mine = self._mine
        with self.connection() as connection:
            if mine.in_transaction:
                yield connection
                return
            mine.in_transaction = True
            try:
                connection.exec_driver_sql("BEGIN")
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with suppress(db.exc.SQLAlchemyError):  # it is broken: the server rolls back
                    connection.exec_driver_sql("ROLLBACK")
                raise
            finally:
                mine.in_transaction = False

    @property
    def pinned_for(self) -> str | None:
        """What this thread's connection was pinned for, if it was, even if it has broken."""
        return None if self._mine.pin is None else self._mine.pin.name

    def pin(
        self, name: str, take: Callable[[Connection], bool], lost: Callable[[], Exception]
    ) -> bool:
        """Keeps a connection for all that this thread does from now on, until `unpin`.

        Args:
            name: what for.
            take: takes on it what is to be held, and tells whether that succeeded.
            lost: makes the error of every further use, once the connection has broken and what was
                held is gone.

        Returns:
            Whether it succeeded; if not, nothing is kept.
        """
        connection = self._open()
        # However the use of it ends, with this thread or by an error: what it holds ends with it.
        connection.info[_PINNED] = os.getpid()
        try:
            taken = take(connection)
        except BaseException:
            connection.close()
            raise
        if taken:
            self._mine.pin = _Pin(name, connection, lost)
        else:
            del connection.info[_PINNED]
            connection.close()
        return taken

    def unpin(self, free: Callable[[Connection], object]) -> None:
        """Gives the pinned connection back; nothing if there is none, or if it has broken.

        Args:
            free: ends what is held on it.
        """
        pin, self._mine.pin = self._mine.pin, None
        if pin is None:
            return
        with suppress(db.exc.SQLAlchemyError):
            if not pin.connection.invalidated:
                free(pin.connection)
                del pin.connection.info[_PINNED]
        pin.connection.close()

    def limit_statements(self, milliseconds: int) -> None:
        """Ends statements that take longer, from the next connection on."""
        if milliseconds != self._statement_timeout_ms:
            self._statement_timeout_ms = milliseconds
            self._engine.dispose()

    def _open(self) -> Connection:
        return retry_pg_connection_fn(self._engine.connect)

    def _before_connect(self, _: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> None:
        session = dict(_SESSION)
        if self._statement_timeout_ms is not None:
            session["statement_timeout"] = self._statement_timeout_ms
        ours = " ".join(f"-c {name}={value}" for name, value in session.items())
        # What the URL says comes later, and so wins.
        arguments["options"] = f"{ours} {arguments.get('options', '')}".strip()
        for name, value in _CLIENT.items():
            arguments.setdefault(name, value)

    def _check_alive(self, connection: Any, record: Any, _: Any) -> None:
        back = record.info.get(_BACK)
        if back is None:  # a new one
            return
        # The server says something unasked only if it ends the session.
        spoke = select.poll()
        spoke.register(connection.fileno(), select.POLLIN)
        if time.monotonic() - back < _PING_AFTER_S and not spoke.poll(0):
            return
        dialect = self._engine.dialect
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error:
            raise db.exc.InvalidatePoolError from None  # SQLAlchemy opens others


def _take_back(_: object, record: Any) -> None:
    record.info[_BACK] = time.monotonic()
    if record.info.pop(_PINNED, None) == os.getpid():
        record.invalidate()


def _forget_the_parents() -> None:
    for connections in _known.values():
        connections.begin_anew()


os.register_at_fork(after_in_child=_forget_the_parents)
