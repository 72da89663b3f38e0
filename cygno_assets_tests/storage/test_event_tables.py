"""The catalogue's files: joining rows, and reading days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from upath import UPath

from cygno_assets.storage.event_tables import (
    EVENT_COLUMNS,
    Row,
    days_held,
    digest,
    events_held,
    find_event,
    merged,
    read_day,
    read_events,
)
from cygno_assets.storage.locations import write_whole
from cygno_assets.storage.tables import table_from_parquet, table_to_parquet

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2024, 11, 27, 12, tzinfo=UTC)


def row(number: int, log_id: int, status: str = "materialized", **values: Any) -> Row:
    given: Row = dict.fromkeys(column.name for column in EVENT_COLUMNS)
    given |= {"event_id": f"cygno-{number:032x}", "log_id": log_id, "status": status}
    given |= {"acquired": NOON + timedelta(seconds=number), "run_id": f"run-{log_id}"}
    if status == "materialized":
        given |= {"materialized": NOON + timedelta(hours=log_id), "mean_adu": float(log_id)}
    else:
        given |= {"failure_kind": "expired", "failure_reason": f"failed at {log_id}"}
    return given | values


def put(root: UPath, day: date, rows: list[Row]) -> None:
    write_whole(root / "event_catalog" / f"{day}.parquet", table_to_parquet(merged(None, rows)))


# Of every event several rows, each of its own place in the log, some without what was not known.
rows_ = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["materialized", "failed"]),
        st.fixed_dictionaries(
            {},
            optional={
                "acquired": st.none() | st.integers(0, 99).map(lambda s: NOON + timedelta(0, s)),
                "latency_s": st.floats(0, 1e4),
                "stream_sequence": st.integers(1, 10**12),
                "source": st.sampled_from(["https://a/x.jpg", "https://b/ü.jpg"]),
            },
        ),
    ),
    max_size=8,
).map(lambda given: [row(n, log, status, **more) for log, (n, status, more) in enumerate(given)])


_TWO_SOURCES: list[Row] = [
    row(1, 0),
    row(1, 1, "failed", source="https://b/ü.jpg"),
    row(1, 2, "failed", source="https://a/x.jpg"),
]


@settings(deadline=None, max_examples=25)
@given(rows=rows_, cut=st.integers(0, 8), again=st.integers(0, 8), backwards=st.booleans())
@example(rows=_TWO_SOURCES, cut=1, again=1, backwards=False)
@example(rows=[*_TWO_SOURCES, row(1, 3)], cut=2, again=1, backwards=True)
def test_read_in_parts_and_read_again_it_is_the_same_table(
    rows: list[Row], cut: int, again: int, backwards: bool
) -> None:
    table = merged(None, rows)
    assert set(table["event_id"]) == {one["event_id"] for one in rows}
    assert table["event_id"].is_unique
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        column.name: column.dtype for column in EVENT_COLUMNS
    }
    first, second = rows[:cut], rows[min(cut, again) :]
    if backwards:
        first, second = first[::-1], second[::-1]
    pd.testing.assert_frame_equal(merged(merged(None, first), second), table)
    pd.testing.assert_frame_equal(merged(table, second), table)
    stored = table_from_parquet(table_to_parquet(table))
    pd.testing.assert_frame_equal(merged(stored, []), table)
    assert digest(merged(stored, rows)) == digest(table)


@settings(deadline=None, max_examples=25)
@given(rows=rows_)
def test_the_newest_tensor_counts_and_failures_only_without_one(rows: list[Row]) -> None:
    table = merged(None, rows).set_index("event_id")
    for event_id, found in table.iterrows():
        own = [one for one in rows if one["event_id"] == event_id]
        made = [one for one in own if one["status"] == "materialized"]
        newest = (made or own)[-1]
        assert found["run_id"] == newest["run_id"]
        assert found["status"] == newest["status"]
        assert (found["status"] == "failed") == isinstance(found["failure_reason"], str)
        known = [one["acquired"] for one in own if one["acquired"] is not None]
        assert (found["acquired"] == min(known)) if known else found["acquired"] is pd.NaT


def test_what_the_newest_does_not_know_is_kept() -> None:
    before = merged(None, [row(1, 5, latency_s=1.2, source="https://a/x.jpg", stream_sequence=7)])
    after = merged(before, [row(1, 9, acquired=None)]).iloc[0]
    assert (after["mean_adu"], after["latency_s"], after["stream_sequence"]) == (9.0, 1.2, 7)
    assert after["source"] == "https://a/x.jpg"
    assert after["acquired"] == NOON + timedelta(seconds=1)


def test_days_are_read_and_put_together(tmp_path: Path) -> None:
    root = UPath(tmp_path)
    assert days_held(root) == []
    assert read_events(root, None, None).empty
    assert events_held(root) == set()
    assert find_event(root, "cygno-x") is None
    days = [date(2024, 11, 27) + timedelta(n) for n in range(3)]
    for number, day in reversed(list(enumerate(days))):
        put(root, day, [row(n, n) for n in (2 * number, 2 * number + 1)])
    (tmp_path / "event_catalog" / ".2024-11-27x.partial").write_bytes(b"")
    (tmp_path / "event_catalog" / "notes.parquet").write_bytes(b"")
    assert days_held(root) == days
    assert [int(e[6:], 16) for e in read_events(root, None, None)["event_id"]] == list(range(6))
    assert len(read_events(root, days[1], None)) == 4
    assert len(read_events(root, days[1], days[1])) == 2
    assert read_events(root, date(2025, 1, 1), None).empty
    assert len(events_held(root)) == 6
    assert len(events_held(root, days[0])) == 2
    assert read_day(root, date(2024, 11, 26)) is None
    only = read_day(root, days[0], ["event_id", "mean_adu"])
    assert only is not None
    assert list(only.columns) == ["event_id", "mean_adu"]


def test_an_event_is_found_with_plain_values(tmp_path: Path) -> None:
    root = UPath(tmp_path)
    put(root, date(2024, 11, 27), [row(1, 1), row(2, 2)])
    put(root, date(2024, 11, 28), [row(n, n) for n in range(10, 99)])
    found = find_event(root, f"cygno-{2:032x}")
    assert found is not None
    assert found["acquired"] == NOON + timedelta(seconds=2)
    assert type(found["acquired"]) is datetime
    assert found["stream_sequence"] is None
    assert found["mean_adu"] == 2.0
    assert find_event(root, f"cygno-{3:032x}") is None


def test_an_event_in_two_days_counts_once(tmp_path: Path) -> None:
    root = UPath(tmp_path)
    put(root, date(2024, 11, 27), [row(1, 1), row(2, 2)])
    put(root, date(2024, 11, 28), [row(1, 8, "failed"), row(2, 9), row(3, 3)])
    events = read_events(root, None, None)
    assert list(events["run_id"]) == ["run-1", "run-9", "run-3"]


def test_a_damaged_day_is_named(tmp_path: Path) -> None:
    root = UPath(tmp_path)
    put(root, date(2024, 11, 27), [row(1, 1)])
    file = tmp_path / "event_catalog" / "2024-11-27.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    for read in (
        lambda: read_events(root, None, None),
        lambda: events_held(root),
        lambda: find_event(root, "cygno-1"),
    ):
        with pytest.raises(ValueError, match=r"2024-11-27\.parquet: "):
            read()


def test_a_file_of_an_older_version_lacks_columns(tmp_path: Path) -> None:
    root = UPath(tmp_path)
    old = merged(None, [row(1, 1)]).drop(columns=["pixel_counts", "hottest_column"])
    write_whole(root / "event_catalog" / "2024-11-27.parquet", table_to_parquet(old))
    table = read_day(root, date(2024, 11, 27))
    assert len(merged(table, [row(2, 2, hottest_column=7)])) == 2


def test_wherever_they_are_kept(root: UPath) -> None:
    assert days_held(root) == []
    put(root, date(2024, 11, 27), [row(1, 1)])
    assert days_held(root) == [date(2024, 11, 27)]
    assert events_held(root) == {f"cygno-{1:032x}"}
    found = find_event(root, f"cygno-{1:032x}")
    assert found is not None
    assert found["run_id"] == "run-1"
