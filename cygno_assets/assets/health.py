"""The asset `pipeline_health`: how well the live pipeline is, hour by hour.

Here belong its history and what the web UI shows of it; what is measured, and how, is
records/health.py, which `cygno-assets status` reads too.

It has no partitions: backlog, servers and room on the disk can only be measured now, so an hour
that was missed cannot be made later, and a partition that cannot be made is none. So the web UI
plots each number over the materializations, and the table keeps a row for each hour.
"""

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    asset,
)

from cygno_assets.assets.metadata import figure, stored_at, table
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import ANNOUNCEMENTS, PIPELINE_HEALTH, QUALITY_GROUP
from cygno_assets.records.health import NUMBERS, STAGES, measure
from cygno_assets.storage.io_managers import TableIOManager
from cygno_assets.storage.tables import Column, table_of

if TYPE_CHECKING:
    import pandas as pd
    from dagster import RawMetadataValue

    from cygno_assets.settings import Settings

_TIME = "datetime64[us, UTC]"
COLUMNS = (
    Column("hour", _TIME, "begin of the hour in which it was measured"),
    Column("measured", _TIME, "when it was measured, for the last time in that hour"),
    *(Column(name, "float64", meaning) for name, meaning in NUMBERS.items()),
)
_KEPT_HOURS = 366 * 24
_SHOWN_HOURS = 24
_PARTS = ("data", "training", "dagster", "inbox", "logs")


def build_pipeline_health(settings: "Settings") -> AssetsDefinition:
    """The asset, for these settings."""

    @asset(
        key=PIPELINE_HEALTH,
        # Of the stream as a whole: downstream of the images, each event would make it stale.
        deps=[ANNOUNCEMENTS],
        group_name=QUALITY_GROUP,
        owners=list(settings.owners),
        kinds={"pandas", "matplotlib", "s3" if settings.data_url.startswith("s3://") else "file"},
        tags={"domain": "operations"},
        code_version="1",
        io_manager_key="table_io_manager",
        metadata=table(COLUMNS),
        description="How well the live pipeline is, measured every hour: events per minute, "
        "latency by stage (s), backlog, failures, room on the disk. One row for each hour of the "
        "last year; made again within the hour, its row is replaced. `cygno-assets status` says "
        "the same of this moment.",
    )
    def pipeline_health(
        context: AssetExecutionContext,
        inbox: ResourceParam[Inbox],
        table_io_manager: ResourceParam[TableIOManager],
    ) -> MaterializeResult[Any]:
        health = measure(context.instance, inbox, settings)
        numbers = health.numbers()
        history = with_row(
            table_io_manager.stored(PIPELINE_HEALTH),
            datetime.fromtimestamp(health.measured, UTC),
            numbers,
        )
        wrong = health.wrong(settings)
        metadata: dict[str, RawMetadataValue] = {
            # In the web UI's plots a gap says that it was not known.
            **{name: value for name, value in numbers.items() if not math.isnan(value)},
            "wrong": MetadataValue.md("\n".join(f"- {one}" for one in wrong) or "nothing"),
            "failed": MetadataValue.json(dict(health.failed)),
            "last_24_hours": figure(_last_day(history), "the last 24 hours"),
            "dagster/row_count": len(history),
            "path": stored_at(table_io_manager.path(PIPELINE_HEALTH)),
        }
        return MaterializeResult(value=history, metadata=metadata)

    return pipeline_health


def with_row(
    history: "pd.DataFrame | None", measured: datetime, numbers: dict[str, float]
) -> "pd.DataFrame":
    """The history with what was measured in place of what was measured before in the same hour.

    Args:
        history: as stored; None if there is none. Columns that it lacks are NaN in its rows.
        measured: when.
        numbers: of `Health`.
    """
    import pandas as pd

    hour = measured.replace(minute=0, second=0, microsecond=0)
    row = table_of(COLUMNS, [(hour, measured, *(numbers[name] for name in NUMBERS))])
    if history is None:
        return row
    before = history[history["hour"] != hour].reindex(columns=row.columns)
    joined = pd.concat([before.astype(row.dtypes.to_dict()), row] if len(before) else [row])
    return joined.sort_values("hour", ignore_index=True).tail(_KEPT_HOURS).reset_index(drop=True)


def _last_day(history: "pd.DataFrame") -> bytes:
    import pandas as pd

    from cygno_assets.physics.figures import Panel, over_time_figure

    newest = history["hour"].iloc[-1]
    shown = history[history["hour"] > newest - pd.Timedelta(hours=_SHOWN_HOURS)]

    def lines(names: dict[str, str], scale: float = 1.0) -> dict[str, list[float]]:
        return {label: (shown[name] * scale).tolist() for label, name in names.items()}

    latencies = [
        Panel(
            f"{p}, s",
            lines({stage.replace("_to_", " → "): f"{stage}_{p}_s" for stage in STAGES}),
            is_log=True,
        )
        for p in ("p50", "p95")
    ]
    panels = [
        Panel(
            "events/min",
            lines({"announced": "announced_per_minute", "tensors": "materialized_per_minute"}),
        ),
        *latencies,
        Panel("backlog, events", lines({"backlog": "backlog_events"})),
        Panel("disk, GB", lines({part: f"{part}_bytes" for part in _PARTS}, scale=1e-9)),
    ]
    last = shown["measured"].iloc[-1]
    hours = ((shown["measured"] - last) / pd.Timedelta(hours=1)).tolist()
    return over_time_figure(hours, panels, f"the live pipeline until {last:%Y-%m-%d %H:%M} UTC")
