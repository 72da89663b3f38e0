"""The event catalogue, and the day's tensors as one dataset: what is kept of live events.

Here belong what a day's run does and what the web UI shows of it. What is new in Dagster's event
log is records/catalog.py, how rows are kept storage/event_tables.py, and when days are made
automation/catalog.py.
"""

import hashlib
from collections import Counter
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetDep,
    AssetExecutionContext,
    AssetsDefinition,
    DataVersion,
    Failure,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    SpecificPartitionsPartitionMapping,
    asset,
)

from cygno_assets.assets.metadata import figure, records, stored_at, table
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import (
    CATALOG_TAG,
    EVENT_CATALOG,
    EVENT_TENSORS,
    LIVE_GROUP,
    PREPROCESSED_TENSOR,
)
from cygno_assets.partitions import event_days
from cygno_assets.records.catalog import READ_TO, entries, read_news, recorded_place
from cygno_assets.storage import event_tables
from cygno_assets.storage.event_tables import EVENT_COLUMNS, FAILED, MATERIALIZED
from cygno_assets.storage.io_managers import TensorIOManager, TensorTableIOManager
from cygno_assets.storage.locations import data_root
from cygno_assets.storage.tables import Column

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from dagster import RawMetadataValue

    from cygno_assets.settings import Settings
    from cygno_assets.storage.tensor_table import TensorTable

TAGS = {"domain": "daq"}
_PREVIEWED = (
    *("event_id", "status", "acquired", "latency_s", "mean_adu", "brightest_adu"),
    *("clipped_high_share", "failure_kind"),
)
_PREVIEWED_ROWS = 10
_TENSOR_COLUMNS = (
    *("event_id", "acquired", "md5", "spec_hash", "brightest_adu", "brightest_row"),
    *("brightest_column", "clipped_low_share", "clipped_high_share"),
)
_TENSOR = Column("tensor", "float32[side, side]", "what a model sees, in [0, 1]")


def build_event_catalog(settings: "Settings") -> list[AssetsDefinition]:
    """The catalogue of events and the datasets of their tensors, for these settings."""
    spec = settings.preprocess_spec
    store = "s3" if settings.data_url.startswith("s3://") else "file"
    owners = list(settings.owners)

    @asset(
        key=EVENT_CATALOG,
        # The arrow in the web UI; but a day depends on no fixed events, and among all there ever
        # were Dagster would look for them.
        deps=[
            AssetDep(PREPROCESSED_TENSOR, partition_mapping=SpecificPartitionsPartitionMapping([]))
        ],
        partitions_def=event_days,
        group_name=LIVE_GROUP,
        owners=owners,
        kinds={"parquet", store},
        tags=TAGS,
        code_version="1",
        io_manager_key="table_io_manager",
        metadata=table(EVENT_COLUMNS),
        description="All events acquired in one UTC day, one row for each: times, image statistics "
        "(ADU), clipped shares, latency (s), files, and why it failed, if it did. Each run adds "
        "what is new in Dagster's event log; no row is ever dropped. "
        "`from cygno_assets import load_events`.",
    )
    def event_catalog(
        context: AssetExecutionContext, inbox: ResourceParam[Inbox]
    ) -> MaterializeResult[Any]:
        day, root = date.fromisoformat(context.partition_key), data_root(settings)
        try:
            stored = event_tables.read_day(root, day)
        except ValueError as error:
            raise Failure(
                f"{error}; its rows may exist nowhere else: put it back from a backup, or move it "
                "away to make it anew of what Dagster still knows",
                allow_retries=False,
            ) from None
        read_from = 0 if stored is None else int(stored.attrs[READ_TO])
        # Of the file that is there; of one that was put back from a backup it would not be true.
        if read_from == (recorded_place(context.instance, day) or 0):
            read_from = max(read_from, int(context.run.tags.get(CATALOG_TAG, "0")))
        news = read_news(context.instance, read_from, day=day)
        new = [
            entry
            for entry in entries(context.instance, inbox, root, settings, news)
            if entry.day == day
        ]
        table = event_tables.merged(stored, (entry.row(context.instance) for entry in new))
        table.attrs = {READ_TO: news.read_to}
        context.log.info(
            "read Dagster's event log from %d to %d: %d events of this day, %d rows",
            *(read_from, news.read_to, len(new), len(table)),
        )
        return MaterializeResult(
            value=table,
            metadata={**_described(table, day), READ_TO: news.read_to, "new": len(new)},
            data_version=DataVersion(event_tables.digest(table)),
        )

    @asset(
        key=EVENT_TENSORS,
        deps=[EVENT_CATALOG],
        partitions_def=event_days,
        group_name=LIVE_GROUP,
        owners=owners,
        kinds={"parquet", "numpy", store},
        tags={"domain": "physics"},
        # As a live tensor's: a changed specification makes both stale.
        code_version=spec.hash,
        metadata=table(
            [*(c for c in EVENT_COLUMNS if c.name in _TENSOR_COLUMNS), _TENSOR],
            made_from={EVENT_CATALOG: EVENT_COLUMNS},
        ),
        description="All tensors of one UTC day as one Parquet file that pandas and `datasets` "
        f"open, in the format of `training_dataset`: {spec.side} × {spec.side} pixels, windowed "
        f"from {spec.window_low:g}–{spec.window_high:g} ADU to [0, 1], float32. Only those of the "
        "present specification.",
    )
    def event_tensors(
        context: AssetExecutionContext,
        tensor_io_manager: ResourceParam[TensorIOManager],
        tensor_table_io_manager: ResourceParam[TensorTableIOManager],
    ) -> MaterializeResult[None]:
        from cygno_assets.storage.locations import whole_file
        from cygno_assets.storage.tensor_table import ROWS_AT_ONCE, write_tensor_tables

        day = date.fromisoformat(context.partition_key)
        try:
            events = event_tables.read_day(data_root(settings), day, [*_TENSOR_COLUMNS, "status"])
        except ValueError as error:
            raise Failure(str(error), allow_retries=False) from None
        if events is None:
            raise Failure(
                f"event_catalog of {day} is not there; materialize it first", allow_retries=False
            )
        made = events[events["status"] == MATERIALIZED].drop(columns="status")
        of_spec = made["spec_hash"] == spec.hash
        others = Counter(made["spec_hash"][~of_spec])
        wanted = made[of_spec]
        missing: list[str] = []
        written = hashlib.sha256()
        count = 0

        def parts() -> "Iterator[TensorTable]":
            nonlocal count
            for first in range(0, max(len(wanted), 1), ROWS_AT_ONCE):
                some = wanted.iloc[first : first + ROWS_AT_ONCE]
                part, lost = _tensors(some, tensor_io_manager, spec.side)
                missing.extend(lost)
                for event, md5 in zip(part.rows["event_id"], part.rows["md5"], strict=True):
                    written.update(f"{event} {md5}\n".encode())
                count += len(part.rows)
                part.rows.attrs = {"day": day.isoformat(), "spec_hash": spec.hash}
                yield part

        path = tensor_table_io_manager.path(EVENT_TENSORS, context.partition_key)
        with whole_file(path) as file:
            write_tensor_tables(parts(), file)
        if missing:
            context.log.warning("%d tensors are gone or damaged: %s", len(missing), missing[:5])
        return MaterializeResult(
            metadata={
                "dagster/partition_row_count": count,
                "spec_hash": spec.hash,
                "window_adu": f"{spec.window_low:g}–{spec.window_high:g}",
                "of_another_spec": others.total(),
                "other_specs": ", ".join(f"{name}: {n}" for name, n in sorted(others.items()))
                or "none",
                "gone_or_damaged": len(missing),
                "path": stored_at(path),
            },
            data_version=DataVersion(f"{spec.hash}-{written.hexdigest()[:16]}"),
        )

    return [event_catalog, event_tensors]


def _described(table: "pd.DataFrame", day: date) -> "dict[str, RawMetadataValue]":
    """What the web UI shows of a day."""
    from cygno_assets.physics.figures import events_figure

    failed = table["status"] == FAILED
    acquired = table["acquired"].dropna()
    described: dict[str, RawMetadataValue] = {
        "dagster/partition_row_count": len(table),
        "materialized": int((~failed).sum()),
        "failed": int(failed.sum()),
    }
    if len(acquired):
        described["first"] = MetadataValue.timestamp(acquired.iloc[0].to_pydatetime())
        described["last"] = MetadataValue.timestamp(acquired.iloc[-1].to_pydatetime())
    midnight = datetime.combine(day, datetime.min.time(), UTC)
    hours = (table["acquired"] - midnight).dt.total_seconds() / 3600
    made_at, failed_at = hours[~failed].dropna().tolist(), hours[failed].dropna().tolist()
    plot = events_figure(made_at, failed_at, str(day))
    described["events_per_hour"] = figure(plot, "events of each hour")
    columns = [column for column in EVENT_COLUMNS if column.name in _PREVIEWED]
    newest = table[[column.name for column in columns]].tail(_PREVIEWED_ROWS)[::-1]
    described["newest"] = records(columns, newest.astype(str).to_numpy().tolist())
    return described


def _tensors(
    rows: "pd.DataFrame", stored: TensorIOManager, side: int
) -> "tuple[TensorTable, list[str]]":
    """The rows whose tensors are there, with them; and the events whose are not."""
    import numpy as np

    from cygno_assets.storage.tensor_table import TensorTable

    found = [stored.stored(PREPROCESSED_TENSOR, event) for event in rows["event_id"]]
    there = np.asarray(
        [t is not None and t.shape == (side, side) and t.dtype == np.float32 for t in found], bool
    )
    tensors = [t for t, good in zip(found, there, strict=True) if good]
    nothing = np.empty((0, side, side), np.float32)
    return (
        TensorTable(rows[there], np.stack(tensors) if tensors else nothing),
        list(rows["event_id"][~there]),
    )
