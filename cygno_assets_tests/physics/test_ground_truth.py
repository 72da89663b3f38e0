"""From paths to labels."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygno_assets.physics.ground_truth import (
    Label,
    UnlabelledPathError,
    energy_key,
    label_of,
)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("data/export/train/NR/6_keV/cygno-0001.png", Label("nuclear", 6.0)),
        ("data/export/train/ER/30_keV/cygno-0611.png", Label("electronic", 30.0)),
        ("NR/0.5_keV/a.PNG", Label("nuclear", 0.5)),
        ("x/ER/1e1_keV/a.jpeg", Label("electronic", 10.0)),
    ],
)
def test_the_schools_paths_have_their_labels(path: str, label: Label) -> None:
    assert label_of(path) == label


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("data/export/train/NR/6_keV/notes.txt", "suffix '.txt' is no image's"),
        ("data/export/train/NR/6_keV/cygno-0001", "suffix '' is no image's"),
        ("data/export/train/XR/6_keV/a.png", "folder 'XR' is neither NR nor ER"),
        ("data/export/train/nr/6_keV/a.png", "folder 'nr' is neither NR nor ER"),
        ("6_keV/a.png", "folder '' is neither NR nor ER"),
        ("a.png", "folder '' is neither NR nor ER"),
        ("NR/6_MeV/a.png", "folder '6_MeV' is not <energy>_keV"),
        ("NR/6keV/a.png", "folder '6keV' is not <energy>_keV"),
        ("NR/six_keV/a.png", "energy 'six' is no number"),
        ("NR/_keV/a.png", "energy '' is no number"),
        ("NR/0_keV/a.png", "energy '0' is not above 0"),
        ("NR/-3_keV/a.png", "energy '-3' is not above 0"),
        ("NR/nan_keV/a.png", "energy 'nan' is not above 0"),
        ("NR/inf_keV/a.png", "energy 'inf' is not above 0"),
    ],
)
def test_a_path_that_fits_no_rule_says_which_part_does_not(path: str, why: str) -> None:
    with pytest.raises(UnlabelledPathError) as refused:
        label_of(path)
    assert str(refused.value) == why


@given(st.text())
def test_any_text_has_a_label_or_the_named_error(path: str) -> None:
    with contextlib.suppress(UnlabelledPathError):
        assert label_of(path).energy_kev > 0


@given(st.floats(0.001, 1e6))
def test_a_label_is_what_its_path_was_made_of(energy_kev: float) -> None:
    assert label_of(f"NR/{energy_kev!r}_keV/a.png") == Label("nuclear", energy_kev)


def test_equal_energies_have_equal_keys() -> None:
    assert energy_key(6) == energy_key(6.0) == energy_key(float("6.000")) == "6keV"
    assert energy_key(0.5) == "0.5keV"
