from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from cygno_assets.daq.simulator.training_set import POPULATION, member_count, write_training_set
from cygno_assets.physics.ground_truth import label_of
from cygno_assets.training.archive import Archive

if TYPE_CHECKING:
    from pathlib import Path


def test_it_has_the_layout_and_population_of_the_schools(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    written = list(write_training_set(path, 5))
    assert len(written) == member_count() == 612
    assert 100e6 < path.stat().st_size < 120e6  # the school's has about 110 MB
    with Archive(path) as archive:
        assert archive.members == written
        labels = [label_of(member) for member in archive.members]
        population = Counter((label.recoil_type, label.energy_kev) for label in labels)
        assert population == POPULATION
        crossing = sum(
            count
            for (recoil_type, energy), count in population.items()
            if (recoil_type == "nuclear") != (energy in {1, 6, 20})
        )
        assert 0 < crossing < 20
        for member in archive.members[::100]:
            image = Image.open(io.BytesIO(archive.read(member)))
            assert (image.format, image.mode, image.size) == ("PNG", "L", (576, 576))


def test_same_seed_same_bytes_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cygno_assets.daq.simulator.training_set.POPULATION",
        {("nuclear", 6.0): 2, ("electronic", 0.5): 1},
    )
    files = [tmp_path / name for name in ("a.zip", "b.zip", "c.zip")]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        assert len(list(write_training_set(path, seed, copies=2))) == 6
    a, b, c = (path.read_bytes() for path in files)
    assert a == b
    assert a != c
    half = write_training_set(tmp_path / "half.zip", 1)
    next(half)
    half.close()
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize(("copies", "folder"), [(0, "."), (1, "missing")])
def test_what_cannot_be_written_is_refused(tmp_path: Path, copies: int, folder: str) -> None:
    with pytest.raises(ValueError, match=r"copies = 0|its folder does not exist"):
        next(write_training_set(tmp_path / folder / "set.zip", 1, copies=copies))
