"""What is lost when the DAQ's NATS server is killed and comes back: by our recorders, and by peers.

A server without JetStream keeps nothing, but the DAQ's client does while its server is away, and
hands it all over when it is back: who is not back before misses it. The peers are as many plain
nats-py clients beside the recorders, as they are by default but for how often they try to connect.
All hear the same restarts. Lost is what none of the recorders, or none of the peers, has heard of
what the DAQ announced meanwhile. What was on its way as the server died nobody could hear: it is
counted apart. The DAQ's client and the peers share a process, the recorders have their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING

import nats

from benchmarks.recorders import announcement, running_recorders
from cygno_assets.daq.inbox import Inbox
from cygno_assets.daq.recorder import recorder_status
from cygno_assets.services.guardian import guarded

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

RECORDERS = 2
RATE_HZ = 8.0
PEERS_WAIT_S = (0.5, 2.0)
"""Between two tries of a peer: as our recorders once did, and nats-py's default."""
AWAY_S = (0.2, 2.0)
_MESSAGES = 10**6
_SETTLE_S = 2.5
"""Longer than the slowest peer waits: each restart finds all of them connected."""


async def quiet(_: Exception) -> None:
    """The server is killed on purpose."""


async def connect(url: str, wait_s: float) -> Client:
    """A plain client that stays connected, for ever."""
    return await nats.connect(
        url,
        max_reconnect_attempts=-1,
        reconnect_time_wait=wait_s,
        error_cb=quiet,
    )


class Peers:
    """Plain clients that hear the same as the recorders, together."""

    def __init__(self) -> None:
        self.heard: set[bytes] = set()

    async def listen(self, url: str, wait_s: float, cleanup: AsyncExitStack) -> None:
        """Begins with as many as there are recorders."""
        for _ in range(RECORDERS):
            client = await connect(url, wait_s)
            cleanup.push_async_callback(client.close)
            await client.subscribe("daq/data", cb=self._hear)
            await client.flush()

    async def _hear(self, message: Msg) -> None:
        self.heard.add(message.data)


@dataclass
class Lost:
    """What somebody has not heard.

    Attributes:
        messages: but for those that were on their way as the server died.
        restarts: at which any of them was announced.
    """

    messages: int
    restarts: int


@dataclass
class Result:
    """What was seen.

    Attributes:
        announced: messages.
        on_their_way: messages as the server died, which nobody has heard.
        lost: by each who listened.
    """

    announced: int
    on_their_way: int
    lost: dict[str, Lost]


async def announce(client: Client, announced: list[bytes]) -> None:
    """Announces for ever, also while the server is away."""
    for number in count():
        message = announcement(number)
        await client.publish("daq/data", message)
        announced.append(message)
        await asyncio.sleep(1 / RATE_HZ)


async def measure(restarts: int, daq_wait_s: float, seed: int) -> Result:
    """Kills the server so many times."""
    async with AsyncExitStack() as cleanup:
        daq, inbox, _ = cleanup.enter_context(running_recorders(RECORDERS))
        peers = {wait_s: Peers() for wait_s in PEERS_WAIT_S}
        for wait_s, those in peers.items():
            await those.listen(daq.url, wait_s, cleanup)
        await _until_all_are_back(inbox.url)

        client = await connect(daq.url, daq_wait_s)
        cleanup.push_async_callback(client.close)
        announced: list[bytes] = []
        announcing = asyncio.ensure_future(announce(client, announced))
        cleanup.callback(announcing.cancel)
        chance = random.Random(seed)  # noqa: S311  # for lengths of outages
        begins: list[int] = []
        on_their_way: set[int] = set()
        for _ in range(restarts):
            await asyncio.sleep(_SETTLE_S + chance.random())
            begins.append(len(announced))
            await asyncio.to_thread(daq.service.stop, timeout_s=0)
            on_their_way.update(range(begins[-1] - 1, len(announced)))
            await asyncio.sleep(chance.uniform(*AWAY_S))
            await asyncio.to_thread(daq.start)
            await _until_all_are_back(inbox.url)
            while not client.is_connected:
                await asyncio.sleep(0.05)
            print(f"{len(begins)} of {restarts} restarts", file=sys.stderr)
        await asyncio.sleep(_SETTLE_S)
        announcing.cancel()
        await client.flush()
        heard = {"our recorders": await _recorded_until(inbox.url, announced[-1])}
    for wait_s, those in peers.items():
        heard[f"peers, a try every {wait_s:g} s"] = those.heard
    unheard = {
        who: {number for number, message in enumerate(announced) if message not in what}
        for who, what in heard.items()
    }
    on_their_way.intersection_update(*unheard.values())
    lost = {}
    for who, numbers in unheard.items():
        missed = numbers - on_their_way
        hit = {sum(begin <= number for begin in begins) for number in missed}
        lost[who] = Lost(len(missed), len(hit))
    return Result(len(announced), len(on_their_way), lost)


async def _recorded_until(inbox_url: str, last: bytes) -> set[bytes]:
    """All that the inbox holds, once it holds this, which was announced to all."""
    while True:
        _, stored = await asyncio.to_thread(Inbox(lambda: inbox_url).read_after, 0, limit=_MESSAGES)
        if last in (recorded := {message.payload for message in stored}):
            return recorded
        await asyncio.sleep(0.05)


async def _until_all_are_back(inbox_url: str) -> None:
    while (
        sum(c.daq_connected for c in await recorder_status(inbox_url, expected=RECORDERS))
        < RECORDERS
    ):
        await asyncio.sleep(0.05)


def run(restarts: int, daq_wait_s: float, seed: int, *, as_json: bool) -> int:
    """Measures and prints."""
    result = asyncio.run(measure(restarts, daq_wait_s, seed))
    print(
        f"{result.announced} announced, {restarts} restarts; the DAQ tries every {daq_wait_s:g} s"
    )
    print(f"{result.on_their_way} on their way as the server died, which nobody has heard")
    print(f"{'':28}{'messages lost':>14}{'in restarts':>13}")
    for who, lost in result.lost.items():
        print(f"{who:28}{lost.messages:14}{lost.restarts:13}")
    if as_json:
        print(json.dumps({"restarts": restarts} | asdict(result)))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=40)
    parser.add_argument("--daq-wait", type=float, default=0.5, help="seconds between its tries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(
        guarded(
            lambda: run(
                arguments.restarts, arguments.daq_wait, arguments.seed, as_json=arguments.json
            )
        )
    )


if __name__ == "__main__":
    main()
