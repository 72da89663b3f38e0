"""The audit of the standard simulated set, which docs/training-a-model.md explains: same numbers.

Through all but Dagster: archive, survey, tensors, splits, dataset.
"""

from __future__ import annotations

from functools import partialmethod
from typing import TYPE_CHECKING

import PIL.Image

from cygno_assets.daq.simulator.training_set import write_training_set
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.physics.splits import SplitSpec
from cygno_assets.settings import CHECKOUT, load_settings
from cygno_assets.storage.locations import data_root
from cygno_assets.training.archive import Archive
from cygno_assets.training.audit import audit, offenders_table
from cygno_assets.training.dataset import read_dataset, write_dataset
from cygno_assets.training.splits import make_manifest
from cygno_assets.training.survey import labelled, survey
from cygno_assets.training.tables import ground_truth_rows
from cygno_assets.training.tensors import make_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SPEC, MAX_PIXELS = PreprocessSpec(), 10**6


def test_the_audit_of_the_standard_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # To compress 612 images takes most of the time, and changes no pixel.
    stored = partialmethod(PIL.Image.Image.save, compress_level=0)
    monkeypatch.setattr(PIL.Image.Image, "save", stored)
    file, root = tmp_path / "set.zip", data_root(load_settings({"home": tmp_path}))
    assert sum(1 for _ in write_training_set(file, 0)) == 612
    with Archive(file) as archive:
        labels = labelled(archive.members)[0]
        truth = ground_truth_rows(survey(archive, labels, max_pixels=MAX_PIXELS).images)
        tensors = make_tensors(archive, truth, SPEC, max_pixels=MAX_PIXELS)
        (tmp_path / "data").mkdir()
        write_dataset(root, make_manifest(truth, SplitSpec()), tensors, SPEC.hash, SPEC.side)
    rows = read_dataset(root).rows
    found = audit(rows)
    raised = {alarm.name: finding.says for alarm, finding in found if not finding.passed}
    offenders = offenders_table(rows, found)
    assert raised == {
        "energy_does_not_tell_the_type": "the energy alone tells the recoil type of 98.0% of the "
        "images (both types counting alike), guessing of 50.0%",
        "tracks_are_inside_the_crop": "60 of 612 images have light at the crop's edge or outside "
        "(9.8%; 1% allowed)",
        "every_image_shows_a_track": "101 of 612 images show no track in the crop "
        "(16.5%; 1% allowed)",
    }
    of = offenders.groupby(["alarm", "recoil_type", "energy_kev"]).size()
    assert {key: int(images) for key, images in of.items()} == {
        ("tracks_are_inside_the_crop", "electronic", 30.0): 60,
        ("every_image_shows_a_track", "electronic", 1.0): 2,
        ("every_image_shows_a_track", "nuclear", 1.0): 99,
    }
    document = (CHECKOUT / "docs" / "training-a-model.md").read_text()
    for said in ("98.0 % by energy", "60 of 612, all electrons of 30 keV", "101 of 612, all of 1"):
        assert said in document
