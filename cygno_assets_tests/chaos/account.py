"""What was found of the events of one fault, and whether it is good. No process is asked here.

Whoever says that nothing was lost must have looked: so a fault that hit nothing, a wait that ended
without what was waited for, and an event that nobody heard of are as bad as a lost one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set


@dataclass(frozen=True)
class Expected:
    """What a fault may do, and must.

    Attributes:
        hits: at least one event, request or process; else it proves nothing.
        fails: the kind on which events must fail, at least one, and none that was not hit; on
            any other none may.
        fails_all: each event that was hit must.
        lost_before_us: how many events at the most the DAQ or a server of its may take with them:
            a core NATS server keeps nothing, and an image that cannot be stored is not announced.
        rate_hz: the load, in events/s, below which it proves too little.
    """

    hits: bool = True
    fails: str | None = None
    fails_all: bool = False
    lost_before_us: int = 0
    rate_hz: float = 5.0


@dataclass(frozen=True)
class Account:
    """What became of the events of one fault.

    Attributes:
        expected: what may.
        requested: how many events the DAQ was told to announce.
        truth: the events that it says it announced.
        heard: the events that its server delivered to a witness beside the recorders, with the
            time of their first announcement in s.
        materialized: the events with a tensor.
        successes: how many successful runs each event has.
        failed: events without a tensor that failed for good, and their kind.
        damaged: what is wrong with files; one that is missing is wrong too.
        hit: what the fault hit: events, requests, processes.
        trouble: what else was wrong, such as what did not happen in time.
        recovered_s: from the end of the fault until all that was announced before was settled.
    """

    expected: Expected
    requested: int
    truth: Set[str]
    heard: Mapping[str, float]
    materialized: Set[str]
    successes: Mapping[str, int]
    failed: Mapping[str, str]
    damaged: Sequence[str] = ()
    hit: Set[str] = frozenset()
    trouble: Sequence[str] = field(default_factory=list)
    recovered_s: float = 0.0

    @property
    def lost(self) -> list[str]:
        """Announced, and neither materialized nor failed for good."""
        return sorted(self.heard.keys() - self.materialized - self.failed.keys())

    @property
    def doubled(self) -> list[str]:
        """With more than one successful run."""
        return sorted(event for event in self.heard if self.successes.get(event, 0) > 1)

    @property
    def without_run(self) -> list[str]:
        """With a tensor, but no successful run."""
        made = self.heard.keys() & self.materialized
        return sorted(event for event in made if not self.successes.get(event))

    @property
    def lost_before_us(self) -> int:
        """That the DAQ was to announce and that nobody can have heard."""
        return max(self.requested, len(self.truth)) - len(self.heard)

    @property
    def kinds(self) -> dict[str, int]:
        """How many events failed for good, by kind."""
        return dict(sorted(Counter(self.failed.values()).items()))

    @property
    def rate_hz(self) -> float:
        """Events/s as they were announced for the first time; 0 of fewer than two."""
        times = self.heard.values()
        took_s = max(times, default=0.0) - min(times, default=0.0)
        return (len(times) - 1) / took_s if took_s else 0.0

    @property
    def problems(self) -> list[str]:
        """All that is not as it must be, a sentence each."""
        return [
            *self.trouble,
            *self._of_announcements(),
            *self._of_failures(),
            *(f"lost: {event}" for event in self.lost),
            *(f"doubled: {event}: {self.successes[event]} runs" for event in self.doubled),
            *(f"materialized without a successful run: {event}" for event in self.without_run),
            *(f"damaged: {what}" for what in self.damaged),
        ]

    def _of_announcements(self) -> list[str]:
        found = []
        if not self.heard:
            found.append("nothing was announced")
        if self.lost_before_us > self.expected.lost_before_us:
            found.append(
                f"{self.requested} events were to be announced, {len(self.truth)} were by the "
                f"DAQ's own table, {len(self.heard)} were heard"
            )
        if unknown := self.heard.keys() - self.truth:
            found.append(f"{len(unknown)} events were heard that no DAQ announced")
        if self.rate_hz < self.expected.rate_hz:
            found.append(f"{self.rate_hz:.1f} events/s are no load")
        if self.expected.hits and not self.hit:
            found.append("the fault hit nothing")
        return found

    def _of_failures(self) -> list[str]:
        wanted = self.expected.fails
        found = [
            f"{event} failed on {kind}: should have passed"
            for event, kind in sorted(self.failed.items())
            if kind != wanted or event not in self.hit
        ]
        if wanted is not None and wanted not in self.failed.values():
            found.append(f"no event failed on {wanted}")
        if self.expected.fails_all:
            left = sorted(self.hit - self.failed.keys())
            found += [f"{event} was hit, and did not fail on {wanted}" for event in left]
        return found
