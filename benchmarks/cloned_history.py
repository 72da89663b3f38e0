"""Past runs in Dagster's database, cloned from a real one, so that 10⁵ take minutes and not a day.

Each clone is a run of its own, with partition, tags, events and materializations, as if it had
been executed before the others. Only rows are cloned: the files stay the one event's.
"""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SECONDS_APART = 2.3
"""At 0.43 events/s, the school's mean rate."""
_BY_RUN = ("runs", "run_tags", "event_logs")
_GROWING = (*_BY_RUN, "asset_event_tags", "dynamic_partitions")
_TIMES = {
    "runs": ("create_timestamp", "update_timestamp", "start_time", "end_time"),
    "event_logs": ("timestamp",),
    "asset_event_tags": ("event_timestamp",),
    "dynamic_partitions": ("create_timestamp",),
}


def clone_history(database: Path, runs: int) -> int:
    """Clones the latest successful run of the sensor so many times; nothing may use the database.

    Args:
        database: Dagster's, in one file, with at least one live event in it.
        runs: how many more there shall be.

    Returns:
        By how many bytes the file has grown.

    Raises:
        LookupError: there is no run to clone.
    """
    before = database.stat().st_size
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        template = db.execute(
            "SELECT run_id, partition FROM runs WHERE status = 'SUCCESS' "
            "AND pipeline_name = 'live_event' ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if template is None:
            raise LookupError(f"no successful run of live_event in {database}")
        run_id, partition = template
        md5 = partition.rpartition("-")[2]
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("BEGIN")
        indexes = db.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL "
            f"AND tbl_name IN ({', '.join('?' * len(_GROWING))})",
            _GROWING,
        ).fetchall()
        statistics = db.execute("SELECT tbl, idx, stat FROM sqlite_stat1").fetchall()
        for name, _ in indexes:
            db.execute(f'DROP INDEX "{name}"')  # made again below: far faster than kept up
        db.execute("CREATE TEMP TABLE clones (n INTEGER PRIMARY KEY, run_id TEXT, md5 TEXT)")
        db.executemany(
            "INSERT INTO clones VALUES (?, ?, ?)",
            ((n, str(uuid.uuid4()), uuid.uuid4().hex) for n in range(runs)),
        )
        values = {"run_id": run_id, "md5": md5, "partition": partition, "runs": runs}
        for table in _BY_RUN:
            db.execute(
                _insert(db, table, "t.run_id = :run_id", "c.n, t.id"),
                values,
            )
        # A tag of an event points at its row: the clones' rows follow each other, run by run.
        events = [
            row[0]
            for row in db.execute(
                "SELECT id FROM event_logs WHERE run_id = ? ORDER BY id", [run_id]
            )
        ]
        last = db.execute("SELECT max(id) FROM event_logs").fetchone()[0]
        first = last + 1 - runs * len(events)
        db.execute("CREATE TEMP TABLE places (event_id INTEGER PRIMARY KEY, place INTEGER)")
        db.executemany("INSERT INTO places VALUES (?, ?)", ((e, i) for i, e in enumerate(events)))
        db.execute(
            _insert(
                db,
                "asset_event_tags",
                "t.event_id IN (SELECT event_id FROM places)",
                "c.n, t.id",
                event_id=f"{first} + c.n * {len(events)} "
                "+ (SELECT place FROM places p WHERE p.event_id = t.event_id)",
            ),
            values,
        )
        db.execute(
            _insert(db, "dynamic_partitions", "t.partition = :partition", "c.n"),
            values,
        )
        for _, sql in indexes:
            db.execute(sql)
        db.execute("DELETE FROM sqlite_stat1")  # some went with the indexes
        db.executemany("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)", statistics)
        db.execute("UPDATE asset_keys SET cached_status_data = NULL")
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database.stat().st_size - before


def _insert(db: sqlite3.Connection, table: str, which: str, order: str, **columns: str) -> str:
    """An INSERT of the template's rows, once for each clone, with its ids and its time."""
    names = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] != "id"]
    times = _TIMES.get(table, ())
    back = f"(:runs - c.n) * {SECONDS_APART}"

    def value(name: str) -> str:
        if name in columns:
            return columns[name]
        if name in times and name.endswith("_time"):
            return f"t.{name} - {back}"
        if name in times:
            return f"strftime('%Y-%m-%d %H:%M:%f000', t.{name}, '-' || ({back}) || ' seconds')"
        return (
            f"CASE WHEN typeof(t.{name}) = 'text' THEN "
            f"replace(replace(t.{name}, :run_id, c.run_id), :md5, c.md5) ELSE t.{name} END"
        )

    quoted = ", ".join(f'"{name}"' for name in names)
    return (
        f"INSERT INTO {table} ({quoted}) "
        f"SELECT {', '.join(value(name) for name in names)} "
        f"FROM clones c CROSS JOIN {table} t WHERE {which} ORDER BY {order}"
    )
