"""The training set's tables, and choosing from them by label."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygno_assets.physics.ground_truth import Label
from cygno_assets.training.survey import SurveyedImage
from cygno_assets.training.tables import (
    GROUND_TRUTH_COLUMNS,
    ground_truth_rows,
    joined,
    pick,
    population,
    rows_digest,
    unlabelled_rows,
)

labels_ = st.builds(
    Label, st.sampled_from(["nuclear", "electronic"]), st.sampled_from([0.5, 1.0, 30.0])
)


def images(labels: list[Label], start: int = 0) -> list[SurveyedImage]:
    return [
        SurveyedImage(f"a/b/{start + number:03}.png", label, 576, 570, f"{number:064x}")
        for number, label in enumerate(labels)
    ]


def test_an_image_is_a_row_with_its_types() -> None:
    table = ground_truth_rows(images([Label("nuclear", 0.5)]))
    assert table.to_dict("records") == [
        {
            "path": "a/b/000.png",
            "file_name": "000.png",
            "recoil_type": "nuclear",
            "energy_kev": 0.5,
            "width_px": 576,
            "height_px": 570,
            "pixel_sha256": 64 * "0",
        }
    ]
    for table_ in (table, ground_truth_rows([]), joined([])):
        assert {name: str(dtype) for name, dtype in table_.dtypes.items()} == {
            column.name: column.dtype for column in GROUND_TRUTH_COLUMNS
        }


def test_unlabelled_paths_keep_their_reasons() -> None:
    table = unlabelled_rows({"README": "suffix '' is no image's"})
    assert table.to_dict("list") == {"path": ["README"], "reason": ["suffix '' is no image's"]}
    assert list(unlabelled_rows({}).columns) == ["path", "reason"]


@settings(deadline=None)
@given(st.lists(st.lists(labels_, max_size=5), max_size=4), st.randoms(use_true_random=False))
def test_joined_tables_hold_every_row_once_in_whatever_order(
    parts: list[list[Label]], random: object
) -> None:
    tables = [ground_truth_rows(images(part, 100 * i)) for i, part in enumerate(parts)]
    for table in tables:
        table.attrs["made_from"] = "a part"
    whole = joined(tables)
    random.shuffle(tables)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(joined(tables), whole)
    assert rows_digest(joined(tables)) == rows_digest(whole)
    assert list(whole["path"]) == sorted(whole["path"])
    assert len(whole) == sum(map(len, parts))
    assert whole.attrs == {}
    counted = population(whole)
    flat = [label for part in parts for label in part]
    assert sum(counted.values()) == len(flat)
    assert all(
        count == flat.count(Label(recoil_type, energy_kev))
        for (recoil_type, energy_kev), count in counted.items()
    )


@settings(deadline=None)
@given(
    st.lists(labels_, max_size=30),
    st.integers(0, 10),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_rows_are_picked_by_label_and_seed_not_by_position(
    labels: list[Label], count: int, seed: int, random: object
) -> None:
    rows = images(labels)
    picked = pick(ground_truth_rows(rows), count, seed, "electronic")
    assert set(picked["recoil_type"]) <= {"electronic"}
    there = [label for label in labels if label.recoil_type == "electronic"]
    assert len(picked) == min(count, len(there))
    assert picked["path"].is_unique
    assert list(picked["energy_kev"]) == sorted(picked["energy_kev"])
    random.shuffle(rows)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(pick(ground_truth_rows(rows), count, seed, "electronic"), picked)


def test_another_seed_picks_others() -> None:
    table = ground_truth_rows(images([Label("nuclear", 1.0)] * 100))
    assert set(pick(table, 5, 1)["path"]) != set(pick(table, 5, 2)["path"])


def test_the_digest_tells_rows_apart() -> None:
    one, two = images([Label("nuclear", 1.0)] * 2)
    assert rows_digest(ground_truth_rows([one])) != rows_digest(ground_truth_rows([two]))
    with pytest.raises(KeyError):
        rows_digest(unlabelled_rows({}))
