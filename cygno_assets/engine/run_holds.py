"""Which process executes a run: a lock of Postgres that ends with the session that has taken it.

Whoever dies, however, is known to be gone by its server at once, or in half a minute if its whole
machine is. And whoever has lost its hold cannot write to the run any more: its statements go over
the very connection that held it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import sqlalchemy as db

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from .postgres_connections import Connections

_TAKE = db.text("SELECT pg_try_advisory_lock(:key)")
_FREE = db.text("SELECT pg_advisory_unlock(:key)")
_LOOK = db.text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND ((classid::bigint << 32) | objid::bigint) = :key"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)


class RunLostError(RuntimeError):
    """The connection that held a run has broken: another process may execute it by now."""


def key_of(run_id: str) -> int:
    """The lock that stands for a run, a signed number of 64 bits."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], signed=True)


class RunHolds:
    """The holds of this process's threads, one of each at the most.

    Args:
        connections: to the database.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def hold(self, run_id: str) -> bool:
        """Takes a run for this thread, unless somebody else has it.

        Until `release` all statements of this thread go over the connection that holds the run. If
        it breaks, each of them raises RunLostError.

        Returns:
            Whether this thread has it, be it since before.

        Raises:
            RunLostError: it had, and has lost it.
            RuntimeError: it has another one.
        """
        if self._connections.pinned_for not in {None, run_id}:
            raise RuntimeError(f"run {self._connections.pinned_for} is held, and not {run_id} too")
        if self._connections.pinned_for == run_id:
            with self._connections.connection():  # raises if it has broken
                return True
        key = key_of(run_id)

        def take(connection: Connection) -> bool:
            return bool(connection.scalar(_TAKE, {"key": key}))

        def lost() -> RunLostError:
            return RunLostError(
                f"the connection that held run {run_id} has broken: another process may execute it "
                "by now, and nothing more is written to it from here"
            )

        return self._connections.pin(run_id, take, lost)

    def release(self, run_id: str) -> None:
        """Gives a run back; nothing if this thread does not hold it, or has lost it."""
        if self._connections.pinned_for == run_id:
            key = key_of(run_id)
            self._connections.unpin(lambda connection: connection.execute(_FREE, {"key": key}))

    def is_held(self, run_id: str) -> bool:
        """Whether any process holds a run; takes nothing."""
        with self._connections.connection() as connection:
            return bool(connection.scalar(_LOOK, {"key": key_of(run_id)}))
