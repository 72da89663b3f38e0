"""What the running system reports on the terminal: the live line and the summary in the end."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dagster import DagsterInstance

_PLAIN_EVERY_S = 5.0
_TRAINING_EVERY_S = 3.0


@dataclass
class Progress:
    """Follows events from their announcement to their tensor.

    Attributes:
        announced: events that the DAQ announced.
        recorded: events that the recorder put into the inbox.
        materialized: events with a tensor.
        pending: events that have neither a tensor nor failed.
        failed: reason, by event; such an event may still be materialized by another run.
        latencies_s: from acquisition to tensor, of the newest events.
    """

    announced: int = 0
    recorded: int = 0
    materialized: int = 0
    pending: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def update(self, instance: DagsterInstance, new_events: Iterable[str]) -> None:
        """Asks Dagster what became of the events that are not materialized yet."""
        from cygno_assets.names import PREPROCESSED_TENSOR
        from cygno_assets.records.history import events_of, failed_events, unfinished_runs
        from cygno_assets.records.made import newest_of

        self.pending |= set(new_events)
        unfinished = self.pending | self.failed.keys()
        # In this order, for a run that ends in between must not look like none.
        failed = failed_events(instance, unfinished)
        running = events_of(unfinished_runs(instance)) if failed else set()
        materialized = newest_of(instance, PREPROCESSED_TENSOR, unfinished)
        self.materialized += len(materialized)
        latencies = (made.metadata.get("latency_s") for made in materialized.values())
        # There is none where the announcement was gone.
        self.latencies_s.extend(seconds for seconds in latencies if seconds is not None)
        self.failed = {
            event: reason
            for event, reason in failed.items()
            if event not in running and event not in materialized
        }
        self.pending = unfinished - materialized.keys() - self.failed.keys()

    @property
    def latency_s(self) -> float:
        """Median latency of the newest events; NaN if there is none."""
        return statistics.median(self.latencies_s) if self.latencies_s else math.nan

    def line(self) -> str:
        """The live line."""
        latency = "–" if math.isnan(self.latency_s) else f"{self.latency_s:.1f} s"
        return (
            f"announced {self.announced}  recorded {self.recorded}  "
            f"materialized {self.materialized}  failed {len(self.failed)}  "
            f"backlog {len(self.pending)}  latency {latency}"
        )

    def summary(self) -> str:
        """What became of all events, in lines."""
        counts = (
            f"{self.announced} announced, {self.recorded} recorded, "
            f"{self.materialized} materialized, {len(self.failed)} failed"
        )
        lines = [counts]
        if not math.isnan(self.latency_s):
            lines.append(f"median latency from acquired to tensor: {self.latency_s:.1f} s")
        lines += [f"failed: {reason}" for reason in self.failed.values()]
        lines += [f"not materialized: {event}" for event in sorted(self.pending)]
        return "\n".join(lines)


@dataclass
class TrainingProgress:
    """Follows the training set from its archive to its figures.

    Attributes:
        missing: assets that are not materialized, of those with partitions wholly, and the archive
            unless it was since this began to follow it.
        cells_done: recoil × energy cells that are materialized.
        cells: how many there are; 0 before there is an archive.
        failed: why runs failed, since this began to follow them.
    """

    missing: list[str] = field(default_factory=lambda: ["…"])
    cells_done: int = 0
    cells: int = 0
    failed: list[str] = field(default_factory=list)
    _since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _looked: float = -math.inf

    @property
    def complete(self) -> bool:
        """Whether every asset of the training set is materialized, and no run failed."""
        return not self.missing and not self.failed

    def update(self, instance: DagsterInstance) -> None:
        """Asks Dagster, now and then: it costs more than the live events do."""
        if self.complete or time.monotonic() - self._looked < _TRAINING_EVERY_S:
            return
        from cygno_assets.records.history import failed_training_runs, training_state

        self.missing, self.cells_done, self.cells = training_state(instance, self._since)
        self.failed = failed_training_runs(instance, self._since)
        self._looked = time.monotonic()

    def line(self) -> str:
        """Its part of the live line."""
        if self.complete:
            return "training complete"
        if self.failed:
            return "training FAILED"
        return f"training {self.cells_done}/{self.cells} cells" if self.cells else "training –"

    def summary(self) -> str:
        """What became of the training set, in lines."""
        lines = [f"training set: {self.cells_done} of {self.cells} cells materialized"]
        lines += [f"failed: {reason}" for reason in self.failed]
        lines += [f"not materialized: {asset}" for asset in self.missing]
        return "\n".join(lines)


class LiveLine:
    """Prints one line over and over in a terminal; now and then a new one elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = ""
        self._last_time = -math.inf

    def show(self, line: str) -> None:
        """Shows the line if it tells anything new."""
        now = time.monotonic()
        if self._terminal:
            print("\r" + line.ljust(len(self._last)), end="", flush=True)
        elif line == self._last or now - self._last_time < _PLAIN_EVERY_S:
            return
        else:
            print(line, flush=True)
        self._last, self._last_time = line, now

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        print(("\n" if self._terminal and self._last else "") + line, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Moves on to a new line."""
        if self._terminal and self._last:
            print(flush=True)
