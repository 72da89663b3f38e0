"""What is wrong with a training set: alarms, each with the images it is about.

Here belong what is asked of a set and how much is allowed; what is measured of each image is
training/tensors.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cygno_assets.physics.splits import SPLITS
from cygno_assets.storage.tables import table_of
from cygno_assets.training.tables import OFFENDER_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd


CODE_VERSION = "2"
"""Of the alarms: raised when the same rows would raise others."""

Severity = Literal["ERROR", "WARN"]

MAX_GAIN_BY_ENERGY = 0.1
"""Of balanced accuracy: how much better than guessing the energy may tell the recoil type."""
MAX_SHARE_OF_IMAGES = 0.01
"""One image in a hundred: what a model can bear of odd ones."""
MAX_CLIPPED_SHARE = 0.5
"""Of an image's crop, on one side of the window: with more, most of what a model sees is 0 or 1."""
MIN_RATIO_OF_TYPES = 0.5
"""Of a split or an energy fold: of images of the rarer recoil type to those of the other."""


@dataclass(frozen=True)
class Finding:
    """What an alarm found.

    Attributes:
        passed: nothing to worry about.
        says: in a line, with the numbers.
        offenders: index of the rows it is about, and what is wrong with each.
    """

    passed: bool
    says: str
    offenders: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Alarm:
    """One thing that is asked of a training set.

    Attributes:
        name: what is asked, as a check's name.
        severity: ERROR makes scores wrong; WARN is to be known.
        what: must be true, in words.
        look: at the rows of a dataset (DATASET_COLUMNS and its `attrs`), which are at least one.
    """

    name: str
    severity: Severity
    what: str
    look: Callable[[pd.DataFrame], Finding]


def audit(rows: pd.DataFrame) -> list[tuple[Alarm, Finding]]:
    """Looks at a dataset for each alarm.

    Args:
        rows: of the dataset, DATASET_COLUMNS and its `attrs`; at least one.
    """
    rows = rows.reset_index(drop=True)
    return [(alarm, alarm.look(rows)) for alarm in ALARMS]


def offenders_table(rows: pd.DataFrame, found: Sequence[tuple[Alarm, Finding]]) -> pd.DataFrame:
    """All that an audit found of single images.

    Args:
        rows: those that were audited.
        found: what `audit` found in them.

    Returns:
        OFFENDER_COLUMNS: a row for each image and alarm, alarms in their order.
    """
    columns = [column.name for column in OFFENDER_COLUMNS[1:-1]]
    records = rows.reset_index(drop=True)[columns]
    return table_of(
        OFFENDER_COLUMNS,
        [
            (alarm.name, *records.iloc[index], detail)
            for alarm, finding in found
            for index, detail in finding.offenders
        ],
    )


def accuracy_by_energy(rows: pd.DataFrame) -> float:
    """How often the recoil type is told right by the energy alone; 0.5 is guessing.

    Of an energy that tells something, one guesses the type with the larger share of its own images
    there. That is the best there is, with a balanced accuracy of (1 + V) / 2, where V is half the
    sum over all energies of the difference of both shares (their total variation). An energy tells
    nothing if the type would not be ahead with one image less: neither one that occurs once, nor
    one where both types are as frequent but for chance's last image.

    It is what this set's own energies tell of itself: where each has but a few images, chance alone
    makes it larger than 0.5.

    Args:
        rows: an image each, with `recoil_type` and `energy_kev` (keV).

    Returns:
        Balanced accuracy, in [0.5, 1]: the mean of the two types' shares told right, so that a rare
        type counts as much as a common one. Of a set of one type, 0.5.
    """
    counts = rows.groupby(["energy_kev", "recoil_type"]).size().unstack(fill_value=0)
    if counts.shape[1] < 2:
        return 0.5
    one, other = (counts[kind] for kind in counts)
    ones, others = one.sum(), other.sum()
    # In whole numbers, so that a tie is one.
    tells = ((one - 1) * others > other * ones) | ((other - 1) * ones > one * others)
    difference = (one / ones - other / others).abs()
    return 0.5 + float(difference[tells].sum()) / 4


def _energy(rows: pd.DataFrame) -> Finding:
    accuracy = accuracy_by_energy(rows)
    return Finding(
        accuracy <= 0.5 + MAX_GAIN_BY_ENERGY,
        f"the energy alone tells the recoil type of {accuracy:.1%} of the images (both types "
        "counting alike), guessing of 50.0%",
    )


def _one_of(column: str, what: str) -> Callable[[pd.DataFrame], Finding]:
    """Images that a model cannot tell apart have the same value in this column."""

    def look(rows: pd.DataFrame) -> Finding:
        offenders = []
        for _, alike in _alike(rows):
            counts = Counter(str(value) for value in alike[column])
            if len(counts) > 1:
                each = ", ".join(f"{count} × {value}" for value, count in sorted(counts.items()))
                detail = f"{len(alike)} images with the same tensor: {each}"
                offenders += [(int(index), detail) for index in alike.index]
        return Finding(not offenders, f"{len(offenders)} images are in {what}", offenders)

    return look


def _alike(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    labelled = rows.assign(label=rows["recoil_type"] + " " + rows["energy_kev"].map("{:g}".format))
    repeated = labelled[labelled.duplicated("tensor_sha256", keep=False)]
    for digest, alike in repeated.groupby("tensor_sha256"):
        yield str(digest), alike


def _share(
    what: str, offends: Callable[[pd.DataFrame], pd.Series[bool]], detail: str
) -> Callable[[pd.DataFrame], Finding]:
    """At most MAX_SHARE_OF_IMAGES offend; `detail` is filled in with the offender's row."""

    def look(rows: pd.DataFrame) -> Finding:
        offenders = rows[offends(rows)]
        return Finding(
            len(offenders) <= MAX_SHARE_OF_IMAGES * len(rows),
            f"{len(offenders)} of {len(rows)} images {what} ({len(offenders) / len(rows):.1%}; "
            f"{MAX_SHARE_OF_IMAGES:.0%} allowed)",
            [
                (int(str(index)), detail.format_map(row))
                for index, row in offenders.to_dict("index").items()
            ],
        )

    return look


def _balance(rows: pd.DataFrame) -> Finding:
    """The types' ratio in each split, and in each energy fold that has images."""
    rule = rows.attrs["split_rule"]
    wanted = {"validation": rule["validation_share"] > 0, "test": rule["test_share"] > 0}
    splits = [split for split in SPLITS if wanted.get(split, True)]
    folds = rows.sort_values("energy_kev")["energy_fold"].unique()
    said, passed = [], True
    for column, part in [
        *(("split", split) for split in splits),
        *(("energy_fold", fold) for fold in folds),
    ]:
        kinds = rows[rows[column] == part]["recoil_type"]
        nuclear, electronic = int((kinds == "nuclear").sum()), int((kinds == "electronic").sum())
        said.append(f"{part} {nuclear} nuclear and {electronic} electronic")
        rarer, other = sorted((nuclear, electronic))
        passed = passed and other > 0 and MIN_RATIO_OF_TYPES * other <= rarer
    return Finding(passed, "; ".join(said))


ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "energy_does_not_tell_the_type",
        "WARN",
        "Knowing the energy alone, one tells the recoil type hardly better than by guessing "
        f"(by at most {MAX_GAIN_BY_ENERGY:.0%} of the images, both types counting alike). If it is "
        "not so, a model may learn energies instead of shapes: judge it by leaving energies out.",
        _energy,
    ),
    Alarm(
        "no_tensor_has_two_labels",
        "ERROR",
        "Images that a model cannot tell apart have the same recoil type and energy.",
        _one_of("label", "the set under more than one label"),
    ),
    Alarm(
        "no_tensor_is_in_two_splits",
        "ERROR",
        "Images that a model cannot tell apart are in the same split: otherwise it is tested on "
        "what it was trained on.",
        _one_of("split", "more than one split"),
    ),
    Alarm(
        "tracks_are_inside_the_crop",
        "WARN",
        "The light of an image is inside its crop, and does not touch the edge, but for "
        f"{MAX_SHARE_OF_IMAGES:.0%} of the images. What lies outside, a model never sees.",
        _share(
            "have light at the crop's edge or outside",
            lambda rows: (rows["bright_at_edge"] > 0) | (rows["bright_outside"] > 0),
            "bright squares: {bright_inside} inside, {bright_at_edge} of them at the edge, "
            "{bright_outside} outside",
        ),
    ),
    Alarm(
        "no_image_is_saturated",
        "WARN",
        f"No pixel has 255 ADU, the most there is, but in {MAX_SHARE_OF_IMAGES:.0%} of the images.",
        _share(
            "have saturated pixels",
            lambda rows: rows["saturated_px"] > 0,
            "{saturated_px} pixels of 255 ADU",
        ),
    ),
    Alarm(
        "window_fits_every_image",
        "WARN",
        f"At most {MAX_CLIPPED_SHARE:.0%} of the crop's pixels lie on one side of the window, but "
        f"for {MAX_SHARE_OF_IMAGES:.0%} of the images. Of the others a model sees little but 0 or "
        "1: another pedestal, or no image of this camera.",
        _share(
            "lie mostly outside the window",
            lambda rows: (
                (rows["clipped_low_share"] > MAX_CLIPPED_SHARE)
                | (rows["clipped_high_share"] > MAX_CLIPPED_SHARE)
            ),
            "{clipped_low_share:.0%} of the crop's pixels below the window, "
            "{clipped_high_share:.0%} above",
        ),
    ),
    Alarm(
        "every_image_shows_a_track",
        "WARN",
        "Something in the crop stands out from the noise, but for "
        f"{MAX_SHARE_OF_IMAGES:.0%} of the images.",
        _share(
            "show no track in the crop",
            lambda rows: rows["bright_inside"] == 0,
            "no square of the crop is bright",
        ),
    ),
    Alarm(
        "both_types_are_there",
        "WARN",
        "In each split that has a share, and in each range of energies that is left out together, "
        "the rarer recoil type has at least half the images of the other, and there are any.",
        _balance,
    ),
)
"""In the order they are shown."""
