"""The manifest of splits: what adding images, reordering and another seed do to it."""

from __future__ import annotations

import hashlib
import itertools
import json

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from cygno_assets.daq.simulator.training_set import POPULATION
from cygno_assets.physics.splits import SPLITS, SplitSpec
from cygno_assets.storage.tables import table_of
from cygno_assets.training.splits import make_manifest
from cygno_assets.training.tables import GROUND_TRUTH_COLUMNS

SPEC = SplitSpec()


def ground_truth(copies: int = 1) -> pd.DataFrame:
    """The standard population, without its pixels."""
    rows = []
    for (kind, energy), count in POPULATION.items():
        for number in range(copies * count):
            path = f"{kind}/{energy:g}_keV/{number}.png"
            digest = hashlib.sha256(path.encode()).hexdigest()
            rows.append((path, f"{number}.png", kind, energy, 576, 576, digest))
    return table_of(GROUND_TRUTH_COLUMNS, rows)


def splits(manifest: dict) -> dict[str, tuple[str, str]]:
    """Split and energy fold by path."""
    return {image["path"]: (image["split"], image["energy_fold"]) for image in manifest["images"]}


def test_every_image_is_there_once_and_splits_lie_together() -> None:
    table = ground_truth()
    manifest = make_manifest(table, SPEC)
    assert sorted(image["path"] for image in manifest["images"]) == sorted(table["path"])
    order = [image["split"] for image in manifest["images"]]
    assert order == sorted(order, key=SPLITS.index)
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["rule"]["seed"] == 0


def test_the_same_rule_in_other_numbers_is_the_same_manifest() -> None:
    whole = SplitSpec(0, 0, 0, (5, 15))
    same = SplitSpec(0, 0.0, 0.0, (5.0, 15.0))
    assert json.dumps(make_manifest(ground_truth(), whole)) == json.dumps(
        make_manifest(ground_truth(), same)
    )


def test_within_a_split_labels_are_mixed() -> None:
    """So that taking the images as they lie is not taking them by cell."""
    images = make_manifest(ground_truth(), SPEC)["images"]
    kinds = [image["recoil_type"] for image in images if image["split"] == "train"]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    assert changes > len(kinds) / 3


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_table_does_not_matter(random) -> None:
    table = ground_truth()
    shuffled = table.iloc[random.sample(range(len(table)), len(table))]
    assert make_manifest(shuffled, SPEC) == make_manifest(table, SPEC)


@settings(deadline=None)
@given(
    st.sets(st.integers(0, 611), min_size=1),
    st.dictionaries(st.integers(0, 611), st.floats(0.01, 100), max_size=50),
)
def test_adding_images_moves_none(some: set[int], at_other_energies: dict[int, float]) -> None:
    """Into cells that are there, and at energies of their own."""
    table = ground_truth()
    table = table[~table.index.isin(at_other_energies.keys() - some)]
    more = ground_truth().loc[list(at_other_energies)].assign(energy_kev=at_other_energies.values())
    more["path"] += " again"
    fewer = splits(make_manifest(table.loc[sorted(some)], SPEC))
    assert fewer.items() <= splits(make_manifest(pd.concat([table, more]), SPEC)).items()


def test_each_large_cell_is_divided_by_the_shares() -> None:
    manifest = make_manifest(ground_truth(copies=10), SPEC)
    images = pd.DataFrame(manifest["images"])
    for _, cell in images.groupby(["recoil_type", "energy_kev"]):
        if len(cell) >= 1000:
            shares = cell["split"].value_counts(normalize=True)
            assert abs(shares["test"] - SPEC.test_share) < 0.04
            assert abs(shares["validation"] - SPEC.validation_share) < 0.04


def test_the_same_pixels_are_in_one_split_whatever_their_label() -> None:
    table = ground_truth()
    table["pixel_sha256"] = table["pixel_sha256"].iloc[:51].repeat(12).to_numpy()
    images = pd.DataFrame(make_manifest(table, SPEC)["images"])
    assert (images.groupby("pixel_sha256")["split"].nunique() == 1).all()


def test_the_hash_stands_for_all_of_it() -> None:
    table = ground_truth()
    first = make_manifest(table, SPEC)["hash"]
    assert make_manifest(table, SplitSpec())["hash"] == first
    other_pixels, other_label = table.copy(), table.copy()
    other_pixels.loc[0, "pixel_sha256"] = "0" * 64
    other_label.loc[0, "recoil_type"] = "electronic"
    others = [
        make_manifest(table, SplitSpec(seed=1)),
        make_manifest(table, SplitSpec(energy_fold_edges_kev=(5.0, 15.0, 100.0))),
        make_manifest(table.iloc[1:], SPEC),
        make_manifest(other_pixels, SPEC),
        make_manifest(other_label, SPEC),
    ]
    assert len({first, *(other["hash"] for other in others)}) == 6


def test_folds_are_counted_by_type() -> None:
    manifest = make_manifest(ground_truth(), SPEC)
    counts = {"nuclear": 102, "electronic": 102}
    assert manifest["energy_folds"] == [
        {"name": name, "images": counts} for name in ("below 5 keV", "5 to 15 keV", "from 15 keV")
    ]


def test_of_nothing_there_is_an_empty_manifest() -> None:
    manifest = make_manifest(ground_truth().iloc[:0], SPEC)
    assert manifest["images"] == []
    assert {sum(fold["images"].values()) for fold in manifest["energy_folds"]} == {0}
