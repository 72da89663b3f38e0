"""`cygno-assets reconcile`, `replay` and `rejected`: what is missing, and trying it again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from cygno_assets.daq import inbox
from cygno_assets.daq.announcement import NotAnEventError, parse_announcement
from cygno_assets.hosts import without_secrets
from cygno_assets.services.backfill import run_events_backfill
from cygno_assets.services.dagster_instance import dagster_instance
from cygno_assets.services.process import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dagster import DagsterInstance

    from cygno_assets.daq.announcement import Announcement
    from cygno_assets.daq.inbox import StoredMessage
    from cygno_assets.records.reconciliation import Reconciliation
    from cygno_assets.settings import Settings

_SHOWN = 20
_READ_AT_ONCE = 100  # of 64 KiB each, at the most
_SHOWN_CHARACTERS = 2000


def run_reconcile(
    settings: Settings, say: Callable[[str], None], *, repair: bool, as_json: bool
) -> int:
    """Compares what is known of events, lists what does not agree, and mends it if asked.

    Returns:
        0 if everything agrees, or was mended; else 1.

    Raises:
        ServiceError: nothing has run there yet; with `repair`, no system runs there now.
        InboxUnavailableError: the inbox does not answer.
    """
    with dagster_instance(settings) as instance:
        found = _reconciled(instance, settings)
        if as_json:
            say(json.dumps(asdict(found) | {"counts": found.counts(), "failed": found.failures()}))
        else:
            _show(found, say)
        mendable = [one.event_id for one in found.differences if one.mendable]
        if not repair or not mendable:
            return 1 if found.differences else 0
        _make_partitions(instance, mendable)
    failed = len(found.differences) - len(mendable)
    if failed:
        say(f"{failed} failed events are left as they are: `cygno-assets replay` tries them again")
    status = run_events_backfill(settings, mendable, "cygno-assets reconcile", say, wait=True)
    return status or int(bool(failed))


def run_replay(
    settings: Settings, say: Callable[[str], None], *, events: Sequence[str], kind: str | None
) -> int:
    """Makes failed events again, as the web UI does.

    Args:
        settings: whose home the system runs in.
        say: told of each step, in a line.
        events: only these; all that failed if there are none.
        kind: only those that failed on this.

    Returns:
        0 if all of them were materialized, or there are none; else 1.

    Raises:
        ServiceError: an event has not failed, or no system runs there.
        InboxUnavailableError: the inbox does not answer.
    """
    with dagster_instance(settings) as instance:
        failed = {
            one.event_id: one.detail
            for one in _reconciled(instance, settings).differences
            if one.what == "failed"
        }
    if unknown := [event for event in events if event not in failed]:
        raise ServiceError(
            f"{unknown[0]!r} has not failed; `cygno-assets reconcile` lists what has"
        )
    wanted = [
        event
        for event, why in failed.items()
        if (not events or event in events) and kind in {None, why}
    ]
    if not wanted:
        say("no event has failed" + ("" if kind is None else f" on {kind}"))
        return 0
    counts = Counter(failed[event] for event in wanted)
    say(", ".join(f"{count} {why}" for why, count in sorted(counts.items())))
    return run_events_backfill(settings, wanted, "cygno-assets replay", say, wait=True)


def list_rejected(settings: Settings, say: Callable[[str], None]) -> None:
    """Lists the messages that could not be events, one in a line.

    Raises:
        InboxUnavailableError: the inbox does not answer.
    """
    for message in _rejected(settings):
        when = "" if message.received is None else f"{message.received:%Y-%m-%d %H:%M:%S} UTC"
        reason = _printable(message.reason or "")
        say(f"{message.sequence:>8}  {when:23}  {message.size:>7} B  {reason}")


def show_rejected(
    settings: Settings, sequence: int, say: Callable[[str], None], *, output: Path | None = None
) -> None:
    """Shows the beginning of one such message, as no terminal takes it for anything but text.

    Args:
        settings: where the inbox is.
        sequence: of the message.
        say: told of it, line by line.
        output: file to write it into as it came, with all that is secret in it.

    Raises:
        ServiceError: there is none of this sequence, or the file cannot be written.
        InboxUnavailableError: the inbox does not answer.
    """
    message = _one_rejected(settings, sequence)
    text = _printable(message.payload.decode("utf-8", "backslashreplace"))
    say(f"sequence  {message.sequence}")
    say(f"received  {message.received}")
    say(f"reason    {_printable(message.reason or '')}")
    say(f"bytes     {message.size}, {len(message.payload)} of them kept")
    say(text[:_SHOWN_CHARACTERS])
    if len(text) > _SHOWN_CHARACTERS:
        left = len(text) - _SHOWN_CHARACTERS
        say(f"… and {left} more characters: --output writes all that is kept into a file")
    if output is not None:
        try:
            output.write_bytes(message.payload)
        except OSError as error:
            raise ServiceError(f"cannot write {output}: {error.strerror}") from None


def replay_rejected(
    settings: Settings, sequences: Sequence[int], say: Callable[[str], None]
) -> int:
    """Reads rejected messages again, by the settings of now; what is an event goes its way.

    It is not among the rejected ones any more then.

    Args:
        settings: by which they are read, and where the inbox is.
        sequences: of the messages; all of them if there are none.
        say: told of each, in a line.

    Returns:
        0 if all of them are events now; else 1.

    Raises:
        ServiceError: there is no message of this sequence.
        InboxUnavailableError: the inbox does not answer.
    """
    wanted = [_one_rejected(settings, s) for s in sequences] if sequences else _rejected(settings)
    still = 0
    reader = inbox.Inbox(settings.resolve_inbox_url)
    for message in wanted:
        try:
            event = _event_in(message, settings)
        except NotAnEventError as error:
            say(f"{message.sequence}  still rejected: {error}")
            still += 1
            continue
        if _would_be_newest(event, reader, settings):
            asyncio.run(
                inbox.store_event(
                    settings.resolve_inbox_url(), event, message.payload, message.received
                )
            )
        reader.delete(message.sequence)
        say(f"{message.sequence}  {event.event_id}")
    return 1 if still else 0


def _rejected(settings: Settings) -> Iterator[StoredMessage]:
    reader = inbox.Inbox(settings.resolve_inbox_url)
    after = 0
    while messages := reader.read_rejected(after, limit=_READ_AT_ONCE):
        yield from messages
        after = messages[-1].sequence


def _one_rejected(settings: Settings, sequence: int) -> StoredMessage:
    message = inbox.Inbox(settings.resolve_inbox_url).rejected_message(sequence)
    if message is None:
        raise ServiceError(f"the inbox has no rejected message of sequence {sequence}")
    return message


def _event_in(message: StoredMessage, settings: Settings) -> Announcement:
    if message.size > len(message.payload):
        raise NotAnEventError(f"of its {message.size} bytes only the beginning is kept")
    return parse_announcement(
        message.payload,
        timezone=ZoneInfo(settings.daq_timezone),
        names_without_md5=settings.names_without_md5,
    )


def _would_be_newest(event: Announcement, reader: inbox.Inbox, settings: Settings) -> bool:
    """Whether no announcement of the event is as new: a stale URL must not become its newest."""
    newest = reader.newest_announcement(event.event_id)
    try:
        return newest is None or _event_in(newest, settings).acquired < event.acquired
    except NotAnEventError:  # by settings that have changed since
        return True


def _printable(text: str) -> str:
    """A text of whoever sent it as it may be printed: no secret, nothing that moves a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in without_secrets(text)
    )


def _reconciled(instance: DagsterInstance, settings: Settings) -> Reconciliation:
    from cygno_assets.records.reconciliation import reconcile
    from cygno_assets.storage.locations import data_root

    return reconcile(instance, inbox.Inbox(settings.resolve_inbox_url), data_root(settings))


def _make_partitions(instance: DagsterInstance, events: Sequence[str]) -> None:
    from cygno_assets.partitions import daq_event_partitions

    name = str(daq_event_partitions.name)
    known = set(instance.get_dynamic_partitions(name))
    instance.add_dynamic_partitions(name, [event for event in events if event not in known])


def _show(found: Reconciliation, say: Callable[[str], None]) -> None:
    say(
        f"{found.announced} events in the inbox, {found.waiting} messages not read yet, "
        f"{found.running} events under way, {found.materialized} with a tensor, "
        f"{found.rejected} messages rejected"
    )
    for one in found.differences[:_SHOWN]:
        say(f"{one.event_id}  {one.what}: {one.detail}")
    if len(found.differences) > _SHOWN:
        say(f"… and {len(found.differences) - _SHOWN} more (--json lists all)")
    counts = ", ".join(f"{count} {what}" for what, count in found.counts().items() if count)
    say(counts or "everything agrees")
