"""How often a NATS server is tried that is away, or that refuses.

Here belongs when the next try is due; what is lost or heard meanwhile is recorder.py's to say.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import nats.errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Server

REFUSED_WAIT_S = 0.5
"""Between two tries of a server that refuses: it may write each into its log."""
AWAY_WAIT_S = 0.02
"""Between two tries of a server that has been away for long."""

# A server that is back delivers at once what the DAQ has kept meanwhile, and to those only who are
# back before the DAQ is. Between two tries: this part of the time it has been away, within limits.
_SHARE_OF_AWAY = 1e-3
_LEAST_WAIT_S = 0.002
_REFUSALS = (nats.errors.Error, ssl.SSLError, socket.gaierror)
"""By somebody who is there: a server, or who tells names."""
_RESETS = (ConnectionResetError, BrokenPipeError)


class Reconnecting:
    """The tries of one connection."""

    def __init__(self) -> None:
        self.lost()

    def lost(self) -> None:
        """The connection is lost from now on."""
        self._lost_at = time.monotonic()
        self._resets = 0

    def next_try(self, servers: list[Server], _: Mapping[str, Any]) -> tuple[Server, float]:
        """Which server is tried next, and in how many s; as nats-py asks for it.

        The one that failed least; by chance, so that recorders side by side take turns.
        """
        away_s = time.monotonic() - self._lost_at
        wait_s = min(max(away_s * _SHARE_OF_AWAY, _LEAST_WAIT_S), AWAY_WAIT_S)
        by_chance = random.uniform(0.5, 1.5)  # noqa: S311  # no secret
        return min(servers, key=lambda server: server.reconnects), wait_s * by_chance

    def failed(self, error: Exception) -> bool:
        """A try failed so; returns whether it was refused. A dying server resets one at most."""
        if isinstance(error, _RESETS):
            self._resets += 1
            return self._resets > 1
        return isinstance(error, _REFUSALS)
