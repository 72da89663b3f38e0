"""The sensor `daq_events`: one run request for each event in the inbox.

The cursor, kept by Dagster, is the truth of what was read: Dagster stores it together with the
runs it has reserved before it starts any, so a crash anywhere resumes or reads again.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    ResourceParam,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cygno_assets.automation.jobs import live_event_job
from cygno_assets.daq.inbox import Inbox, StoredMessage, StreamState
from cygno_assets.names import DAQ_EVENTS, LIVE_TAG, PREPROCESSED_TENSOR, SEQUENCE_TAG
from cygno_assets.partitions import daq_event_partitions
from cygno_assets.records.cursors import waiting_to_be_made_again
from cygno_assets.records.history import (
    about_to_be_retried,
    events_of,
    newest_runs,
    sequence_of,
    unfinished_runs,
)
from cygno_assets.records.made import newest_of

if TYPE_CHECKING:
    from cygno_assets.settings import Settings

_FIRST = {"dagster/priority": "10"}
"""Live events are dequeued before backfills, which have priority 0."""


@dataclass(frozen=True)
class Cursor:
    """How far the inbox has been read, and what was noticed on the way.

    Attributes:
        stream: creation time of the stream that `sequence` counts in; empty before the first tick.
        sequence: of the last message read.
        recreated: how often the stream turned out to be another one; read from its beginning.
        beyond_end: how often `sequence` was beyond the stream's end; read from its beginning.
        aged_out: messages that the inbox dropped for age or size before they were read.
        passed_over: events that were announced while a run of theirs was under way, or while
            `failed_events` had them, with the sequence; until it is known what became of them.
    """

    stream: str = ""
    sequence: int = 0
    recreated: int = 0
    beyond_end: int = 0
    aged_out: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """Reads what Dagster keeps; a bare number, typed into the UI, is a sequence.

        Raises:
            ValueError: the text is neither.
        """
        if not text:
            return cls()
        try:
            value = json.loads(text)
            if isinstance(value, int):
                return cls(sequence=value)
            return cls(**value)
        except (ValueError, TypeError):
            raise ValueError(
                f"the cursor {text[:80]!r} is neither a stream sequence nor a cursor of this "
                "sensor; set it to 0 to read the inbox from its beginning"
            ) from None

    def dump(self) -> str:
        """As Dagster keeps it."""
        return json.dumps(asdict(self))

    def checked(self, state: StreamState) -> tuple["Cursor", list[str]]:
        """Compares the cursor with the stream as it is now.

        Returns:
            The cursor to read on from, and a sentence for each thing that was not as expected.
        """
        cursor, notes = self, []
        if cursor.stream and cursor.stream != state.created:
            notes.append(
                f"the inbox's stream was created anew ({state.created}); reading it from its "
                "beginning"
            )
            cursor = replace(cursor, sequence=0, passed_over={}, recreated=cursor.recreated + 1)
        elif cursor.sequence > state.last_sequence:
            notes.append(
                f"the cursor ({cursor.sequence}) is beyond the stream's end "
                f"({state.last_sequence}); reading it from its beginning"
            )
            cursor = replace(cursor, sequence=0, passed_over={}, beyond_end=cursor.beyond_end + 1)
        # Before the first message of a stream's life nothing can have been missed, and a
        # stream read for the first time owes us nothing that was in it before.
        missed = state.first_sequence - cursor.sequence - 1
        if cursor.stream and missed > 0:
            notes.append(
                f"{missed} messages ({cursor.sequence + 1} to {state.first_sequence - 1}) left "
                "the inbox, for age or size, before they were read"
            )
            cursor = replace(
                cursor, sequence=state.first_sequence - 1, aged_out=cursor.aged_out + missed
            )
        return replace(cursor, stream=state.created), notes


def build_daq_events_sensor(settings: "Settings") -> SensorDefinition:
    """The sensor, for these settings."""

    @sensor(
        name=DAQ_EVENTS,
        job=live_event_job,
        minimum_interval_seconds=1,  # 0 would mean Dagster's default, 30
        default_status=DefaultSensorStatus.RUNNING,
        description="Reads the inbox and requests one run for each announced event that has no "
        "tensor yet. Its cursor is the last stream sequence read: set it back (a bare number will "
        "do, 0 for the beginning) to make again what is missing.",
    )
    def daq_events(
        context: SensorEvaluationContext, inbox: ResourceParam[Inbox]
    ) -> SensorResult | SkipReason:
        before = Cursor.parse(context.cursor)
        unfinished = sum(LIVE_TAG in run.tags for run in unfinished_runs(context.instance))
        room = settings.max_unfinished_live_runs - unfinished
        state, messages = inbox.read_after(before.sequence, limit=room)
        cursor, notes = before.checked(state)
        for note in notes:
            context.log.warning(note)
        if cursor.sequence < before.sequence:
            _, messages = inbox.read_after(cursor.sequence, limit=room)
        if room <= 0:
            unread = state.last_sequence - cursor.sequence
            return SensorResult(
                skip_reason=SkipReason(
                    f"{unfinished} live runs are unfinished; {unread} messages wait in the inbox"
                ),
                cursor=cursor.dump(),
            )
        if messages:
            cursor = replace(cursor, sequence=messages[-1].sequence)
        newest = {m.event_id: m.sequence for m in messages if m.event_id is not None}
        # The newest first, for the cursor moves on beyond them; `room` has room for them.
        announced = newest | {e: s for e, s in cursor.passed_over.items() if e not in newest}
        # In this order. What `failed_events` requests it has until its run is there; a run that
        # ends in between is found materialized.
        waiting: set[str] = set()
        running: set[str] = set()
        if announced:
            waiting = waiting_to_be_made_again(context.instance).keys() & announced.keys()
            running = _running(context.instance) & announced.keys()
        done = newest_of(context.instance, PREPROCESSED_TENSOR, announced)
        busy = (waiting | running) - done.keys()
        free = [event for event in announced if event not in busy and event not in done]
        # What was passed over may have been seen, for a run looks for more before it fails.
        runs = newest_runs(context.instance, [event for event in free if event not in newest])
        wanted = [
            event
            for event in free
            if event not in runs or sequence_of(runs[event]) < announced[event]
        ]
        requested = wanted[:room]
        left = busy | {*wanted[room:]}
        cursor = replace(cursor, passed_over={e: s for e, s in announced.items() if e in left})
        skipped = _skipped(messages, newest, done, running, waiting)
        if skipped:
            context.log.info(skipped)
        if not requested:
            return SensorResult(
                skip_reason=SkipReason(
                    "; ".join([f"read up to sequence {cursor.sequence}", *notes, skipped]).rstrip(
                        "; "
                    )
                ),
                cursor=cursor.dump(),
            )
        return SensorResult(
            run_requests=[
                RunRequest(
                    partition_key=event,
                    tags={LIVE_TAG: "true", SEQUENCE_TAG: str(announced[event]), **_FIRST},
                )
                for event in requested
            ],
            dynamic_partitions_requests=[daq_event_partitions.build_add_request(requested)],
            cursor=cursor.dump(),
        )

    return daq_events


def _running(instance: DagsterInstance) -> set[str]:
    """Events that are being made, or will be by a run that Dagster has follow one that died."""
    # In this order: what dies in between is found to be.
    return events_of(unfinished_runs(instance)) | events_of(about_to_be_retried(instance))


def _skipped(
    messages: Sequence[StoredMessage],
    newest: Mapping[str, int],
    done: Collection[str],
    running: Collection[str],
    waiting: Collection[str],
) -> str:
    """What became of the messages that no run was requested for, in words."""
    rejected = sum(message.event_id is None for message in messages)
    counts = {
        "have a tensor": len(newest.keys() & {*done}),
        "are being made": len(newest.keys() & {*running} - {*done}),
        "wait to be made again": len(newest.keys() & {*waiting} - {*done, *running}),
        "were repeated": len(messages) - rejected - len(newest),
        "could not be events": rejected,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
