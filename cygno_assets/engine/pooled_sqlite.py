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
import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import sqlalchemy as db
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetKeyTable,
    SqlEventLogStorageMetadata,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sqlite import consolidated_sqlite_event_log
from dagster._core.storage.event_log.sqlite.consolidated_sqlite_event_log import (
    ConsolidatedSqliteEventLogStorage,
)
from dagster._core.storage.partition_status_cache import AssetStatusCacheValue
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sql import check_alembic_revision, get_alembic_config, stamp_alembic_rev
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from dagster._record import copy
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value
from watchdog.events import PatternMatchingEventHandler
from watchdog.observers import Observer

from .folder import CONFIG, folder_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dagster import AssetKey, EventLogEntry
    from dagster._core.storage.event_log.base import AssetRecord
    from sqlalchemy.engine import Connection, Engine

_NAME = "dagster"
_KEPT = 1000
"""Answers remembered of a kind, at the most."""
_PAGES_BACK = 64
"""Pages of 4 KiB given back to the disk with each run that is deleted: four times what it took."""
_STAMP_BYTES = 1000
"""More than this is no stamp but what Dagster's own storage has left."""
_INSERT_EVENT = SqlEventLogStorageTable.insert()
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


class _Pooled:
    """What the three storages have in common."""

    _folder: Path

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A transaction."""
        with transaction(self._folder) as connection:
            yield connection

    def has_built_index(self, migration_name: str) -> bool:
        """As Dagster's, asked of the database until it is true, and then no more."""
        if migration_name not in self._built:
            # Of the class beside this one.
            if not super().has_built_index(migration_name):  # type: ignore[misc]
                return False
            self._built.add(migration_name)
        return True

    @cached_property
    def _built(self) -> set[str]:
        return set()

    @cached_property
    def _columns(self) -> Mapping[str, frozenset[str]]:
        """Of each table, looked up once: only `dagster instance migrate` changes them."""
        with self.connect() as connection:
            inspector = db.inspect(connection)
            return {
                table: frozenset(column["name"] for column in inspector.get_columns(table))
                for table in inspector.get_table_names()
            }


class PooledRunStorage(_Pooled, SqliteRunStorage):
    """Runs, their tags, backfills, and what daemons say of themselves."""

    def _get_snapshot(self, snapshot_id: str) -> Any:
        """As Dagster's, from memory: an id is a digest of what it stands for."""
        if snapshot_id not in self._snapshots:
            if (found := super()._get_snapshot(snapshot_id)) is None:
                return None
            if len(self._snapshots) >= _KEPT:
                self._snapshots.clear()
            self._snapshots[snapshot_id] = found
        return self._snapshots[snapshot_id]

    def has_job_snapshot(self, job_snapshot_id: str) -> bool:
        """As Dagster's, from memory."""
        return self._get_snapshot(job_snapshot_id) is not None

    def has_run_stats_index_cols(self) -> bool:
        """As Dagster's, from memory, like the others of its kind."""
        return {"start_time", "end_time"} <= self._columns["runs"]

    def has_backfill_id_column(self) -> bool:
        """See above."""
        return "backfill_id" in self._columns["runs"]

    def has_bulk_actions_selector_cols(self) -> bool:
        """See above."""
        return "selector_id" in self._columns["bulk_actions"]

    def has_bulk_action_job_name_column(self) -> bool:
        """See above."""
        return "job_name" in self._columns["bulk_actions"]

    def has_backfill_tags_table(self) -> bool:
        """See above."""
        return "backfill_tags" in self._columns

    def __init__(self, base_dir: str) -> None:
        from pathlib import Path

        self._folder = Path(base_dir)
        self._snapshots: dict[str, Any] = {}
        super().__init__(create_db_conn_string(base_dir, _NAME))


class PooledScheduleStorage(_Pooled, SqliteScheduleStorage):
    """Schedules and sensors: their states and ticks."""

    def __init__(self, base_dir: str) -> None:
        from pathlib import Path

        self._folder = Path(base_dir)
        super().__init__(create_db_conn_string(base_dir, _NAME))

    def has_instigators_table(self) -> bool:
        """As Dagster's, from memory."""
        return "instigators" in self._columns

    def has_secondary_index_table(self) -> bool:
        """As Dagster's, from memory."""
        return "secondary_indexes" in self._columns


class PooledEventLogStorage(_Pooled, ConsolidatedSqliteEventLogStorage):
    """Events of all runs, assets, and dynamic partitions."""

    def __init__(self, base_dir: str) -> None:
        from pathlib import Path

        self._folder = Path(base_dir)
        self._partitions: dict[tuple[str, str], float] = {}
        self._statuses: dict[AssetKey, tuple[str, AssetStatusCacheValue]] = {}
        super().__init__(base_dir)
        self._conn_string = create_db_conn_string(base_dir, _NAME)

    def _init_db(self) -> None:
        """The database is made by `create_if_missing`."""

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self.connect() as connection:
            yield connection

    def store_event(self, event: EventLogEntry) -> None:
        """As Dagster's, in one transaction, by a statement that is not made anew each time."""
        kind = event.dagster_event_type if event.is_dagster_event else None
        with self.connect() as connection:
            result = connection.execute(_INSERT_EVENT, self._event_to_row(event))
            [event_id] = result.inserted_primary_key or [None]
            if kind in ASSET_EVENTS and event.get_dagster_event().asset_key:
                self._store_asset_event_tags(connection, [event], [event_id])
                self._store_asset_event(connection, event, event_id)
            if kind in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(event, event_id)

    def delete_events(self, run_id: str) -> None:
        """As Dagster's, in one transaction; and what its checks found, and the space on disk."""
        with self.connect() as connection:
            checked = connection.execute(
                db.select(SqlEventLogStorageTable.c.id).where(
                    SqlEventLogStorageTable.c.run_id == run_id,
                    SqlEventLogStorageTable.c.dagster_event_type.in_(
                        [kind.value for kind in ASSET_CHECK_EVENTS]
                    ),
                )
            ).first()
            self.delete_events_for_run(connection, run_id)
            if checked:  # asked first, for they have no index by run
                connection.execute(
                    AssetCheckExecutionsTable.delete().where(
                        AssetCheckExecutionsTable.c.run_id == run_id
                    )
                )
            # Python's sqlite3 steps once through a statement without columns: one page each.
            free = connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0
            for _ in range(min(free, _PAGES_BACK)):
                connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
        self.free_concurrency_slots_for_run(run_id)

    def has_table(self, table_name: str) -> bool:
        """As Dagster's, from memory."""
        return table_name in self._columns

    def has_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> bool:
        """As Dagster's; a yes is remembered for a second, for a run asks ten times."""
        asked, now = (partitions_def_name, partition_key), time.monotonic()
        if now < self._partitions.get(asked, 0.0):
            return True
        if not super().has_dynamic_partition(partitions_def_name, partition_key):
            return False
        if len(self._partitions) >= _KEPT:
            self._partitions.clear()
        self._partitions[asked] = now + 1.0
        return True

    def delete_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> None:
        """As Dagster's."""
        super().delete_dynamic_partition(partitions_def_name, partition_key)
        self._partitions.pop((partitions_def_name, partition_key), None)

    def update_asset_cached_status_data(
        self, asset_key: AssetKey, cache_values: AssetStatusCacheValue
    ) -> None:
        """Keeps in memory which partitions of an asset are made, as the web UI last saw them.

        Dagster's own writes all of it into the asset's row, megabytes for 10⁵ partitions, which
        then are read and written with each event of the asset. Here a stamp stands in the row:
        what wipes it, in whatever process, wipes what is remembered.
        """
        row = AssetKeyTable.c.asset_key == asset_key.to_string()
        with self.connect() as connection:
            stamp = connection.execute(
                db.select(AssetKeyTable.c.cached_status_data).where(row)
            ).scalar()
            if stamp is None or len(stamp) > _STAMP_BYTES:
                # As a value that Dagster can read, and finds out of date.
                value = AssetStatusCacheValue(latest_storage_id=0, partitions_def_id=uuid4().hex)
                stamp = serialize_value(value)
                connection.execute(
                    AssetKeyTable.update().where(row).values(cached_status_data=stamp)
                )
        self._statuses[asset_key] = (stamp, cache_values)

    def _construct_asset_record_from_row(
        self, row: Any, last_materialization_record: Any, can_read_asset_status_cache: bool
    ) -> AssetRecord:
        record = super()._construct_asset_record_from_row(
            row, last_materialization_record, can_read_asset_status_cache=False
        )
        entry = record.asset_entry
        stamp, status = self._statuses.get(entry.asset_key, (None, None))
        if not can_read_asset_status_cache or stamp != row["cached_status_data"]:
            return record
        return copy(record, asset_entry=copy(entry, cached_status=status))

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:  # noqa: ARG002 – Dagster's signature
        return column_name in self._columns["asset_keys"]

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


class PooledSqliteStorage(DagsterStorage, ConfigurableClass):
    """The three storages on one database; `storage: custom:` in dagster.yaml.

    Args:
        base_dir: folder of the database.
        inst_data: Dagster's.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        from pathlib import Path

        super().__init__()
        self._inst_data = inst_data
        create_if_missing(Path(base_dir))
        self._runs = PooledRunStorage(base_dir)
        self._events = PooledEventLogStorage(base_dir)
        self._schedules = PooledScheduleStorage(base_dir)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Dagster's."""
        return self._inst_data

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

    def register_instance(self, instance: Any) -> None:
        """Dagster's."""
        super().register_instance(instance)
        for storage in (self._runs, self._events, self._schedules):
            if not storage.has_instance:
                storage.register_instance(instance)

    @property
    def event_log_storage(self) -> PooledEventLogStorage:
        """Events."""
        return self._events

    @property
    def run_storage(self) -> PooledRunStorage:
        """Runs."""
        return self._runs

    @property
    def schedule_storage(self) -> PooledScheduleStorage:
        """Schedules and sensors."""
        return self._schedules

    @property
    def event_storage_data(self) -> None:
        """None by itself: it is part of this."""
        return

    @property
    def run_storage_data(self) -> None:
        """None by itself: it is part of this."""
        return

    @property
    def schedule_storage_data(self) -> None:
        """None by itself: it is part of this."""
        return

    def dispose(self) -> None:
        """Dagster's."""
        self._events.dispose()
        self._runs.dispose()
        self._schedules.dispose()
