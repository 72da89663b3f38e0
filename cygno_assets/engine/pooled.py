"""What Dagster's SQL storages need not ask and need not write, whatever the database.

Answers that hold are remembered, an event is stored in one transaction, and what belongs together
is deleted together. Mixins over Dagster's storages: how a connection is got is the databases' own,
`pooled_sqlite.py` and `pooled_postgres.py`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as db
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.partition_status_cache import AssetStatusCacheValue
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage
from dagster._record import copy
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from dagster import AssetKey, EventLogEntry
    from dagster._core.storage.event_log.base import AssetRecord
    from sqlalchemy.engine import Connection

_KEPT = 1000
"""Answers remembered of a kind, at the most."""
_STAMP_BYTES = 1000
"""More than this is no stamp but what Dagster's own storage has left."""
_INSERT_EVENT = SqlEventLogStorageTable.insert()


def columns_of(connection: Connection) -> dict[str, frozenset[str]]:
    """The columns of each table of a database."""
    return {
        table: frozenset(column["name"] for column in columns)
        for (_, table), columns in db.inspect(connection).get_multi_columns().items()
    }


class Pooled:
    """What the three storages have in common."""

    @abstractmethod
    def connect(self) -> AbstractContextManager[Connection]:
        """This thread's connection; within a transaction of it, a part of that."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Connection]:
        """A transaction on this thread's connection; within another one, a part of it."""

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
            return columns_of(connection)


class PooledRuns(Pooled, SqlRunStorage):
    """Runs, their tags, backfills, and what daemons say of themselves."""

    @cached_property
    def _snapshots(self) -> dict[str, Any]:
        return {}

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


class PooledSchedules(Pooled, SqlScheduleStorage):
    """Schedules and sensors: their states and ticks."""

    def has_instigators_table(self) -> bool:
        """As Dagster's, from memory."""
        return "instigators" in self._columns

    def has_secondary_index_table(self) -> bool:
        """As Dagster's, from memory."""
        return "secondary_indexes" in self._columns


class PooledEvents(Pooled, SqlEventLogStorage):
    """Events of all runs, assets, and dynamic partitions."""

    @cached_property
    def _partitions(self) -> dict[tuple[str, str], float]:
        return {}

    @cached_property
    def _statuses(self) -> dict[AssetKey, tuple[str, AssetStatusCacheValue]]:
        return {}

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self.connect() as connection:
            yield connection

    def store_event(self, event: EventLogEntry) -> None:
        """As Dagster's, in one transaction, by a statement that is not made anew each time."""
        kind = event.dagster_event_type if event.is_dagster_event else None
        of_asset = kind in ASSET_EVENTS and event.get_dagster_event().asset_key
        of_check = kind in ASSET_CHECK_EVENTS
        # A statement alone is a transaction by itself.
        with self.transaction() if of_asset or of_check else self.connect() as connection:
            result = connection.execute(_INSERT_EVENT, self._event_to_row(event))
            [event_id] = result.inserted_primary_key or [None]
            if of_asset:
                self._store_asset_event_tags(connection, [event], [event_id])
                self._store_asset_event(connection, event, event_id)
            if of_check:
                self.store_asset_check_event(event, event_id)

    def delete_events(self, run_id: str) -> None:
        """As Dagster's, in one transaction; and what its checks found."""
        with self.transaction() as connection:
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
        with self.transaction() as connection:
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


class PooledStorage(DagsterStorage, ConfigurableClass):
    """The three storages on one database; `storage: custom:` in dagster.yaml.

    Args:
        runs: the run storage.
        events: the event log storage.
        schedules: the schedule storage.
        inst_data: Dagster's.
    """

    def __init__(
        self,
        runs: PooledRuns,
        events: PooledEvents,
        schedules: PooledSchedules,
        inst_data: ConfigurableClassData | None,
    ) -> None:
        super().__init__()
        self._inst_data = inst_data
        self._runs = runs
        self._events = events
        self._schedules = schedules

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Dagster's."""
        return self._inst_data

    def register_instance(self, instance: Any) -> None:
        """Dagster's."""
        super().register_instance(instance)
        for storage in (self._runs, self._events, self._schedules):
            if not storage.has_instance:
                storage.register_instance(instance)

    @property
    def event_log_storage(self) -> PooledEvents:
        """Events."""
        return self._events

    @property
    def run_storage(self) -> PooledRuns:
        """Runs."""
        return self._runs

    @property
    def schedule_storage(self) -> PooledSchedules:
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
