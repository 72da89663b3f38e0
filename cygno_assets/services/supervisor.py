"""Starts services again that end by themselves: nobody has to be there when one crashes.

Here belongs when; how a process starts and ends is process.py's. One that hangs is left alone: it
may only have been stopped for a while, and to kill it would lose what it does. But one that works
by children is started again when it has lost them: Dagster's code server does, when a laptop has
slept or it was stopped for half a minute, and would never answer again.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cygno_assets.services.process import Service

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_HOLLOW_S = 5.0
"""So long a process may be without the children by which it works: it may be starting them."""
_RECOVERED_AFTER_S = 60.0
"""One that has run for so long has recovered: if it ends once more, the first pause will do."""


@dataclass
class _Watched:
    pause_s: float = field(default_factory=lambda: _FIRST_PAUSE_S)
    due: float | None = None  # when it is to be started; None while it runs
    started: float = -math.inf
    whole: float = math.inf  # when it was last seen with the children by which it works


@dataclass
class Supervisor:
    """Watches services.

    Attributes:
        say: told of each end and each start, in a line.
        restarts: how often one was started again.
    """

    say: Callable[[str], None]
    restarts: int = 0
    _watched: dict[str, _Watched] = field(default_factory=dict)

    def look(self, services: Iterable[Service]) -> None:
        """Looks once: what has ended is started again after a pause, which doubles each time."""
        now = time.monotonic()
        for service in services:
            watched = self._watched.setdefault(service.name, _Watched())
            status = service.status
            if not service.is_hollow:
                watched.whole = now
            elif now - watched.whole > _HOLLOW_S:
                self.say(f"{service.name} has lost its processes; it is ended ({service.log_file})")
                service.stop()
                continue
            if status is None:
                if now - watched.started > _RECOVERED_AFTER_S:
                    watched.pause_s = _FIRST_PAUSE_S
            elif watched.due is None:
                watched.due = now + watched.pause_s
                self.say(
                    f"{service.name} ended by itself with status {status}; it is started again in "
                    f"{watched.pause_s:g} s ({service.log_file})"
                )
                watched.pause_s = min(2 * watched.pause_s, _LONGEST_PAUSE_S)
            elif now >= watched.due:
                service.restart()
                self.restarts += 1
                watched.due, watched.started = None, now
                self.say(f"{service.name} started again")
