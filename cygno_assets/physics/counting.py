"""How probable counts and waiting times are: Poisson and binomial tails, and rates compared.

Here belong probabilities; what is alarming is for whoever asks. Without scipy, which nothing else
needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAUSE_MEDIANS = 20
"""A gap of so many median gaps is a pause: by chance one gap in 2^20, a million, is as long."""

_NEGLIGIBLE = 1e-18


def poisson_at_most(count: int, mean: float) -> float:
    """P(X ≤ count) of a Poisson distribution.

    Raises:
        ValueError: a mean that is not above 0, or not finite.
    """
    if not 0 < mean < math.inf:
        raise ValueError(f"mean = {mean!r}: must be above 0")
    if count < 0:
        return 0.0
    if count > mean:
        return 1 - poisson_at_least(count + 1, mean)
    first = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
    return _tail(first, (k / mean for k in range(count, 0, -1)))


def poisson_at_least(count: int, mean: float) -> float:
    """P(X ≥ count) of a Poisson distribution.

    Raises:
        ValueError: a mean that is not above 0, or not finite.
    """
    if count <= mean:
        return 1 - poisson_at_most(count - 1, mean)
    first = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
    # Terms fall at least as fast as mean / (count + 1), so the tail ends long before.
    return _tail(first, (mean / k for k in range(count + 1, 2 * count + 1000)))


def binomial_at_most(count: int, trials: int, chance: float) -> float:
    """P(X ≤ count) of a binomial distribution.

    Raises:
        ValueError: a chance that is not between 0 and 1, or trials below 0.
    """
    return binomial_at_least(trials - count, trials, 1 - chance)


def binomial_at_least(count: int, trials: int, chance: float) -> float:
    """P(X ≥ count) of a binomial distribution.

    Raises:
        ValueError: a chance that is not between 0 and 1, or trials below 0.
    """
    if not 0 < chance < 1:
        raise ValueError(f"chance = {chance!r}: must be between 0 and 1")
    if trials < 0:
        raise ValueError(f"trials = {trials}: must not be below 0")
    if count <= 0:
        return 1.0
    if count > trials:
        return 0.0
    odds = chance / (1 - chance)
    first = math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(chance)
        + (trials - count) * math.log1p(-chance)
    )
    if count > trials * chance:  # the sum of what is smaller is the more exact one
        return _tail(first, ((trials - k) / (k + 1) * odds for k in range(count, trials)))
    below = _tail(first, (k / (trials - k + 1) / odds for k in range(count, 0, -1)))
    return min(1.0, max(0.0, 1 - below + first))


def _tail(first: float, ratios: Iterable[float]) -> float:
    """The sum of terms that fall; each is the one before times a ratio."""
    terms = [first]
    for ratio in ratios:
        terms.append(terms[-1] * ratio)
        if terms[-1] <= _NEGLIGIBLE * first:
            break
    return min(1.0, math.fsum(terms))


@dataclass(frozen=True)
class LiveTime:
    """Gaps between events, without the pauses.

    Attributes:
        gaps: how many.
        seconds: they are long, all together.
        pauses: gaps so long that nobody was taking data; in neither.
    """

    gaps: int
    seconds: float
    pauses: int = 0

    @property
    def rate_hz(self) -> float:
        """Mean events/s; infinite if all came at once, NaN where there is no gap."""
        if self.gaps == 0:
            return math.nan
        return self.gaps / self.seconds if self.seconds > 0 else math.inf


def live_time(times: Sequence[float]) -> LiveTime:
    """How long data were taken.

    Args:
        times: of the events, in s, in any order.
    """
    gaps = [later - earlier for earlier, later in pairwise(sorted(times))]
    if not gaps:
        return LiveTime(0, 0.0)
    longest = PAUSE_MEDIANS * median(gaps) or math.inf  # of a burst no gap says anything
    live = [gap for gap in gaps if gap <= longest]
    return LiveTime(len(live), math.fsum(live), len(gaps) - len(live))


def rate_p_value(now: LiveTime, expected: LiveTime | float) -> float:
    """How probable it is that a rate is by chance as far from the expected one, or farther.

    Exact for Poisson arrivals. The time that n gaps take is a sum of n exponentials: of a known
    rate, it is too short as often as a Poisson count in it is n or more. Of a rate that was itself
    only measured, n gaps against m are in shares of their whole time as the larger of two counts
    is binomial; so a past of few events alarms nobody.

    Args:
        now: of the events asked about.
        expected: a rate in events/s, or the gaps that tell it.

    Returns:
        Two-sided, in [0, 1]; 1 where nothing can be said.
    """
    if now.gaps == 0 or (isinstance(expected, LiveTime) and expected.gaps == 0):
        return 1.0
    if isinstance(expected, LiveTime):
        whole = now.seconds + expected.seconds
        if not 0 < now.seconds < whole:
            return 1.0 if whole == 0 else 0.0
        trials = now.gaps + expected.gaps - 1
        share = now.seconds / whole
        fast = binomial_at_least(now.gaps, trials, share)
        slow = binomial_at_most(now.gaps - 1, trials, share)
    elif now.seconds == 0:
        return 0.0
    else:
        fast = poisson_at_least(now.gaps, expected * now.seconds)
        slow = poisson_at_most(now.gaps - 1, expected * now.seconds)
    return min(1.0, 2 * min(fast, slow))


def longest_silence(p_value: float, expected: LiveTime | float) -> float:
    """The time in s without an event that is as probable as this; what `silence_p_value` inverts.

    Args:
        p_value: above 0, at most 1.
        expected: a rate in events/s, or the gaps that tell it.

    Returns:
        Infinite where nothing can be said.
    """
    if not isinstance(expected, LiveTime):
        return -math.log(p_value) / expected
    if expected.gaps == 0 or expected.seconds == 0:
        return math.inf
    return expected.seconds * math.expm1(-math.log(p_value) / expected.gaps)


def silence_p_value(seconds: float, expected: LiveTime | float) -> float:
    """How probable it is that no event comes for so long by chance.

    Args:
        seconds: since the last one.
        expected: a rate in events/s, or the gaps that tell it: few of them tell little.

    Returns:
        In [0, 1]; 1 where nothing can be said.
    """
    seconds = max(seconds, 0.0)
    if not isinstance(expected, LiveTime):
        return math.exp(-expected * seconds)
    if expected.gaps == 0 or expected.seconds == 0:
        return 1.0
    return (1 + seconds / expected.seconds) ** -expected.gaps
