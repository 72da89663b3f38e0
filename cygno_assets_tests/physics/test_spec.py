"""The specification's hash stands for the tensors it makes, for years."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygno_assets.physics.spec import PreprocessSpec

adu = st.integers(-5, 5) | st.integers(-5, 5).map(float) | st.just(-0.0)


def test_the_default_specification_hashes_as_ever() -> None:
    # Stored with every tensor made so far: another value makes all of them stale.
    assert PreprocessSpec().hash == "c3fe6782db3c"
    assert PreprocessSpec().side == 128


@pytest.mark.parametrize(
    "change", [{"half_width": 65}, {"window_low": 80.5}, {"window_high": 110.5}, {"version": 2}]
)
def test_any_change_changes_the_hash(change: dict[str, int]) -> None:
    assert replace(PreprocessSpec(), **change).hash != PreprocessSpec().hash


@given(st.tuples(adu, adu), st.tuples(adu, adu))
def test_specifications_hash_alike_if_and_only_if_they_are_equal(
    one: tuple[float, float], other: tuple[float, float]
) -> None:
    a, b = (
        PreprocessSpec(window_low=min(pair), window_high=max(pair) + 1) for pair in (one, other)
    )

    assert (a.hash == b.hash) == (a == b)


def test_80_and_80_0_are_the_same_window() -> None:
    assert PreprocessSpec(window_low=80, window_high=110).hash == PreprocessSpec().hash


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"half_width": 0}, "half_width must be at least 1 pixel, not 0"),
        ({"half_width": -64}, "half_width must be at least 1 pixel, not -64"),
        ({"window_low": 110}, r"window_low \(110\) must be below window_high \(110.0\)"),
        ({"window_low": 111}, r"window_low \(111\) must be below"),
        ({"window_low": float("nan")}, "both finite"),
        ({"window_high": float("nan")}, "both finite"),
        ({"window_low": float("-inf")}, "both finite"),
        ({"window_high": float("inf")}, "both finite"),
    ],
    ids=str,
)
def test_impossible_specifications_are_refused(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PreprocessSpec(**wrong)  # type: ignore[arg-type]


def test_a_specification_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PreprocessSpec().window_low = 50.0  # type: ignore[misc]
