"""How well the live pipeline is: what waits, how fast events pass, what failed, what room is left.

Here belongs what the inbox, the recorders, Dagster's records and the disk tell, to any process at
any time, within a fraction of a second: nothing reads the event log as a whole, and nothing is
asked that keeps a running system from its work. Which processes run is services/status.py's.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from dagster import DagsterRunStatus, RunsFilter

from cygno_assets.daq.announcement import NotAnEventError, parse_announcement
from cygno_assets.daq.inbox import InboxUnavailableError
from cygno_assets.names import (
    LIVE_JOB,
    LIVE_TAG,
    PARTITION_TAG,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
)
from cygno_assets.records.cursors import read_by_sensor, waiting_to_be_made_again
from cygno_assets.records.history import (
    events_of,
    failed_for_good,
    failure_kind,
    makes_event,
    sequence_of,
    unfinished_runs,
)
from cygno_assets.records.losses import Losses, losses
from cygno_assets.records.made import newest_made, newest_of
from cygno_assets.settings import SettingsError
from cygno_assets.storage.locations import data_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from dagster import DagsterInstance

    from cygno_assets.daq.inbox import Inbox
    from cygno_assets.daq.recorder import RecorderCounts
    from cygno_assets.settings import Settings

STAGES = (
    "acquired_to_announced",
    "announced_to_downloaded",
    "downloaded_to_materialized",
    "acquired_to_materialized",
)
"""The last is the whole of it."""

LATENCIES_OF = 500
"""Events, the newest of the last hour: latencies are of these."""
FAILURES_AT_MOST = 1000
"""Failed runs of the last day that are looked at, the newest first."""
ROOM_BYTES = 2 * 1024**3
"""Less room than this on the disk is wrong: it is what 20,000 events take, images and tensors."""

_MINUTES = 60
_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_RECORDERS = 2
_REFUSED_S = 10.0
_STATTED_AT_MOST = 500

NUMBERS: dict[str, str] = {
    "recorders": "recorders that answer",
    "daq_connected": "1 if one of them hears the DAQ, else 0",
    "announced_per_minute": "events announced, mean of the last hour",
    "materialized_per_minute": "events made by live runs, mean of the last hour",
    "backlog_events": "events announced that have neither a tensor nor failed for good",
    "backlog_waiting": "of these, in the inbox",
    "backlog_unfinished": "of these, in runs queued or under way",
    "backlog_retrying": "of these, to be made again after a pause",
    "backlog_oldest_s": "since when the oldest of them waits, in s; 0 if there is none",
    "url_expires_in_s": "until when the URL of the oldest opens its image, in s",
    **{
        f"{stage}_{p}_s": f"latency, {p} in s of the newest events of the last hour"
        for stage in STAGES
        for p in ("p50", "p95")
    },
    "failed_last_day": "events that failed for good in the last day and have no tensor",
    "rejected": "messages in the inbox that could not be events",
    "executing_runs": "runs under way, of whatever kind",
    "data_bytes": "images, tensors and tables; not known if they are on S3",
    "training_bytes": "the training set's archive",
    "dagster_bytes": "Dagster's databases",
    "inbox_bytes": "the inbox's store",
    "logs_bytes": "logs of the processes",
    "free_bytes": "left on the disk of the home",
}
"""What `Health.numbers` gives, and what each is. Names stay: plots in the web UI go by them."""


@dataclass(frozen=True)
class Rate:
    """How many events in the last minute, and in the last hour."""

    last_minute: int
    last_hour: int


@dataclass(frozen=True)
class Backlog:
    """Events that were announced and have neither a tensor nor failed for good.

    Attributes:
        waiting: messages in the inbox that the sensor has not read; None if that does not answer.
        unfinished: live runs queued or under way.
        retrying: events that are made again after a pause, because their failure may pass.
        oldest_s: since when, in s, the oldest of them has been announced; None if there is none,
            or it cannot be known.
        url_expires_in_s: until when its URL opens the image, in s; negative after that.
    """

    waiting: int | None
    unfinished: int
    retrying: int
    oldest_s: float | None = None
    url_expires_in_s: float | None = None

    @property
    def events(self) -> int:
        """All of them."""
        return (self.waiting or 0) + self.unfinished + self.retrying


@dataclass(frozen=True)
class Latency:
    """Of how many events, and how many s half and 95 % of them took at the most."""

    events: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True)
class Disk:
    """Room on the disk, in bytes.

    Attributes:
        data: of images, tensors and tables; None if they are elsewhere, such as on S3.
        training: of the training set's archive.
        dagster: of Dagster's databases.
        inbox: of the inbox's store.
        logs: of the processes' logs.
        free: left on the home's disk.
    """

    data: int | None
    training: int
    dagster: int
    inbox: int
    logs: int
    free: int


@dataclass(frozen=True)
class Health:
    """How well the live pipeline is.

    Attributes:
        measured: when, in s since 1970.
        inbox_answers: whether it does; if not, what it tells is None.
        recorders: what those that answer have counted, each since it started.
        announced: events that came into the inbox.
        materialized: live runs that made their event.
        backlog: events under way.
        latencies: by stage, of the newest events that the pipeline made by itself in the last hour.
        failed: events that failed for good in the last day and have no tensor since, by kind.
        rejected: messages kept in the inbox that could not be events.
        executing: runs under way, of whatever kind.
        disk: room on it.
        losses: what left the inbox before it was read.
    """

    measured: float
    inbox_answers: bool
    recorders: Sequence[RecorderCounts]
    announced: Rate | None
    materialized: Rate
    backlog: Backlog
    latencies: Mapping[str, Latency]
    failed: Mapping[str, int]
    rejected: int | None
    executing: int
    disk: Disk
    losses: Losses = field(default_factory=Losses)

    @property
    def daq_connected(self) -> bool:
        """Whether one of the recorders hears the DAQ."""
        return any(recorder.daq_connected for recorder in self.recorders)

    @property
    def refused_s(self) -> float:
        """For how long the inbox has stored nothing of what recorders have; 0 if it does."""
        return min((recorder.refused_s for recorder in self.recorders), default=0.0)

    def numbers(self) -> dict[str, float]:
        """All of it as numbers, NaN where one is not known; NUMBERS says what they are."""
        backlog = self.backlog
        values: dict[str, float | None] = {
            **dict.fromkeys(NUMBERS),
            "recorders": len(self.recorders),
            "daq_connected": self.daq_connected,
            "announced_per_minute": None
            if self.announced is None
            else self.announced.last_hour / _MINUTES,
            "materialized_per_minute": self.materialized.last_hour / _MINUTES,
            "backlog_events": backlog.events,
            "backlog_waiting": backlog.waiting,
            "backlog_unfinished": backlog.unfinished,
            "backlog_retrying": backlog.retrying,
            "backlog_oldest_s": backlog.oldest_s if backlog.events else 0.0,
            "url_expires_in_s": backlog.url_expires_in_s,
            "failed_last_day": sum(self.failed.values()),
            "rejected": self.rejected,
            "executing_runs": self.executing,
            **{f"{part}_bytes": size for part, size in asdict(self.disk).items()},
        }
        for stage, latency in self.latencies.items():
            values[f"{stage}_p50_s"] = latency.p50_s
            values[f"{stage}_p95_s"] = latency.p95_s
        return {name: math.nan if v is None else float(v) for name, v in values.items()}

    def wrong(self, settings: Settings) -> list[str]:
        """What somebody should look at, each in words; nothing if all is well."""
        found: list[str] = []
        if not self.inbox_answers:
            found.append("the inbox does not answer")
        elif not self.recorders:
            found.append("no recorder answers: nothing that the DAQ announces is kept")
        elif not self.daq_connected:
            found.append("the DAQ is not connected: no recorder reaches its NATS server")
        if self.refused_s > _REFUSED_S:
            found.append(f"the inbox has stored nothing for {self.refused_s:.0f} s")
        found += [
            f"{recorder.name} has dropped {recorder.dropped} messages since it was started, for "
            "its memory was full"
            for recorder in self.recorders
            if recorder.dropped
        ]
        if self.losses.recent:
            found.append(f"lost: {self.losses}")
        if self.failed:
            found.append(f"events failed for good in the last day: {sum(self.failed.values())}")
        oldest, expires = self.backlog.oldest_s, self.backlog.url_expires_in_s
        if oldest is not None and oldest > settings.backlog_old_s:
            found.append(f"the oldest of {self.backlog.events} events has waited {oldest:.0f} s")
        if expires is not None and expires < 0:
            found.append(f"the URL of the oldest event expired {-expires:.0f} s ago")
        if self.disk.free < ROOM_BYTES:
            found.append(f"the disk is nearly full: {self.disk.free / 1e9:.1f} GB free")
        return found


def measure(instance: DagsterInstance, inbox: Inbox, settings: Settings) -> Health:
    """Measures it now.

    Args:
        instance: Dagster's.
        inbox: of announcements; it may be away.
        settings: whose home and data are looked at.
    """
    now = datetime.now(UTC)
    # In this order: what moves on meanwhile is found further on the road, never nowhere.
    heard = _listen(instance, inbox, settings, now)
    unfinished = unfinished_runs(instance)
    busy = events_of(unfinished)
    live = [run for run in unfinished if LIVE_TAG in run.tags]
    retrying = {
        event: sequence
        for event, sequence in waiting_to_be_made_again(instance).items()
        if event not in busy
    }
    oldest_s, expires_s = None, None
    if heard is not None:
        begun = [*map(sequence_of, live), *retrying.values()]
        begun += [heard.read_to + 1] if heard.waiting else []
        known = [sequence for sequence in begun if sequence > 0]
        if known:
            oldest_s, expires_s = _oldest(inbox, min(known), settings, now)
    return Health(
        measured=now.timestamp(),
        inbox_answers=heard is not None,
        recorders=[] if heard is None else heard.recorders,
        announced=None if heard is None else heard.announced,
        materialized=Rate(
            _made_by_runs(instance, now - _MINUTE), _made_by_runs(instance, now - _HOUR)
        ),
        backlog=Backlog(
            waiting=None if heard is None else heard.waiting,
            unfinished=len(live),
            retrying=len(retrying),
            oldest_s=oldest_s,
            url_expires_in_s=expires_s,
        ),
        latencies=_latencies(instance, now - _HOUR),
        failed=_failed(instance, now - _DAY, busy | retrying.keys()),
        rejected=None if heard is None else heard.rejected,
        executing=sum(run.status == DagsterRunStatus.STARTED for run in unfinished),
        disk=_disk(settings),
        losses=losses(instance),
    )


@dataclass(frozen=True)
class _Heard:
    """What the inbox and those around it say."""

    read_to: int
    waiting: int
    announced: Rate
    rejected: int
    recorders: Sequence[RecorderCounts]


def _listen(
    instance: DagsterInstance, inbox: Inbox, settings: Settings, now: datetime
) -> _Heard | None:
    """None if the inbox does not answer."""
    from cygno_assets.daq.recorder import recorder_status

    try:
        state = inbox.state()
        # What aged out before it was read waits no more.
        read_to = max(read_by_sensor(instance, state.created), state.first_sequence - 1)
        return _Heard(
            read_to,
            waiting=max(0, state.last_sequence - read_to),
            announced=Rate(*inbox.announced_since(now - _MINUTE, now - _HOUR)),
            rejected=state.rejected,
            recorders=asyncio.run(
                recorder_status(settings.resolve_inbox_url(), expected=_RECORDERS)
            ),
        )
    except (InboxUnavailableError, SettingsError):
        return None


def _oldest(
    inbox: Inbox, sequence: int, settings: Settings, now: datetime
) -> tuple[float | None, float | None]:
    """Since when the event of this announcement waits, and until when its URL lives, in s.

    An event is made by its newest announcement, whose URL lives longest.
    """
    try:
        _, messages = inbox.read_after(sequence - 1, limit=1)
        if not messages or messages[0].event_id is None:
            return None, None
        received = messages[0].received
        newest = inbox.newest_announcement(messages[0].event_id) or messages[0]
        expires = parse_announcement(
            newest.payload,
            timezone=ZoneInfo(settings.daq_timezone),
            names_without_md5=settings.names_without_md5,
        ).url_expires
    except InboxUnavailableError:
        return None, None
    except NotAnEventError:  # by the settings of now
        expires = None
    return (
        None if received is None else (now - received).total_seconds(),
        None if expires is None else (expires - now).total_seconds(),
    )


def _made_by_runs(instance: DagsterInstance, since: datetime) -> int:
    """Live runs that succeeded since then; counted by the database's index."""
    return instance.get_runs_count(
        RunsFilter(job_name=LIVE_JOB, statuses=[DagsterRunStatus.SUCCESS], updated_after=since)
    )


def _latencies(instance: DagsterInstance, since: datetime) -> dict[str, Latency]:
    """By stage, as far as it is known of any event.

    Only of tensors that a live run made, for these alone have a latency in their metadata; and
    only with an image of the same run: one that was stored already says nothing of the way here.
    """
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    tensors = {
        made.run_id: made
        for made in newest_made(
            instance, PREPROCESSED_TENSOR, LATENCIES_OF, since=since.timestamp()
        )
        if "latency_s" in made.metadata
    }
    images = newest_made(instance, RAW_IMAGE, LATENCIES_OF, since=since.timestamp())
    for image in images:
        if image.run_id not in tensors:
            continue
        times = [image.metadata.get(name) for name in ("acquired", "announced", "downloaded")]
        times.append(tensors[image.run_id].timestamp)
        for stage, begin, end in zip(STAGES, times, times[1:], strict=False):
            if begin is not None and end is not None:
                seconds[stage].append(end - begin)
    seconds[STAGES[-1]] = [made.metadata["latency_s"] for made in tensors.values()]
    return {stage: _latency(values) for stage, values in seconds.items() if values}


def _latency(values: Sequence[float]) -> Latency:
    # Of a single value, both are that one.
    cuts = statistics.quantiles([*values, *values[: len(values) == 1]], n=20, method="inclusive")
    return Latency(len(values), round(cuts[9], 3), round(cuts[18], 3))


def _failed(
    instance: DagsterInstance, since: datetime, elsewhere: Collection[str]
) -> dict[str, int]:
    """Events that failed for good since then, by kind.

    Args:
        instance: Dagster's.
        since: when.
        elsewhere: events that are being made, or will be, whatever failed before.
    """
    kinds: dict[str, str] = {}
    runs = instance.get_runs(
        RunsFilter(statuses=[DagsterRunStatus.FAILURE], updated_after=since),
        limit=FAILURES_AT_MOST,
    )
    for run in runs:  # the newest first: the first has its say
        event = run.tags.get(PARTITION_TAG)
        if event is None or event in elsewhere or event in kinds or not makes_event(run):
            continue
        if failed_for_good(run):
            kinds[event] = failure_kind(run)
    made = newest_of(instance, PREPROCESSED_TENSOR, kinds)
    return dict(sorted(Counter(kind for event, kind in kinds.items() if event not in made).items()))


def _disk(settings: Settings) -> Disk:
    data = data_folder(settings)
    home = settings.home
    return Disk(
        data=None if data is None else folder_bytes(data),
        training=folder_bytes(home / "training"),
        dagster=folder_bytes(settings.dagster_state),
        inbox=folder_bytes(home / "inbox"),
        logs=folder_bytes(home / "logs"),
        free=shutil.disk_usage(home).free,
    )


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and those below it; 0 if it is not there.

    Where very many are in one folder, some of them are looked at and speak for the others: images
    are of one size, nearly, and tensors wholly.
    """
    files: list[str] = []
    size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    size += folder_bytes(folder / entry.name)
                else:
                    files.append(entry.path)
    except FileNotFoundError:
        return 0
    looked_at = files[:: -(-len(files) // _STATTED_AT_MOST) or 1]
    sizes = [found for path in looked_at if (found := _file_bytes(path)) is not None]
    return size + (round(sum(sizes) / len(sizes) * len(files)) if sizes else 0)


def _file_bytes(path: str) -> int | None:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return None  # it was written under another name, and is found the next time
