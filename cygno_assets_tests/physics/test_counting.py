"""Probabilities of counts, against sums that anybody can check, and against drawn events."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygno_assets.physics.counting import (
    LiveTime,
    binomial_at_least,
    binomial_at_most,
    live_time,
    longest_silence,
    poisson_at_least,
    poisson_at_most,
    rate_p_value,
    silence_p_value,
)

means = st.floats(1e-3, 80)
chances = st.floats(1e-3, 1 - 1e-3)


@given(st.integers(0, 150), means)
def test_poisson_tails_are_their_sums(count: int, mean: float) -> None:
    terms = [math.exp(-mean)]
    for k in range(1, 500):
        terms.append(terms[-1] * mean / k)
    below, above = math.fsum(terms[: count + 1]), math.fsum(terms[count:])
    assert poisson_at_most(count, mean) == pytest.approx(below, rel=1e-9, abs=1e-14)
    assert poisson_at_least(count, mean) == pytest.approx(above, rel=1e-9, abs=1e-14)


@given(st.integers(0, 60), st.integers(0, 60), chances)
def test_binomial_tails_are_their_sums(count: int, trials: int, chance: float) -> None:
    p = Fraction(chance)
    terms = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    below, above = float(sum(terms[: count + 1])), float(sum(terms[count:]))
    assert binomial_at_most(count, trials, chance) == pytest.approx(below, rel=1e-9, abs=1e-13)
    assert binomial_at_least(count, trials, chance) == pytest.approx(above, rel=1e-9, abs=1e-13)


@given(st.integers(-3, 4000), st.floats(1e-2, 3000))
def test_poisson_tails_are_shares_and_make_one(count: int, mean: float) -> None:
    below, above = poisson_at_most(count - 1, mean), poisson_at_least(count, mean)
    assert 0 <= below <= 1
    assert 0 <= above <= 1
    assert below + above == pytest.approx(1, abs=1e-9)


def test_far_tails_keep_their_digits() -> None:
    # P(X ≥ 50) of mean 5: to three digits its first term, as the ratio of the next is 5/51.
    first = math.exp(-5) * 5**50 / math.factorial(50)
    assert poisson_at_least(50, 5) == pytest.approx(first * (1 + 5 / 51 + 25 / 51 / 52), rel=1e-2)
    assert poisson_at_most(0, 700) == pytest.approx(math.exp(-700))
    assert binomial_at_least(40, 40, 1e-3) == pytest.approx(1e-120)


@pytest.mark.parametrize("mean", [0.0, -1.0, math.inf, math.nan])
def test_a_mean_that_does_not_exist_is_named(mean: float) -> None:
    with pytest.raises(ValueError, match="mean = "):
        poisson_at_most(3, mean)


@pytest.mark.parametrize(("trials", "chance"), [(3, 0.0), (3, 1.0), (3, math.nan), (-1, 0.5)])
def test_trials_that_do_not_exist_are_named(trials: int, chance: float) -> None:
    with pytest.raises(ValueError, match=r"(chance|trials) = "):
        binomial_at_least(1, trials, chance)


def test_pauses_are_no_live_time() -> None:
    assert live_time([7.0, 5.0, 6.0, 1000.0, 1001.0]) == LiveTime(3, 3.0, 1)
    assert live_time([7.0, 7.0, 7.0, 9.0]) == LiveTime(3, 2.0, 0)
    assert live_time([7.0]) == live_time([]) == LiveTime(0, 0.0)
    assert math.isnan(live_time([]).rate_hz)


def arrivals(rng: np.random.Generator, rate_hz: float, number: int) -> LiveTime:
    return live_time(list(np.cumsum(rng.exponential(1 / rate_hz, number))))


@pytest.mark.parametrize("known", [True, False])
def test_p_values_of_an_unchanged_rate_are_uniform(known: bool) -> None:
    rng = np.random.default_rng(3)
    found = [
        rate_p_value(arrivals(rng, 2, 60), 2.0 if known else arrivals(rng, 2, 150))
        for _ in range(1500)
    ]
    # The standard deviation of a share of 1500 is at most 0.013.
    for share in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(np.array(found) < share) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("factor", [0.5, 2])
@pytest.mark.parametrize("known", [True, False])
def test_a_rate_that_changed_is_seen(factor: float, known: bool) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        past = 0.1 if known else arrivals(rng, 0.1, 2000)
        assert rate_p_value(arrivals(rng, 0.1 * factor, 300), past) < 1e-9


def test_what_cannot_be_said_is_no_alarm() -> None:
    nothing, some = LiveTime(0, 0.0), LiveTime(30, 60.0)
    assert rate_p_value(nothing, 1.0) == rate_p_value(some, nothing) == 1
    assert silence_p_value(1e9, nothing) == 1
    assert silence_p_value(-5, some) == 1
    assert rate_p_value(LiveTime(30, 0.0), LiveTime(30, 0.0)) == 1
    assert rate_p_value(LiveTime(30, 0.0), some) == rate_p_value(LiveTime(30, 0.0), 1.0) == 0


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 100))
def test_silence_of_a_known_rate_is_exponential_and_few_gaps_say_less(
    seconds: float, rate_hz: float
) -> None:
    known = silence_p_value(seconds, rate_hz)
    assert known == pytest.approx(poisson_at_most(0, rate_hz * seconds))
    few, many = (silence_p_value(seconds, LiveTime(n, n / rate_hz)) for n in (5, 5000))
    assert known <= many * (1 + 1e-9)
    assert many <= few * (1 + 1e-9)


@given(
    st.floats(1e-9, 1),
    st.one_of(st.floats(1e-3, 10), st.integers(1, 999).map(lambda n: LiveTime(n, 3.0 * n))),
)
def test_the_longest_silence_has_its_p_value(p_value: float, expected: LiveTime | float) -> None:
    seconds = longest_silence(p_value, expected)
    assert silence_p_value(seconds, expected) == pytest.approx(p_value, rel=1e-6)


def test_no_events_say_nothing_of_silence() -> None:
    assert longest_silence(1e-6, LiveTime(0, 0.0)) == math.inf
