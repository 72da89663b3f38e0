"""Which image is for what: decided by its pixels and the seed, and by nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygno_assets.daq.simulator.training_set import POPULATION
from cygno_assets.physics.splits import SPLITS, SplitSpec, energy_fold_of, lot, split_of

DIGESTS = [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(5000)]
digests = st.sampled_from(DIGESTS)
shares = st.floats(0, 0.49)
edges = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5, unique=True).map(
    lambda some: tuple(sorted(some))
)


def test_the_shares_are_as_asked_for() -> None:
    for spec in (SplitSpec(), SplitSpec(3, 0.3, 0.05), SplitSpec(4, 0.0, 0.5)):
        counts = Counter(split_of(digest, spec) for digest in DIGESTS)
        for split, share in (("validation", spec.validation_share), ("test", spec.test_share)):
            assert counts[split] / len(DIGESTS) == pytest.approx(share, abs=0.02)


@given(digests, st.integers(0, 2**31), shares, shares)
def test_every_image_has_one_split_the_same_each_time(
    digest: str, seed: int, validation: float, test: float
) -> None:
    spec = SplitSpec(seed, validation, test)
    assert 0 <= lot(digest, spec) < 1
    split = split_of(digest, spec)
    assert split in SPLITS
    assert split == split_of(digest, SplitSpec(seed, validation, test))


@given(digests, st.integers(0, 2**31), shares, shares)
def test_a_larger_test_share_only_adds_to_it(
    digest: str, seed: int, smaller: float, larger: float
) -> None:
    """So that a score on the first one is not spoiled by asking for more."""
    smaller, larger = sorted((smaller, larger))
    if split_of(digest, SplitSpec(seed, 0.1, smaller)) == "test":
        assert split_of(digest, SplitSpec(seed, 0.1, larger)) == "test"


def test_another_seed_divides_otherwise() -> None:
    one, other = SplitSpec(seed=1), SplitSpec(seed=2)
    moved = sum(split_of(digest, one) != split_of(digest, other) for digest in DIGESTS)
    assert moved > 0.3 * len(DIGESTS)
    assert one.hash != other.hash == SplitSpec(seed=2).hash


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="together below 1"):
        SplitSpec(0, *shares)


@pytest.mark.parametrize(
    "wrong",
    [(), (0.0, 5.0), (-1.0,), (5.0, 5.0), (15.0, 5.0), (float("nan"),), (5.0, float("inf"))],
)
def test_edges_that_are_none_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"edges of energy folds .*each above the one before"):
        SplitSpec(energy_fold_edges_kev=wrong)


@given(st.floats(1e-6, 1e6), edges)
def test_every_energy_is_in_the_fold_that_its_edges_say(energy: float, some: tuple) -> None:
    spec = SplitSpec(energy_fold_edges_kev=some)
    fold = energy_fold_of(energy, spec)
    assert len(set(spec.energy_folds)) == len(some) + 1
    match fold.removesuffix(" keV").split():
        case ["below", high]:
            assert (energy < float(high), float(high)) == (True, some[0])
        case [low, "to", high]:
            assert float(low) <= energy < float(high)
            assert {float(low), float(high)} <= set(some)
        case ["from", low]:
            assert (energy >= float(low), float(low)) == (True, some[-1])
        case _:
            pytest.fail(fold)


def test_each_fold_of_the_standard_set_has_an_energy_of_each_type() -> None:
    spec = SplitSpec()
    assert {energy: energy_fold_of(energy, spec) for _, energy in POPULATION} == {
        1.0: "below 5 keV",
        3.0: "below 5 keV",
        6.0: "5 to 15 keV",
        10.0: "5 to 15 keV",
        20.0: "from 15 keV",
        30.0: "from 15 keV",
    }
    assert [energy_fold_of(energy, spec) for energy in (0.05, 4.999, 5, 14.999, 15)] == [
        *("below 5 keV", "below 5 keV", "5 to 15 keV", "5 to 15 keV", "from 15 keV")
    ]
    assert SplitSpec(energy_fold_edges_kev=(0.5,)).energy_folds == ["below 0.5 keV", "from 0.5 keV"]


def test_other_edges_are_another_rule_and_whole_numbers_are_not() -> None:
    assert SplitSpec(energy_fold_edges_kev=(5, 15)).hash == SplitSpec().hash
    assert SplitSpec(energy_fold_edges_kev=(5,)).hash != SplitSpec().hash
