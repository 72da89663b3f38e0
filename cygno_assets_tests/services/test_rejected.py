"""`cygno-assets rejected`, on a real inbox: hostile messages are shown safely, and replayed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from cygno_assets.daq import inbox
from cygno_assets.daq.inbox import MAX_REJECTED_BYTES, Inbox
from cygno_assets.services.mending import list_rejected, replay_rejected, show_rejected
from cygno_assets.services.process import ServiceError
from cygno_assets.settings import Settings, load_settings
from cygno_assets_tests.wire import fill_inbox, message, with_jetstream

if TYPE_CHECKING:
    from pathlib import Path

    from nats.js import JetStreamContext

SECRETS = ("hunter2", "anna", "c0ffee")
ESCAPES = b"\x1b]0;owned\x07\x1b[2J\r\n\xff\xe2\x80\xae"


@pytest.fixture
def settings(inbox_url: str) -> Settings:
    fill_inbox(inbox_url, [])
    return load_settings({"inbox_url": inbox_url})


def reject(settings: Settings, payload: bytes, reason: str = "no event") -> int:
    """Puts a message aside as the recorder does; returns its sequence."""

    async def store(jetstream: JetStreamContext) -> None:
        headers = {inbox.REASON_HEADER: reason, "Nats-Msg-Id": hashlib.sha256(payload).hexdigest()}
        if len(payload) > MAX_REJECTED_BYTES:
            headers[inbox.SIZE_HEADER] = str(len(payload))
        await jetstream.publish(
            inbox.REJECTED_SUBJECT, payload[:MAX_REJECTED_BYTES], headers=headers
        )

    with_jetstream(settings.resolve_inbox_url(), store)
    return inbox_of(settings).state().last_sequence


def inbox_of(settings: Settings) -> Inbox:
    return Inbox(settings.resolve_inbox_url)


def shown(settings: Settings, sequence: int, output: Path | None = None) -> str:
    lines: list[str] = []
    show_rejected(settings, sequence, lines.append, output=output)
    return "\n".join(lines)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"url": "https://anna:hunter2@minio/x.jpg?X-Amz-Signature=c0ffee", "time": 1}',
        b'{"url": "https:\\/\\/anna:hunter2\\u0040minio/x\\u003fX-Amz-Signature=c0ffee"}',
        b'{"url": "https://anna:hun?ter2hunter2@minio/x?c0ffee"}',
        b'{"url": "https://minio/x?a=\\"b&X-Amz-Signature=c0ffee"}',
        b"{'url': 'https://anna:hunter2@minio/x?a='b&X-Amz-Signature=c0ffee'}",
        b"anna:hunter2@minio/x.jpg;X-Amz-Signature=c0ffee",
        b"https://anna:hunter2%40minio/x.jpg%3Fc0ffee",
        b"x?\x1bc0ffee" + ESCAPES,
    ],
)
def test_neither_secrets_nor_escape_sequences_are_shown(settings: Settings, payload: bytes) -> None:
    reason = payload.decode("ascii", "replace").replace("\r\n", "")
    said = shown(settings, reject(settings, payload, reason.encode("ascii", "replace").decode()))
    lines: list[str] = []
    list_rejected(settings, lines.append)

    for line in [*said.splitlines(), *lines]:
        assert line.isprintable()
        assert not any(secret in line for secret in SECRETS)
    assert f"bytes     {len(payload)}, {len(payload)} of them kept" in said


def test_what_is_left_out_is_said_and_can_be_had_in_a_file(
    settings: Settings, tmp_path: Path
) -> None:
    payload = b"\x1b" * 70_000
    sequence = reject(settings, payload)

    said = shown(settings, sequence, tmp_path / "message")

    assert len(said) < 2500
    assert f"bytes     70000, {MAX_REJECTED_BYTES} of them kept" in said
    assert f"… and {4 * MAX_REJECTED_BYTES - 2000} more characters" in said
    assert (tmp_path / "message").read_bytes() == payload[:MAX_REJECTED_BYTES]
    with pytest.raises(ServiceError, match=r"cannot write .*/none/x: No such file"):
        shown(settings, sequence, tmp_path / "none" / "x")


def test_few_are_found_among_many_events(settings: Settings, inbox_url: str) -> None:
    fill_inbox(inbox_url, [message(f"run-{n}.jpg", "https://minio/x") for n in range(300)])
    rejected = [reject(settings, b"no event %d" % number) for number in range(150)]
    fill_inbox(inbox_url, [message("run-300.jpg", "https://minio/x")])
    lines: list[str] = []

    list_rejected(settings, lines.append)

    assert [int(line.split()[0]) for line in lines] == rejected
    for sequence in (1, rejected[-1] + 1, 10_000):
        with pytest.raises(ServiceError, match=f"no rejected message of sequence {sequence}"):
            shown(settings, sequence)


def test_what_is_an_event_now_is_not_among_the_rejected_any_more(settings: Settings) -> None:
    sunset = reject(settings, message("sunset.jpg", "https://minio/sunset.jpg"))
    junk = reject(settings, b"no JSON")
    long = message("sunrise.jpg", "https://minio/x").ljust(70_000)
    cut = reject(settings, long)
    lines: list[str] = []
    chosen = settings.model_copy(update={"names_without_md5": True})

    assert replay_rejected(settings, [], lines.append) == 1
    assert inbox_of(settings).state().rejected == 3
    lines.clear()
    assert replay_rejected(chosen, [], lines.append) == 1
    assert lines[0] == f"{sunset}  sunset"
    assert lines[1].startswith(f"{junk}  still rejected: message is not JSON")
    assert lines[2] == f"{cut}  still rejected: of its 70000 bytes only the beginning is kept"
    newest = inbox_of(settings).newest_announcement("sunset")
    assert newest is not None
    assert newest.payload == message("sunset.jpg", "https://minio/sunset.jpg")
    assert inbox_of(settings).state().rejected == 2
    with pytest.raises(ServiceError, match="no rejected message"):
        replay_rejected(chosen, [sunset], lines.append)


def test_what_is_replayed_joins_the_other_announcements_of_its_event(
    settings: Settings, inbox_url: str
) -> None:
    """Be it older than they are: they may be anybody's, and a run tries all."""
    first, then, last = (
        message("sunset.jpg", f"https://minio/{n}", f"2024-11-27 14:27:0{n}") for n in (1, 2, 3)
    )
    older, newer = reject(settings, first), reject(settings, last)
    fill_inbox(inbox_url, [then])
    chosen = settings.model_copy(update={"names_without_md5": True})

    assert replay_rejected(chosen, [older, newer], lambda _: None) == 0

    announced = inbox_of(settings).announcements("sunset")
    assert [kept.payload for kept in announced] == [then, first, last]
    assert inbox_of(settings).state().rejected == 0
