"""Which image is for what: decided by its pixels and the seed, and by nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygno_assets.daq.simulator.training_set import POPULATION
from cygno_assets.physics.ground_truth import RECOIL_TYPES
from cygno_assets.physics.splits import (
    MIN_SHARE_OF_EACH_TYPE,
    SPLITS,
    SplitSpec,
    energy_folds,
    lot,
    split_of,
)

DIGESTS = [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(5000)]
digests = st.sampled_from(DIGESTS)
shares = st.floats(0, 0.49)
populations = st.dictionaries(
    st.tuples(
        st.sampled_from(sorted(RECOIL_TYPES.values())), st.sampled_from([0.5, 1, 3, 6, 10, 20, 30])
    ),
    st.integers(0, 200),
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


@given(populations)
def test_every_energy_is_left_out_once(population: dict) -> None:
    folds = energy_folds(population)
    energies = [energy for fold in folds for energy in fold.energies_kev]
    assert energies == sorted({energy for (_, energy), images in population.items() if images})
    for fold in folds:
        for recoil_type, images in fold.images.items():
            assert images == sum(population.get((recoil_type, e), 0) for e in fold.energies_kev)
    if len(folds) > 1:
        # What is left over at the end goes to the last one, which alone may so be one-sided.
        for fold in folds[:-1]:
            counts = fold.images.values()
            assert min(counts) >= MIN_SHARE_OF_EACH_TYPE * sum(counts)


def test_where_the_energy_gives_the_label_away_neighbours_are_left_out_together() -> None:
    assert [fold.name for fold in energy_folds(POPULATION)] == ["1+3 keV", "6+10 keV", "20+30 keV"]


def test_where_it_does_not_each_energy_is_left_out_by_itself() -> None:
    population = {(kind, e): 50 for kind in RECOIL_TYPES.values() for e in (1.0, 0.5, 6.0)}
    assert [fold.name for fold in energy_folds(population)] == ["0.5 keV", "1 keV", "6 keV"]
