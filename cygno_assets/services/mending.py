"""`cygno-assets reconcile`, `replay` and `rejected`: what is missing, and trying it again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, replace
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
    from cygno_assets.records.reconciliation import Difference, Reconciliation
    from cygno_assets.settings import Settings

_SHOWN = 20
_READ_AT_ONCE = 100  # of 64 KiB each, at the most
_SHOWN_CHARACTERS = 2000
_PARTITIONS_AT_ONCE = 10_000  # SQLite takes some 36,000 in one statement


def run_reconcile(
    settings: Settings,
    say: Callable[[str], None],
    *,
    repair: bool,
    as_json: bool,
    all_of_them: bool = False,
    deep: bool = False,
) -> int:
    """Compares what is known of events, lists what does not agree, and mends it if asked.

    Args:
        settings: whose home is looked at.
        say: told of each step, in a line; it prints to `sys.stdout` of the moment.
        repair: makes again what may be mended by that.
        as_json: the comparison in one line, for programs; all else goes to stderr then.
        all_of_them: lists every difference, not the first ones only.
        deep: reads every stored image and tensor too, and compares its content.

    Returns:
        0 if everything agrees, or was mended; else 1.

    Raises:
        ServiceError: nothing has run there yet; with `repair`, no system runs there now.
        InboxUnavailableError: the inbox does not answer.
        ValueError: a table of the catalogue, or a sensor's cursor, is damaged.
    """
    with dagster_instance(settings) as instance:
        found = _reconciled(instance, settings)
        if deep:
            found = replace(found, differences=[*found.differences, *_damaged(instance, settings)])
    if as_json:
        say(json.dumps(asdict(found) | {"counts": found.counts(), "failed": found.failures()}))
    else:
        _show(found, say, None if all_of_them else _SHOWN)
    mendable = [one for one in found.differences if one.mendable]
    left = len(found.differences) - len(mendable)
    if not repair or not mendable:
        return 1 if found.differences or found.losses.recent else 0
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        if left:
            say(f"{left} failed events are left: `cygno-assets replay` tries them again")
        status = _make_again(settings, mendable, "cygno-assets reconcile", say)
    return status or int(bool(left) or found.losses.recent)


def run_replay(
    settings: Settings, say: Callable[[str], None], *, events: Sequence[str], kind: str | None
) -> int:
    """Makes failed events again, as the web UI does; also those that only the catalogue knows.

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
        ValueError: a table of the catalogue, or a sensor's cursor, is damaged.
    """
    from cygno_assets.records.reconciliation import FAILURES

    with dagster_instance(settings) as instance:
        found = _reconciled(instance, settings).differences
    failed = {one.event_id: one for one in found if one.what in FAILURES}
    if unknown := [event for event in events if event not in failed]:
        raise ServiceError(
            f"{unknown[0]!r} has not failed; `cygno-assets reconcile` lists what has"
        )
    wanted = [
        one
        for event, one in failed.items()
        if (not events or event in events) and kind in {None, one.detail}
    ]
    if not wanted:
        say("no event has failed" + ("" if kind is None else f" on {kind}"))
        return 0
    counts = Counter(one.detail for one in wanted)
    say(", ".join(f"{count} {why}" for why, count in sorted(counts.items())))
    return _make_again(settings, wanted, "cygno-assets replay", say)


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


def _printable(text: str) -> str:
    """A text of whoever sent it as it may be printed: no secret, nothing that moves a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in without_secrets(text)
    )


def _reconciled(instance: DagsterInstance, settings: Settings) -> Reconciliation:
    from cygno_assets.records.reconciliation import reconcile
    from cygno_assets.storage.locations import data_root

    return reconcile(instance, inbox.Inbox(settings.resolve_inbox_url), data_root(settings))


def _damaged(instance: DagsterInstance, settings: Settings) -> Sequence[Difference]:
    from cygno_assets.records.contents import damaged
    from cygno_assets.storage.locations import data_root

    return damaged(instance, data_root(settings))


def _make_again(
    settings: Settings,
    differences: Sequence[Difference],
    title: str,
    say: Callable[[str], None],
) -> int:
    """Makes their events again, but for those that something else makes, or made, meanwhile."""
    from cygno_assets.records.reconciliation import still_to_make

    with dagster_instance(settings) as instance:
        left = still_to_make(instance, differences)
        events = list(dict.fromkeys(one.event_id for one in left))
        _make_partitions(instance, events)
    if begun := len(differences) - len(left):
        say(f"{begun} events have been made meanwhile, or are being made")
    if not events:
        return 0
    return run_events_backfill(settings, events, title, say, wait=True)


def _make_partitions(instance: DagsterInstance, events: Sequence[str]) -> None:
    """Makes those events partitions that are none: never requested, or pruned since."""
    from cygno_assets.partitions import daq_event_partitions

    name = str(daq_event_partitions.name)
    known = set(instance.get_dynamic_partitions(name))
    missing = [event for event in events if event not in known]
    for first in range(0, len(missing), _PARTITIONS_AT_ONCE):
        instance.add_dynamic_partitions(name, missing[first : first + _PARTITIONS_AT_ONCE])


def _show(found: Reconciliation, say: Callable[[str], None], shown: int | None) -> None:
    """Says it in lines: how many of what, and then which; of them so many, or all."""
    say(
        f"{found.announced} events in the inbox, {found.waiting} messages not read yet, "
        f"{found.running} events under way, {found.materialized} with a tensor, "
        f"{found.rejected} messages rejected"
    )
    if lost := str(found.losses):
        say(f"lost: {lost}")
    if not found.differences:
        say("everything agrees")
        return
    for what, count in found.counts().items():
        say(f"{count:>8}  {what}")
    for kind, count in found.failures().items():
        say(f"{count:>8}  failed on {kind}")
    for one in found.differences[:shown]:
        say(f"{one.event_id}  {one.what}: {one.detail}")
    if shown is not None and len(found.differences) > shown:
        say(f"… and {len(found.differences) - shown} more (--all lists them)")
