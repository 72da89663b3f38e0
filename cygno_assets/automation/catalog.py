"""When days of the event catalogue are made, and the datasets of their tensors.

Here belongs when; what is then done is assets/catalog.py.
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, date
from typing import TYPE_CHECKING, Any

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ResourceParam,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    schedule,
    sensor,
)

from cygno_assets.automation.cursors import parsed
from cygno_assets.automation.jobs import catalog_day_job, event_tensors_job
from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import (
    CATALOG_JOB,
    CATALOG_TAG,
    EVENT_CATALOG,
    EVENT_TENSORS,
    PARTITION_TAG,
)
from cygno_assets.records.catalog import entries, read_news, recorded_place
from cygno_assets.records.history import unfinished_runs
from cygno_assets.storage.locations import data_root

if TYPE_CHECKING:
    from cygno_assets.settings import Settings

_TENSORS_CRON = "30 1 * * *"
_EVENTS_AT_ONCE = 10_000
"""Read in one look: some seconds, of the minute that a tick may take."""


@dataclass(frozen=True)
class Waiting:
    """A day with something new.

    Attributes:
        read_from: the place in Dagster's event log up to which it has nothing new.
        read_to: the place up to which it is to be read.
    """

    read_from: int
    read_to: int


@dataclass
class Cursor:
    """What the sensor remembers.

    Attributes:
        storage_id: the place in Dagster's event log up to which it was read.
        waiting: the days that have something new which is not in the catalogue yet.
    """

    storage_id: int = 0
    waiting: dict[str, Waiting] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """Reads what Dagster keeps.

        Raises:
            ValueError: it is no cursor of this sensor.
        """

        def of(value: dict[str, Any]) -> "Cursor":
            waiting = {day: Waiting(**fields) for day, fields in value["waiting"].items()}
            return cls(int(value["storage_id"]), waiting)

        return parsed(text, of) or cls()

    def dump(self) -> str:
        """As Dagster keeps it."""
        return json.dumps(asdict(self))

    def add(self, days: set[date], read_to: int) -> None:
        """Notes that these days have something new up to this place."""
        for day in sorted(days):
            before = self.waiting.get(day.isoformat())
            read_from = self.storage_id if before is None else before.read_from
            self.waiting[day.isoformat()] = Waiting(read_from, read_to)
        self.storage_id = read_to

    def forget_read(self, instance: DagsterInstance) -> None:
        """Takes off the days whose catalogue has been read so far: a run that failed has not."""
        for day, waiting in list(self.waiting.items()):
            if (recorded_place(instance, date.fromisoformat(day)) or 0) >= waiting.read_to:
                del self.waiting[day]


def build_catalog_sensor(settings: "Settings") -> SensorDefinition:
    """The sensor, for these settings."""

    @sensor(
        name="new_catalog_rows",
        job=catalog_day_job,
        minimum_interval_seconds=settings.catalog_every_s,
        default_status=DefaultSensorStatus.RUNNING,
        description="Looks, at most every "
        f"{settings.catalog_every_s} s, which days have events that were made or failed since, and "
        "requests a run of `event_catalog` for each of them.",
    )
    def new_catalog_rows(
        context: SensorEvaluationContext, inbox: ResourceParam[Inbox]
    ) -> SensorResult:
        instance, cursor = context.instance, Cursor.parse(context.cursor)
        news = read_news(instance, cursor.storage_id, limit=_EVENTS_AT_ONCE)
        new = entries(instance, inbox, data_root(settings), settings, news)
        cursor.add({entry.day for entry in new}, news.read_to)
        # In this order: a run that ends in between is found when it has been read.
        running = {
            run.tags.get(PARTITION_TAG) for run in unfinished_runs(instance) if _of_catalog(run)
        }
        cursor.forget_read(instance)
        requests = [
            RunRequest(partition_key=day, tags={CATALOG_TAG: str(waiting.read_from)})
            for day, waiting in cursor.waiting.items()
            if day not in running
        ]
        return SensorResult(
            run_requests=requests,
            skip_reason=None
            if requests
            else SkipReason(f"nothing new; {len(cursor.waiting)} days are being made"),
            cursor=cursor.dump(),
        )

    return new_catalog_rows


def build_event_tensors_schedule() -> ScheduleDefinition:
    """The schedule that makes ended days' datasets.

    It compares each day's dataset with its catalogue instead of asking for yesterday's alone. So
    a late event, a failed run and a night when nothing ran are all made good the next night, and a
    day that goes on changing while it is looked at is not made again and again, as it would be by
    an automation condition.
    """

    @schedule(
        name="days_of_tensors",
        job=event_tensors_job,
        cron_schedule=_TENSORS_CRON,
        execution_timezone="UTC",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Each night at 01:30 UTC: `event_tensors` of every day that has ended and "
        "whose `event_catalog` was made since, so of the day before, and of those that had late "
        "events.",
    )
    def days_of_tensors(context: ScheduleEvaluationContext) -> list[RunRequest] | SkipReason:
        made, kind = context.instance, DagsterEventType.ASSET_MATERIALIZATION
        catalogs = made.event_log_storage.get_latest_storage_id_by_partition(EVENT_CATALOG, kind)
        tensors = made.event_log_storage.get_latest_storage_id_by_partition(EVENT_TENSORS, kind)
        today = context.scheduled_execution_time.astimezone(UTC).date()
        days = [
            day
            for day, place in sorted(catalogs.items())
            if date.fromisoformat(day) < today and tensors.get(day, -1) < place
        ]
        if not days:
            return SkipReason("no ended day has anything new")
        return [RunRequest(partition_key=day) for day in days]

    return days_of_tensors


def _of_catalog(run: DagsterRun) -> bool:
    return run.job_name == CATALOG_JOB or EVENT_CATALOG in (run.asset_selection or ())
