"""What recorders side by side sustain, as processes: announcements at a rate, and all at once.

With one recorder and with two; the inbox flushes each message before it acknowledges it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import psutil

from cygno_assets.daq.inbox import Inbox, InboxUnavailableError
from cygno_assets.daq.recorder import recorder_status
from cygno_assets.services.guardian import guarded
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SLICE_S = 0.01


def announcement(number: int) -> bytes:
    """As the school's DAQ sends it, presigned URL included."""
    name = f"cygno-{number:032x}.jpg"
    url = f"https://minio.example:9000/cygno-daq/{name}?X-Amz-Signature={'0' * 300}"
    return json.dumps({"url": url, "time": "2024-11-27 14:27:36", "filename": name}).encode()


async def publish(url: str, first: int, count: int, rate_hz: float | None) -> float:
    """Announces so many events, at a rate or at once; returns how many seconds that took."""
    client = await nats.connect(url)
    began = time.monotonic()
    for number in range(count):
        await client.publish("daq/data", announcement(first + number))
        ahead = 0.0 if rate_hz is None else number / rate_hz - (time.monotonic() - began)
        if ahead > _SLICE_S:
            await asyncio.sleep(ahead)
    await client.flush()
    took = time.monotonic() - began
    await client.close()
    return took


def wait_for(what: str, happened: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Polls until it has happened.

    Raises:
        TimeoutError: it has not.
    """
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


@contextmanager
def running_recorders(recorders: int) -> Iterator[tuple[NatsServer, NatsServer, list[Service]]]:
    """The DAQ's server, the inbox's, and so many recorders' processes, which may not listen yet."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        daq = NatsServer(folder / "daq", folder / "daq.log", name="DAQ")
        inbox = NatsServer(folder / "inbox", folder / "inbox.log", name="inbox", jetstream=True)
        for server in (daq, inbox):
            cleanup.callback(server.stop)
            server.start()
        environ = {
            "CYGNO_HOME": str(folder),
            "CYGNO_DAQ_NATS_URL": daq.url,
            "CYGNO_INBOX_URL": inbox.url,
        }
        services = [
            Service(
                f"recorder {number}",
                [sys.executable, "-m", "cygno_assets.cli", "record", "--name", str(number)],
                folder / f"recorder-{number}.log",
                environ,
            )
            for number in range(recorders)
        ]
        for service in services:
            cleanup.callback(service.stop)
            service.start()
        yield daq, inbox, services


def measure(recorders: int, rate_hz: float, seconds: float, burst: int) -> dict[str, Any]:
    """Announces at a rate and then at once, to so many recorders."""
    with running_recorders(recorders) as (daq, inbox, services):
        wait_for(
            "the recorders listen",
            lambda: (
                sum(
                    counts.daq_connected
                    for counts in asyncio.run(recorder_status(inbox.url, expected=recorders))
                )
                == recorders
            ),
        )

        def stored() -> int:
            try:
                return Inbox(lambda: inbox.url).state().last_sequence
            except InboxUnavailableError:
                return 0

        def cpu_s() -> float:
            return sum(sum(psutil.Process(s.pid).cpu_times()[:2]) for s in services) / recorders

        steady, before = round(rate_hz * seconds), cpu_s()
        took = asyncio.run(publish(daq.url, 0, steady, rate_hz))
        behind, ended = took * rate_hz - stored(), time.monotonic()
        wait_for("all is stored", lambda: stored() >= steady)
        lag_s = time.monotonic() - ended
        cpu = (cpu_s() - before) / steady

        began = time.monotonic()
        asyncio.run(publish(daq.url, steady, burst, None))
        wait_for("the burst is stored", lambda: stored() >= steady + burst)
        burst_s = time.monotonic() - began
        counts = asyncio.run(recorder_status(inbox.url, expected=recorders))
    return {
        "recorders": recorders,
        "announced_per_s": steady / took,
        "behind_in_the_end": behind,
        "lag_s": lag_s,
        "cpu_ms_per_message_and_recorder": 1e3 * cpu,
        "burst_per_s": burst / burst_s,
        "lost": steady + burst - sum(c.stored for c in counts),
        "stored_by_each": [c.stored for c in counts],
    }


def run(rate_hz: float, seconds: float, burst: int, *, as_json: bool) -> int:
    """Measures and prints."""
    results = [measure(recorders, rate_hz, seconds, burst) for recorders in (1, 2)]
    print("recorders  announced/s  stored after  CPU ms/message each  at once: stored/s  lost")
    for result in results:
        print(
            f"{result['recorders']:9}{result['announced_per_s']:13.0f}{result['lag_s']:12.2f} s"
            f"{result['cpu_ms_per_message_and_recorder']:21.2f}{result['burst_per_s']:19.0f}"
            f"{result['lost']:6}"
        )
    if as_json:
        print(json.dumps({"recorders": results}))
    return 0 if all(result["lost"] == 0 for result in results) else 1


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000.0, help="announcements/s")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--burst", type=int, default=20_000, help="announcements at once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(
        guarded(
            lambda: run(arguments.rate, arguments.seconds, arguments.burst, as_json=arguments.json)
        )
    )


if __name__ == "__main__":
    main()
