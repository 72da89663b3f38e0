"""What an audit says of rows: each alarm on rows made for it, and silence on good ones.

The same from archives of images is assets/test_training_dataset.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygno_assets.daq.simulator.training_set import POPULATION
from cygno_assets.physics.splits import SplitSpec
from cygno_assets.storage.tables import table_of
from cygno_assets.training.audit import ALARMS, accuracy_by_energy, audit, offenders_table
from cygno_assets.training.tables import DATASET_COLUMNS, OFFENDER_COLUMNS


def rows(each: int = 60) -> pd.DataFrame:
    """A set with nothing wrong: both types at two energies, in all splits."""
    made = []
    for kind in ("nuclear", "electronic"):
        for energy in (3.0, 10.0):
            for n in range(each):
                path = f"{kind}/{energy:g}/{n}.png"
                digest = hashlib.sha256(path.encode()).hexdigest()
                split = ("train", "validation", "test")[n % 3]
                made.append(
                    (
                        *(path, kind, energy, digest, digest, "spec", 0.5, 0.5),
                        *(4, 0, 0, 0, split, "all"),
                    )
                )
    table = table_of(DATASET_COLUMNS, made)
    table.attrs = {"split_rule": asdict(SplitSpec())}
    return table


def raised(table: pd.DataFrame) -> dict[str, str]:
    return {alarm.name: finding.says for alarm, finding in audit(table) if not finding.passed}


def test_nothing_is_raised_on_a_good_set() -> None:
    assert raised(rows()) == {}


def test_energies_that_tell_the_type() -> None:
    table = rows()
    table.loc[table["recoil_type"] == "nuclear", "energy_kev"] += 1
    assert raised(table) == {
        "energy_does_not_tell_the_type": "the energy alone tells the recoil type of 100.0% of the "
        "images (both types counting alike), guessing of 50.0%"
    }


@pytest.mark.parametrize(("column", "other"), [("recoil_type", "electronic"), ("energy_kev", 10.0)])
def test_the_same_tensor_under_two_labels(column: str, other: object) -> None:
    table = rows()
    [twin] = table.index[(table[column] == other) & (table["split"] == "train")][:1]
    table.loc[twin, "tensor_sha256"] = table.loc[0, "tensor_sha256"]
    [finding] = [f for alarm, f in audit(table) if alarm.name == "no_tensor_has_two_labels"]
    assert [index for index, _ in finding.offenders] == [0, twin]
    assert set(raised(table)) == {"no_tensor_has_two_labels"}


def test_the_same_tensor_in_two_splits() -> None:
    table = rows()
    table.loc[1, "tensor_sha256"] = table.loc[0, "tensor_sha256"]
    assert raised(table) == {"no_tensor_is_in_two_splits": "2 images are in more than one split"}
    table.loc[1, "split"] = table.loc[0, "split"]
    assert raised(table) == {}


@pytest.mark.parametrize(
    ("alarm", "changed"),
    [
        ("tracks_are_inside_the_crop", {"bright_at_edge": 1}),
        ("tracks_are_inside_the_crop", {"bright_outside": 1}),
        ("no_image_is_saturated", {"saturated_px": 1}),
        ("window_fits_every_image", {"clipped_low_share": 0.51}),
        ("window_fits_every_image", {"clipped_high_share": 1.0}),
        ("every_image_shows_a_track", {"bright_inside": 0}),
    ],
)
def test_more_than_one_image_in_a_hundred(alarm: str, changed: dict[str, float]) -> None:
    table = rows()  # 240 images: two are borne, three are not
    for column, value in changed.items():
        table.loc[[0, 1], column] = value
    assert raised(table) == {}
    [finding] = [finding for a, finding in audit(table) if a.name == alarm]
    assert [index for index, _ in finding.offenders] == [0, 1]
    for column, value in changed.items():
        table.loc[2, column] = value
    assert set(raised(table)) == {alarm}
    assert "3 of 240 images" in raised(table)[alarm]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_type_that_is_rare_in_a_split(split: str) -> None:
    table = rows()
    rare = table.index[(table["recoil_type"] == "nuclear") & (table["split"] == split)]
    table = table.drop(rare[:21])  # 19 of 40 are left
    assert set(raised(table)) == {"both_types_are_there"}
    assert f"{split} 19 nuclear and 40 electronic" in raised(table)["both_types_are_there"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_images(split: str) -> None:
    table = rows()
    table = table.drop(table.index[table["split"] == split])
    assert set(raised(table)) == {"both_types_are_there"}
    assert f"{split} 0 nuclear and 0 electronic" in raised(table)["both_types_are_there"]
    table.attrs["split_rule"][f"{split}_share"] = 0
    assert (set(raised(table)) == set()) == (split != "train")


def test_a_type_that_is_rare_in_an_energy_fold() -> None:
    """So that a fold's score is not that of one recoil type."""
    table = rows()
    low = table["energy_kev"] == 3
    table["energy_fold"] = low.map({True: "below 5 keV", False: "from 5 keV"})
    assert raised(table) == {}
    # Still as many of each in all splits, and the energy tells half.
    swapped = low & (table["recoil_type"] == "nuclear") & table["path"].str.contains("[0-5][.]")
    table.loc[swapped, "energy_fold"] = "from 5 keV"
    said = raised(table)
    assert set(said) == {"both_types_are_there"}
    assert set(said["both_types_are_there"].split("; ")[3:]) == {
        "below 5 keV 24 nuclear and 60 electronic",
        "from 5 keV 96 nuclear and 60 electronic",
    }


def test_offenders_are_listed_with_what_is_wrong() -> None:
    table = rows()
    table.loc[5, "saturated_px"] = 7
    table.index = table.index + 1000  # whatever the rows are numbered by
    listed = offenders_table(table, audit(table))
    assert list(listed.columns) == [column.name for column in OFFENDER_COLUMNS]
    [row] = listed.to_dict("records")
    assert row == {
        "alarm": "no_image_is_saturated",
        "path": "nuclear/3/5.png",
        "recoil_type": "nuclear",
        "energy_kev": 3.0,
        "split": "test",
        "detail": "7 pixels of 255 ADU",
    }
    assert offenders_table(rows(), audit(rows())).empty


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([1.0, 3.0, 6.0])), min_size=1))
def test_any_set_can_be_audited(labels: list[tuple[bool, float]]) -> None:
    table = rows().iloc[: len(labels)].reset_index(drop=True)
    labels = labels[: len(table)]
    table["recoil_type"] = ["nuclear" if nuclear else "electronic" for nuclear, _ in labels]
    table["energy_kev"] = [energy for _, energy in labels]
    assert 0.5 <= accuracy_by_energy(table) <= 1
    assert len(audit(table)) == len(ALARMS)


def of_labels(labels: dict[tuple[str, float], int]) -> pd.DataFrame:
    rows = [label for label, count in labels.items() for _ in range(count)]
    return pd.DataFrame(rows, columns=["recoil_type", "energy_kev"])


def both(nuclear: dict[float, int], electronic: dict[float, int]) -> pd.DataFrame:
    return of_labels(
        {("nuclear", energy): images for energy, images in nuclear.items()}
        | {("electronic", energy): images for energy, images in electronic.items()}
    )


@pytest.mark.parametrize(
    ("table", "accuracy"),
    [
        pytest.param(of_labels(POPULATION), 600 / 612, id="the standard set"),
        pytest.param(both({6: 100}, {6: 100}), 0.5, id="balanced at one energy"),
        pytest.param(both({3: 50, 6: 50}, {3: 50, 6: 50}), 0.5, id="balanced at two"),
        pytest.param(both({3: 51, 6: 49}, {3: 50, 6: 50}), 0.5, id="but for one image"),
        pytest.param(both({6: 101}, {6: 100}), 0.5, id="one energy, another number"),
        pytest.param(both({3: 60, 6: 40}, {3: 40, 6: 60}), 0.6, id="60 to 40"),
        pytest.param(both({3: 600, 6: 400}, {3: 40, 6: 60}), 0.6, id="60 to 40, a rare type"),
        pytest.param(both({3: 50, 6: 50}, {3: 50, 10: 50}), 0.75, id="one energy of two"),
        pytest.param(
            both(
                dict.fromkeys(range(50), 1),
                dict.fromkeys(range(50, 100), 1),
            ),
            0.5,
            id="each energy once",
        ),
        pytest.param(both({6: 91}, {3: 9}), 1.0, id="a rare type at its own energy"),
        pytest.param(both({3: 910, 6: 910}, {3: 90, 6: 90}), 0.5, id="a rare type at all"),
        pytest.param(both({6: 91}, {}), 0.5, id="one type"),
    ],
)
def test_how_often_the_energy_tells_the_type(table: pd.DataFrame, accuracy: float) -> None:
    assert accuracy_by_energy(table) == pytest.approx(accuracy)


def test_many_images_that_are_alike_are_said_shortly() -> None:
    table = rows(each=500)
    table["tensor_sha256"] = "blank"
    listed = offenders_table(table, audit(table))
    two_labels = listed[listed["alarm"] == "no_tensor_has_two_labels"]
    assert len(two_labels) == 2000
    assert set(two_labels["detail"]) == {
        (
            "2000 images with the same tensor: 500 × electronic 10, 500 × electronic 3, "
            "500 × nuclear 10, 500 × nuclear 3"
        )
    }
