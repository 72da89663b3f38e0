"""The event catalogue's files: one table for each UTC day, one row for each event. No Dagster.

Here belong the columns, joining what is new to what is there, and reading the files. Where rows
come from is records/catalog.py.

Rows are never dropped: when Dagster's history is pruned, they are all that is left.
"""

from __future__ import annotations

import hashlib
import io
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from cygno_assets.storage.locations import file_names, local_path, read_if_there, read_whole
from cygno_assets.storage.tables import Column, table_from_parquet

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import pandas as pd
    from upath import UPath

FOLDER = "event_catalog"
MATERIALIZED: Literal["materialized"] = "materialized"
FAILED: Literal["failed"] = "failed"

_TIME = "datetime64[us, UTC]"
EVENT_COLUMNS = (
    Column("event_id", "str", "`cygno-<md5>`, the partition"),
    Column("status", "str", "`materialized`: its tensor was made; or `failed`, for good"),
    Column("acquired", _TIME, "when the DAQ took the image, UTC; of its first announcement"),
    Column("announced", _TIME, "when the announcement reached us, UTC"),
    Column("downloaded", _TIME, "when the image was stored, UTC"),
    Column("materialized", _TIME, "when the tensor was made, UTC"),
    Column("latency_s", "float64", "s from acquired to tensor; of live runs alone"),
    Column("stream_sequence", "Int64", "of the announcement in the inbox"),
    Column("source", "str", "URL of the image without its signature"),
    Column("size_bytes", "Int64", "bytes of the image's file"),
    Column("md5", "str", "of the image's file"),
    Column("mean_adu", "float64", "mean of the pixels, ADU"),
    Column("sd_adu", "float64", "standard deviation of the pixels, ADU"),
    Column("min_adu", "Int64", "smallest pixel, ADU"),
    Column("max_adu", "Int64", "largest pixel, ADU"),
    Column("column_sd_adu", "float64", "standard deviation of the columns' means, ADU"),
    Column("hottest_column", "Int64", "column with the highest mean"),
    Column("hottest_column_excess_adu", "float64", "its mean above the median column's, ADU"),
    Column("brightest_adu", "float64", "mean of the brightest 8 × 8 pixels, ADU"),
    Column("brightest_row", "Int64", "their first row"),
    Column("brightest_column", "Int64", "their first column"),
    Column("clipped_low_share", "float64", "of the tensor's pixels below the window, in [0, 1]"),
    Column("clipped_high_share", "float64", "of the tensor's pixels above the window, in [0, 1]"),
    Column("spec_hash", "str", "of the specification that the tensor was made by"),
    Column("run_id", "str", "of the run that made it, or failed"),
    Column("log_id", "Int64", "place in Dagster's event log of its making, or its failure"),
    Column("image_path", "str", "path or `s3://` URL of the image"),
    Column("tensor_path", "str", "path or `s3://` URL of the tensor"),
    Column("failure_kind", "str", "what it failed on, in a word (docs/operating.md)"),
    Column("failure_reason", "str", "the same in words"),
    Column("pixel_counts", "str", "`<first value>: <pixels of it> <of the next> …`, ADU"),
)
_NAMES = tuple(column.name for column in EVENT_COLUMNS)
_DTYPES = {column.name: column.dtype for column in EVENT_COLUMNS}

_OF_THE_RUN = ("status", "run_id", "log_id", "failure_kind", "failure_reason")

Row = dict[str, Any]
"""Values by column; None where there is none, of times aware datetimes."""


def merged(stored: pd.DataFrame | None, rows: Iterable[Row]) -> pd.DataFrame:
    """A day's table with what is new of its events; no row is ever dropped.

    Of each value of an event the newest known counts, so that those of an announcement that has
    left the inbox are kept. Status, run and failure are the newest row's, but not a failure's where
    there is a tensor; and an event was acquired when it was first announced, so that it stays in
    its day.

    Args:
        stored: the table so far; None if there is none.
        rows: new, in any order, also several of one event; or there already, then they change
            nothing.

    Returns:
        EVENT_COLUMNS, in order of acquisition and event.
    """
    import pandas as pd

    new: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: int(row["log_id"])):
        event_id = row["event_id"]
        new[event_id] = _joined(new[event_id], row) if event_id in new else row
    kept = [] if stored is None else [stored]
    if stored is not None:
        touched = stored["event_id"].isin(list(new))
        for row in _rows(stored[touched]):
            new[row["event_id"]] = _joined(row, new[row["event_id"]])
        kept = [stored[~touched]]
    kept.append(_conform(pd.DataFrame([*new.values()], columns=list(_NAMES), dtype=object)))
    table = pd.concat([part for part in kept if len(part)] or kept[-1:], ignore_index=True)
    table = table.sort_values(["acquired", "event_id"], ignore_index=True)
    table.attrs = {}
    return table


def digest(table: pd.DataFrame) -> str:
    """sha256, hexadecimal, of a table's values."""
    import pandas as pd

    return hashlib.sha256(
        pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes()
    ).hexdigest()


def days_held(root: UPath) -> list[date]:
    """The days that have a file, in order."""
    return sorted(filter(None, map(_day_of, file_names(root / FOLDER).values())))


def read_day(root: UPath, day: date, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
    """The events of one day, in order of acquisition; None if it has no file.

    Args:
        root: folder or bucket prefix of all data.
        day: in UTC.
        columns: only these of EVENT_COLUMNS.

    Raises:
        ValueError: the file is damaged.
    """
    data = read_if_there(_file(root, day))
    if data is None:
        return None
    try:
        table = table_from_parquet(data, columns)
    except ValueError as error:
        raise ValueError(f"{_file(root, day)}: {error}") from None
    return _conform(table, columns)


def read_events(root: UPath, since: date | None, until: date | None) -> pd.DataFrame:
    """The events of these days, in order of acquisition; without rows, if there are none.

    An event that is in two days, for it was announced anew with another time after it had been
    forgotten, counts once: with its tensor, if it has one, and in the later day.

    Args:
        root: folder or bucket prefix of all data.
        since: the first day, in UTC; None for the beginning.
        until: the last day, in UTC, itself included; None for the end.

    Raises:
        ValueError: a file is damaged.
    """
    import pandas as pd

    days = [day for day in days_held(root) if _within(day, since, until)]
    tables = [table for day in days if (table := read_day(root, day)) is not None and len(table)]
    events = pd.concat(tables or [_conform(pd.DataFrame(columns=list(_NAMES)))], ignore_index=True)
    events.attrs = {}
    if events["event_id"].is_unique:
        return events
    by_worth = events.iloc[(events["status"] == MATERIALIZED).argsort(kind="stable")]
    return by_worth.drop_duplicates("event_id", keep="last").sort_index().reset_index(drop=True)


def find_event(root: UPath, event_id: str) -> Row | None:
    """An event's row, from the newest day that has it; None if none has.

    Of the days that do not have it, only the events' names are read.

    Raises:
        ValueError: a file is damaged.
    """
    found = days_of(root, [event_id])
    if event_id not in found:
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(_opened(root, found[event_id]), filters=[("event_id", "=", event_id)])
    rows = list(_rows(_conform(table.to_pandas())))
    return rows[0] if rows else None


def days_of(root: UPath, events: Collection[str]) -> dict[str, date]:
    """The newest day that has a row of each of these events, as far as any has.

    Raises:
        ValueError: a file is damaged.
    """
    found: dict[str, date] = {}
    wanted = set(events)
    for day in reversed(days_held(root)):
        if not wanted:
            break
        held = wanted & _events(root, day, wanted)
        found |= dict.fromkeys(held, day)
        wanted -= held
    return found


def states_of(root: UPath, events: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """Status and kind of failure of these events, if they have a row, and of all that failed.

    Of an event that is in two days, the newer one's.

    Raises:
        ValueError: a file is damaged.
    """
    wanted = set(events)
    states: dict[str, tuple[str, str | None]] = {}
    for day in days_held(root):
        table = read_day(root, day, ("event_id", "status", "failure_kind"))
        if table is None:
            continue
        counts = [
            status == FAILED or event in wanted or event in states
            for event, status in zip(table["event_id"], table["status"], strict=True)
        ]
        for row in _rows(table[counts]):
            states[row["event_id"]] = row["status"], row["failure_kind"]
    return states


def events_held(root: UPath, until: date | None = None) -> set[str]:
    """All events that have a row, up to and including a day in UTC.

    Raises:
        ValueError: a file is damaged.
    """
    days = [day for day in days_held(root) if _within(day, None, until)]
    return {event for day in days for event in _events(root, day)}


def _events(root: UPath, day: date, wanted: Collection[str] | None = None) -> set[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = None if wanted is None else [("event_id", "in", list(wanted))]
    try:
        names = pq.read_table(_opened(root, day), columns=["event_id"], filters=chosen)
    except FileNotFoundError:  # taken away meanwhile
        return set()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{_file(root, day)}: damaged table: {error}") from None
    return set(names.column(0).to_pylist())


def _opened(root: UPath, day: date) -> Any:
    """What pyarrow reads from: a path of this machine, elsewhere the file's bytes."""
    path = _file(root, day)
    return local_path(path) or io.BytesIO(read_whole(path))


def _file(root: UPath, day: date) -> UPath:
    return root / FOLDER / f"{day.isoformat()}.parquet"


def _day_of(name: str) -> date | None:
    stem, _, suffix = name.partition(".")
    try:
        return date.fromisoformat(stem) if suffix == "parquet" else None
    except ValueError:
        return None


def _within(day: date, since: date | None, until: date | None) -> bool:
    return (since is None or since <= day) and (until is None or day <= until)


def _joined(one: Row, other: Row) -> Row:
    """Two rows of one event as one; the other was read later."""
    # Of the same run both, the other may know more: of what came after it.
    newer, older = (other, one) if other["log_id"] >= one["log_id"] else (one, other)
    best = older if older["status"] == MATERIALIZED != newer["status"] else newer
    known = [row["acquired"] for row in (one, other) if row["acquired"] is not None]
    return {
        # The newest known, whosever: so it does not matter which rows were joined before.
        **{name: older[name] if newer[name] is None else newer[name] for name in _NAMES},
        "acquired": min(known, default=None),
        **{name: best[name] for name in _OF_THE_RUN},
    }


def _rows(table: pd.DataFrame) -> Iterator[Row]:
    import pandas as pd

    def plain(value: Any) -> Any:
        if pd.isna(value):
            return None
        return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value

    for row in table.to_dict("records"):
        yield {str(name): plain(value) for name, value in row.items()}


def _conform(table: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The columns and dtypes of now; a file of an older version may lack some."""
    names = _NAMES if columns is None else columns
    attrs = table.attrs
    table = table.reindex(columns=list(names)).astype({name: _DTYPES[name] for name in names})
    table.attrs = attrs
    return table
