"""What tests say on the wire, how they wait, and what they see: shared by tests of all folders."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cygno_assets.daq import inbox
from cygno_assets.daq.announcement import parse_announcement
from cygno_assets.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nats.js import JetStreamContext

REAL_IMAGES = sorted((Path(__file__).parent / "data" / "real_events").glob("*.jpg"))


def name_of(data: bytes, suffix: str = "jpg") -> str:
    return f"cygno-{hashlib.md5(data, usedforsecurity=False).hexdigest()}.{suffix}"


def message(filename: str, url: str, taken: str = "2024-11-27 14:27:36.570564") -> bytes:
    return json.dumps({"url": url, "time": taken, "filename": filename}).encode()


def fill_inbox(url: str, payloads: list[bytes], *, max_age_days: float = 7.0) -> None:
    """Puts messages into the inbox as the recorder does."""

    async def store(jetstream: JetStreamContext) -> None:
        settings = load_settings()
        await inbox.ensure_stream(
            jetstream, max_age_days=max_age_days, max_bytes=settings.inbox_max_bytes
        )
        for payload in payloads:
            event = parse_announcement(payload, timezone=UTC, names_without_md5=True)  # type: ignore[arg-type]  # any tzinfo will do
            await jetstream.publish(
                f"{inbox.EVENT_SUBJECT}.{event.event_id}",
                payload,
                headers={inbox.RECEIVED_HEADER: datetime.now(UTC).isoformat()},
            )

    with_jetstream(url, store)


def with_jetstream(url: str, work: Callable[[JetStreamContext], object]) -> None:
    """Runs a coroutine function with the JetStream of this server."""

    async def run() -> None:
        client = await inbox.connect(url)
        try:
            await work(client.jetstream())  # type: ignore[misc]  # a coroutine function
        finally:
            await client.close()

    asyncio.run(run())


def wait_until(what: str, happened: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls until it has happened; fails, naming it, if it never does."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.05)


@contextlib.contextmanager
def no_settings_from_outside() -> Iterator[None]:
    """Inside, nobody sees a setting of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith(("CYGNO_", "DAGSTER_")):
                monkeypatch.delenv(name)
        yield
