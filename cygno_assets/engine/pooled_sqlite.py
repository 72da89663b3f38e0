"""Dagster's SQLite storage with connections that are kept, in one database.

Dagster's own opens a new connection for each statement and makes a new database for each run.
Here runs, events, schedules and partitions share one file, and with it one write-ahead log: after
a power cut all of it wakes up at one and the same earlier moment, and nothing is known to one part
that another has forgotten.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as db
from dagster._core.storage.event_log.schema import (
    SqlEventLogStorageMetadata,
)
from dagster._core.storage.event_log.sqlite import consolidated_sqlite_event_log
from dagster._core.storage.event_log.sqlite.consolidated_sqlite_event_log import (
    ConsolidatedSqliteEventLogStorage,
)
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sql import check_alembic_revision, get_alembic_config, stamp_alembic_rev
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from watchdog.events import PatternMatchingEventHandler
from watchdog.observers import Observer

from .folder import CONFIG, folder_of
from .pooled import Pooled, PooledEvents, PooledRuns, PooledSchedules, PooledStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dagster._serdes import ConfigurableClassData
    from sqlalchemy.engine import Connection, Engine

_NAME = "dagster"
_PAGES_BACK = 64
"""Pages of 4 KiB given back to the disk with each run that is deleted: four times what it took."""
_STATISTICS = {
    "idx_events_by_run_id": "2300000 23 1",
    "idx_event_type": "2300000 100000 1",
    "idx_step_key": "2300000 500000",
    "idx_events_by_asset": "2300000 500000 100000 1",
    "idx_events_by_asset_partition": "2300000 500000 100000 2 1",
}
"""What ANALYZE finds in the event log after 10⁵ runs of two assets each: rows, then rows for one
value of the index's first column, of its first two, and so on.

Without it SQLite takes every index for equally good, and goes through all events of a type for
the three of a run. Given once, as SQLite's own documents advise, rather than counted now and then,
so that a query is done in the same way today and in a year. https://sqlite.org/lang_analyze.html
"""
_engines: dict[tuple[int, str], Engine] = {}
_engines_lock = threading.Lock()
_made: set[Path] = set()
"""Databases that this process has found whole."""


def engine_of(folder: Path) -> Engine:
    """This process's engine for the database in a folder; it keeps its connections."""
    key = (os.getpid(), str(folder))
    with _engines_lock:
        if key not in _engines:
            engine = db.create_engine(
                create_db_conn_string(str(folder), _NAME),
                pool_size=8,
                max_overflow=-1,
                connect_args={
                    "timeout": SQLITE_BUSY_TIMEOUT_SECONDS,
                    "check_same_thread": False,
                },
            )
            db.event.listen(engine, "connect", _prepare)
            _engines[key] = engine
        return _engines[key]


def _prepare(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # Before anything is in it, or it has no effect: pages that are free can be given back.
    cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
    cursor.execute("PRAGMA journal_mode=WAL")
    # A commit waits for the disk only when the log is folded into the database. What a crash of a
    # process leaves is whole; a power cut may take back the last moments, all of them alike.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def create_if_missing(folder: Path) -> None:
    """Makes the database, by one process at a time: several at once could spoil it."""
    path = folder / f"{_NAME}.db"
    if path in _made and path.exists():
        return  # asked for each tick of a sensor, and Alembic takes its time
    with (folder / f"{_NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = engine_of(folder)
        config = get_alembic_config(consolidated_sqlite_event_log.__file__)
        with engine.connect() as connection:
            if check_alembic_revision(config, connection)[0]:
                _advise(connection)
                _made.add(path)
                return
        for metadata in (
            RunStorageSqlMetadata,
            SqlEventLogStorageMetadata,
            ScheduleStorageSqlMetadata,
        ):
            metadata.create_all(engine)
        folder_name = str(folder)
        events = PooledEventLogStorage(folder_name)
        runs = PooledRunStorage(folder_name)
        schedules = PooledScheduleStorage(folder_name)
        events.reindex_events()
        events.reindex_assets()
        for storage in (runs, schedules):
            storage.migrate()
            storage.optimize()
        # Last: whoever finds it stamped finds all of it.
        with engine.connect() as connection:
            _advise(connection)
            stamp_alembic_rev(config, connection)
            connection.commit()
    _made.add(path)


def _advise(connection: Connection) -> None:
    """Tells SQLite how many rows a look-up finds, unless somebody has."""
    if connection.exec_driver_sql(
        "SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'"
    ).first():
        return
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # makes the table
    for index, rows in _STATISTICS.items():
        connection.exec_driver_sql(
            "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('event_logs', ?, ?)", (index, rows)
        )
    connection.commit()
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # and reads it; new connections do anyway


_mine = threading.local()
"""Holds this thread's connection to each folder's database."""


@contextmanager
def transaction(folder: Path) -> Iterator[Connection]:
    """A transaction on this thread's connection; within another one, a part of it.

    Dagster opens one for each statement: here what belongs together can be stored together.
    """
    connections: dict[tuple[int, str], Connection] = vars(_mine).setdefault("connections", {})
    key = (os.getpid(), str(folder))
    connection = connections.get(key)
    if connection is None:
        connection = connections[key] = engine_of(folder).connect()
    if connection.in_transaction():
        yield connection
        return
    try:
        with connection.begin():
            yield connection
    except BaseException:
        # Whatever it was, a connection that might be broken is not kept.
        connections.pop(key).close()
        raise


class _OnSqlite(Pooled):
    """What the three storages have in common."""

    _folder: Path

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See `transaction` above."""
        with transaction(self._folder) as connection:
            yield connection

    connect = transaction


class PooledRunStorage(_OnSqlite, PooledRuns, SqliteRunStorage):
    """Runs, their tags, backfills, and what daemons say of themselves."""

    def __init__(self, base_dir: str) -> None:
        from pathlib import Path

        self._folder = Path(base_dir)
        super().__init__(create_db_conn_string(base_dir, _NAME))


class PooledScheduleStorage(_OnSqlite, PooledSchedules, SqliteScheduleStorage):
    """Schedules and sensors: their states and ticks."""

    def __init__(self, base_dir: str) -> None:
        from pathlib import Path

        self._folder = Path(base_dir)
        super().__init__(create_db_conn_string(base_dir, _NAME))


class PooledEventLogStorage(_OnSqlite, PooledEvents, ConsolidatedSqliteEventLogStorage):
    """Events of all runs, assets, and dynamic partitions."""

    def __init__(self, base_dir: str) -> None:
        from pathlib import Path

        self._folder = Path(base_dir)
        super().__init__(base_dir)
        self._conn_string = create_db_conn_string(base_dir, _NAME)

    def _init_db(self) -> None:
        """The database is made by `create_if_missing`."""

    def delete_events(self, run_id: str) -> None:
        """As the other's, and the space on disk."""
        with self.transaction() as connection:
            super().delete_events(run_id)
            # Python's sqlite3 steps once through a statement without columns: one page each.
            free = connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0
            for _ in range(min(free, _PAGES_BACK)):
                connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")

    def get_db_path(self) -> str:
        """The database's file."""
        return str(self._folder / f"{_NAME}.db")

    def watch(self, run_id: str, cursor: str | None, callback: Any) -> None:
        """Calls back on each event of a run; at once, for the log's file is watched, too."""
        if not self._obs:
            observer = Observer()
            observer.start()
            observer.schedule(_Watchdog(self), str(self._folder))
            self._obs = observer  # type: ignore[assignment]  # Dagster's attribute has no type
        self._watchers[run_id][callback] = cursor
        self.on_modified()  # what has come since the cursor


class _Watchdog(PatternMatchingEventHandler):
    """Dagster's own looks at the database alone, while commits go to its write-ahead log."""

    def __init__(self, storage: PooledEventLogStorage) -> None:
        self._storage = storage
        path = storage.get_db_path()
        super().__init__(patterns=[path, f"{path}-wal"])

    def on_modified(self, event: object) -> None:  # noqa: ARG002 – watchdog's signature
        """Another commit."""
        self._storage.on_modified()


class PooledSqliteStorage(PooledStorage):
    """The three storages on one database; `storage: custom:` in dagster.yaml.

    Args:
        base_dir: folder of the database.
        inst_data: Dagster's.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        from pathlib import Path

        create_if_missing(Path(base_dir))
        super().__init__(
            PooledRunStorage(base_dir),
            PooledEventLogStorage(base_dir),
            PooledScheduleStorage(base_dir),
            inst_data,
        )

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The fields of dagster.yaml."""
        return CONFIG

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As dagster.yaml has it."""
        return cls(str(folder_of(config_value)), inst_data)
