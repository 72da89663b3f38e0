"""Dagster's Postgres storage with connections that are kept, bounded and shared, and run holds.

Dagster's own opens a new connection for each statement. Here a process has a few, for runs, events,
schedules and partitions alike, and asks only what `pooled.py` has left of the questions.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from dagster import Field, IntSource, StringSource
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.sql import stamp_alembic_rev
from dagster_postgres.event_log import PostgresEventLogStorage, event_log
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.utils import pg_alembic_config

from .pooled import (
    Pooled,
    PooledEvents,
    PooledRuns,
    PooledSchedules,
    PooledStorage,
    columns_of,
)
from .postgres_connections import connections_to
from .run_holds import RunHolds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dagster import DagsterInstance
    from dagster._serdes import ConfigurableClassData
    from sqlalchemy.engine import Connection

    from .postgres_connections import Connections

_MAX_CONNECTIONS = 8
_LOCK_SPACE = 0xC79
"""Of our advisory locks with two keys; run holds have one."""
_CREATING, _STORING = 1, 2
_IN_ORDER = f"""
CREATE OR REPLACE FUNCTION events_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock({_LOCK_SPACE}, {_STORING});
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER events_in_order BEFORE INSERT ON event_logs
  FOR EACH STATEMENT EXECUTE FUNCTION events_in_order();
"""
"""Lets events appear in the order of their ids.

Who reads on from the last id it has seen (sensors, the catalogue, the web UI's partitions) would
never see an event that is committed after one with a higher id: two that are stored at the same
time get their ids in one order and may be committed in the other. So the second waits for the first
before it draws its id; it is a trigger, because there it takes no roundtrip.
"""
_IS_WHOLE = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'events_in_order')"


class _OnPostgres(Pooled):
    """What the three storages have in common.

    Args:
        connections: to the database.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        # Its tables are made by `create_if_missing`, and its own engine is never used.
        super().__init__(  # type: ignore[call-arg]  # of the class beside this one
            connections.url.render_as_string(hide_password=False), should_autocreate_tables=False
        )

    @contextmanager
    def connect(self, run_id: str | None = None) -> Iterator[Connection]:  # noqa: ARG002 – Dagster's signature
        """This thread's connection; each statement is a transaction by itself."""
        with self._connections.connection() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction on this thread's connection; within another one, a part of it."""
        with self._connections.transaction() as connection:
            yield connection

    def optimize_for_webserver(
        self,
        statement_timeout: int,
        pool_recycle: int,  # noqa: ARG002 – Dagster's signature
        max_overflow: int,  # noqa: ARG002
    ) -> None:
        """Ends what takes longer than the web UI waits for; connections are kept anyway."""
        self._connections.limit_statements(statement_timeout)

    @property
    def _columns(self) -> Mapping[str, frozenset[str]]:
        return _columns_at(self._connections)


@cache
def _columns_at(connections: Connections) -> Mapping[str, frozenset[str]]:
    """Looked up once in a process, which may open the instance for each tick of a sensor."""
    with connections.connection() as connection:
        return columns_of(connection)


class PooledRunStorage(_OnPostgres, PooledRuns, PostgresRunStorage):
    """Runs, their tags, backfills, and what daemons say of themselves."""

    @property
    def holds(self) -> RunHolds:
        """Which process executes which run."""
        return RunHolds(self._connections)

    def _core_add_run(self, col_values: dict[str, Any], tags: Mapping[str, str]) -> None:
        """As Dagster's, in one transaction: without its tags nobody knows what a run is for."""
        with self.transaction():
            super()._core_add_run(col_values, tags)


class PooledScheduleStorage(_OnPostgres, PooledSchedules, PostgresScheduleStorage):
    """Schedules and sensors: their states and ticks."""


class PooledEventLogStorage(_OnPostgres, PooledEvents, PostgresEventLogStorage):
    """Events of all runs, assets, and dynamic partitions."""

    @contextmanager
    def index_transaction(self) -> Iterator[Connection]:
        """See `transaction`."""
        with self.transaction() as connection:
            yield connection


def holds_of(instance: DagsterInstance) -> RunHolds:
    """Which process executes which run of an instance.

    Raises:
        TypeError: its storage is not this module's.
    """
    storage = instance.run_storage
    if not isinstance(storage, PooledRunStorage):
        raise TypeError(
            f"{type(storage).__name__} does not know by whom a run is held: dagster.yaml must name "
            f"{PooledPostgresStorage.__name__} as storage"
        )
    return storage.holds


@cache
def create_if_missing(connections: Connections) -> None:
    """Makes the database's tables, all or none, by one process at a time."""
    with connections.connection() as connection:
        if connection.exec_driver_sql(_IS_WHOLE).scalar():
            return
    with connections.transaction() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_SPACE}, {_CREATING})")
        if connection.exec_driver_sql(_IS_WHOLE).scalar():
            return  # by another one, while this one waited
        if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar() is None:
            for metadata in (
                RunStorageSqlMetadata,
                SqlEventLogStorageMetadata,
                ScheduleStorageSqlMetadata,
            ):
                metadata.create_all(connection)
            events = PooledEventLogStorage(connections)
            events.reindex_events()
            events.reindex_assets()
            for storage in (PooledRunStorage(connections), PooledScheduleStorage(connections)):
                storage.migrate()
                storage.optimize()
            stamp_alembic_rev(pg_alembic_config(event_log.__file__), connection)
        connection.exec_driver_sql(_IN_ORDER)


class PooledPostgresStorage(PooledStorage):
    """The three storages on one database; `storage: custom:` in dagster.yaml.

    Args:
        postgres_url: of the database; `{env: …}` in dagster.yaml, for it may hold a password.
        max_connections: of a process, at the most. A thread that holds a run keeps one of them.
        inst_data: Dagster's.
    """

    def __init__(
        self,
        postgres_url: str,
        max_connections: int = _MAX_CONNECTIONS,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        connections = connections_to(postgres_url, max_connections)
        create_if_missing(connections)
        self._holds = RunHolds(connections)
        super().__init__(
            PooledRunStorage(connections),
            PooledEventLogStorage(connections),
            PooledScheduleStorage(connections),
            inst_data,
        )

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The fields of dagster.yaml."""
        return {
            "postgres_url": Field(
                StringSource,
                description="`postgresql://user:password@host:port/database`; give it as {env: …}.",
            ),
            "max_connections": Field(
                IntSource,
                is_required=False,
                default_value=_MAX_CONNECTIONS,
                description="Of one process, at the most.",
            ),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As dagster.yaml has it."""
        return cls(config_value["postgres_url"], config_value["max_connections"], inst_data)

    def hold_run(self, run_id: str) -> bool:
        """Takes a run for this thread; see `RunHolds.hold`."""
        return self._holds.hold(run_id)

    def release_run(self, run_id: str) -> None:
        """Gives it back; see `RunHolds.release`."""
        self._holds.release(run_id)

    def is_held(self, run_id: str) -> bool:
        """Whether any process holds it; see `RunHolds.is_held`."""
        return self._holds.is_held(run_id)
