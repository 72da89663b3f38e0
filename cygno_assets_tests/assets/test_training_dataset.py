"""From an archive to what a model is trained on, and to what the audit says of it.

Each alarm is raised by an archive that was made for it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from dagster import AssetKey

from cygno_assets import load_training
from cygno_assets.names import TRAINING_ASSETS, TRAINING_CELLS
from cygno_assets.physics.images import decode_image, preprocess
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.settings import load_settings
from cygno_assets.storage.locations import data_root
from cygno_assets.training.audit import ALARMS
from cygno_assets_tests.assets.detector import Detector, reason
from cygno_assets_tests.assets.training_side import AFTER, CELLS, TOTALS, shown_picture
from cygno_assets_tests.training.archives import ROOT, cell, png, simulated_png, write_archive
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cygno_assets.daq.simulator.bucket import BucketSettings
    from cygno_assets_tests.assets.training_side import TrainingSide

DATASET = ("training_splits", "training_dataset", "training_audit")
BOTH = {**cell("NR/6_keV", *range(1, 41, 2)), **cell("ER/6_keV", *range(2, 41, 2))}
"""As many of each type at one energy."""


@pytest.fixture
def detector(daq_bucket: BucketSettings, inbox_url: str, side: TrainingSide) -> Iterator[Detector]:
    """A live side in the same home."""
    return Detector(daq_bucket, inbox_url, side.home, side.instance)


def test_the_same_bytes_make_the_same_tensor_live_and_in_training(
    side: TrainingSide, detector: Detector
) -> None:
    """Through both pipelines, from announcement and from archive, to the last bit."""
    images = {file.stem: file.read_bytes() for file in REAL_IMAGES}
    side.all({f"{ROOT}/NR/6_keV/{name}.jpg": data for name, data in images.items()})
    training = load_training()
    assert len(training) == len(images)
    for row, tensor in zip(training.rows.itertuples(), training.tensors, strict=True):
        event = row.path.rpartition("/")[2].removesuffix(".jpg")
        assert detector.announce(images[event]) == event
        assert detector.run(event).success
        live = np.load(detector.tensor_file(event))
        assert live.dtype == tensor.dtype
        assert live.tobytes() == tensor.tobytes()
        shown = detector.metadata(AssetKey("preprocessed_tensor"), event)
        assert shown["spec_hash"] == training.spec_hash == row.spec_hash


def test_the_dataset_is_loaded_in_two_lines(side: TrainingSide) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no training_dataset in file:.* yet"):
        load_training()
    side.all(BOTH)
    everything, train = load_training(), load_training("train")
    assert len(everything) == 40
    assert everything.labels.sum() == 20
    spec = PreprocessSpec()
    for row, tensor in zip(everything.rows.itertuples(), everything.tensors, strict=True):
        image = decode_image(BOTH[row.path], max_pixels=10**6)
        assert np.array_equal(tensor, preprocess(image, spec))
        assert (row.recoil_type == "nuclear") == ("/NR/" in row.path)
    assert 0 < len(train) < 40
    assert set(train.rows["split"]) == {"train"}
    for place in (side.home / "data", f"{side.home}/data", (side.home / "data").as_uri()):
        assert load_training("train", data=place).rows.equals(train.rows)
    with pytest.raises(ValueError, match="split = 'dev'"):
        load_training("dev")  # type: ignore[arg-type]


def test_the_table_is_there_for_pandas_too_and_the_web_ui_says_how_it_is_divided(
    side: TrainingSide,
) -> None:
    side.all(BOTH)
    frame = pd.read_parquet(side.home / "data" / "training_dataset.parquet")
    assert np.stack(frame["tensor"].iloc[0]).shape == (128, 128)
    shown = side.metadata("training_dataset")
    assert shown["dagster/row_count"] == 40
    assert shown["splits_hash"] == load_training().splits_hash
    archive = hashlib.sha256(side.archive.read_bytes()).hexdigest()
    assert shown["archive_sha256"] == load_training().rows.attrs["archive_sha256"] == archive
    [nuclear, electronic] = sorted(
        (record.data for record in shown["splits"].records), key=lambda row: row["recoil_type"]
    )[::-1]
    assert nuclear["recoil_type"] == "nuclear"
    assert nuclear["train"] + nuclear["validation"] + nuclear["test"] == 20
    assert sum(electronic[split] for split in ("train", "validation", "test")) == 20
    picture = shown_picture(side.metadata("training_tensors", "6keV|NR")["tensors"])
    assert picture.width >= 600


def test_adding_images_moves_none_to_another_split_or_energy_fold(side: TrainingSide) -> None:
    side.all(BOTH)
    before = belongings()
    side.all(
        {
            **BOTH,
            **cell("NR/6_keV", *range(201, 211)),
            **cell("ER/6_keV", *range(211, 212)),
            **cell("NR/5.5_keV", *range(221, 226)),
            **cell("NR/30_keV", *range(101, 121)),
        }
    )
    after = belongings()
    assert len(after) == len(before) + 36
    assert before.items() <= after.items()
    assert set(load_training().energy_folds) == {"5 to 15 keV", "from 15 keV"}


def belongings() -> dict[str, tuple[str, str]]:
    """Split and energy fold by path."""
    rows = load_training().rows
    return dict(
        zip(rows["path"], zip(rows["split"], rows["energy_fold"], strict=True), strict=True)
    )


def test_another_seed_other_shares_and_other_edges_are_settings(side: TrainingSide) -> None:
    side.all(BOTH)
    first = load_training()
    side.overrides |= {
        "split_seed": 5,
        "split_test_share": 0.5,
        "split_validation_share": 0.0,
        "energy_fold_edges_kev": (6.5,),
    }
    assert side.run(*DATASET).success
    second = load_training()
    assert second.splits_hash != first.splits_hash
    assert second.spec_hash == first.spec_hash
    assert set(second.rows["split"]) == {"train", "test"}
    assert set(second.rows["energy_fold"]) == {"below 6.5 keV"}


def test_tensors_of_another_specification_are_not_mixed_in(side: TrainingSide) -> None:
    side.all(BOTH)
    before = load_training()
    side.overrides["window_low"] = 60.0
    assert side.run("training_tensors", partition="6keV|NR").success
    failed = side.run("training_dataset")
    assert "cannot be put into a dataset of" in reason(failed)
    assert not [event for event in failed.all_events if event.is_step_up_for_retry]
    assert load_training().spec_hash == before.spec_hash
    side.backfill()
    assert side.run("training_dataset").success
    assert load_training().spec_hash == PreprocessSpec(window_low=60.0).hash
    assert load_training().splits_hash == before.splits_hash


def test_tensors_of_another_archive_are_not_mixed_in(side: TrainingSide) -> None:
    side.all(BOTH)
    path = next(iter(BOTH))
    write_archive(side.archive, {**BOTH, path: simulated_png(200)})
    assert side.run("training_archive").success
    failed = side.run("training_tensors", partition="6keV|NR")
    assert reason(failed) == (
        "ground_truth of 6keV|NR was made from another archive; materialize it again"
    )
    assert reason(side.run("training_dataset")) == (
        "training_tensors of 6keV|NR were made from another archive, or by another version; "
        "materialize them again"
    )
    side.backfill()
    assert "training_splits knows no such image" in reason(side.run("training_dataset"))
    assert side.run(*TOTALS, *DATASET).success
    assert len(load_training()) == len(BOTH)


def test_a_cell_that_is_gone_is_said(side: TrainingSide) -> None:
    side.all(BOTH)
    file = side.home / "data" / "training_tensors" / "6keV" / "NR.parquet"
    file.write_bytes(b"PAR1")
    failed = side.run("training_dataset")
    assert reason(failed) == "training_tensors of 6keV|NR are not there, or damaged"
    (side.home / "data" / "training_dataset.parquet").unlink()
    assert "training_dataset cannot be read" in reason(side.run("training_audit"))


def test_an_image_smaller_than_the_crop_fails_its_cells_tensors_by_name(side: TrainingSide) -> None:
    small = f"{ROOT}/NR/6_keV/small.png"
    write_archive(side.archive, {**BOTH, small: png(np.zeros((100, 100), np.uint8))})
    assert side.run("training_archive").success
    failed = side.run(*CELLS, partition="6keV|NR")
    assert reason(failed).startswith(f"1 of 21 images refused: {small}: image of 100 × 100 pixels")


def test_of_no_images_there_is_no_dataset(side: TrainingSide) -> None:
    write_archive(side.archive, {"README": b"nothing yet"})
    assert side.run("training_archive").success
    assert side.run("unlabelled_paths", *TOTALS, "training_splits").success
    assert reason(side.run("training_dataset")) == "the training set has no images"


# What the audit says.


SIDE = 160
"""Of the images of these archives: the crop, and 16 pixels on each side."""


def noise(seed: int) -> np.ndarray:
    """Noise alone."""
    rng = np.random.default_rng(seed)
    return np.rint(rng.normal(100, 4, (SIDE, SIDE))).astype(np.uint8)


def spot(seed: int, row: int = SIDE // 2 - 4) -> np.ndarray:
    """Noise, and light in the middle of some row."""
    pixels = noise(seed)
    pixels[row : row + 8, SIDE // 2 - 4 : SIDE // 2 + 4] += 40
    return pixels


Images = dict[str, np.ndarray]


def good() -> Images:
    """Both types at one energy, light in the middle: nothing to complain of."""
    return {
        f"{ROOT}/{kind}/6_keV/{n}.png": spot(n)
        for kind, first in (("NR", 100), ("ER", 200))
        for n in range(first, first + 100)
    }


def energies_tell() -> Images:
    """Both in one energy fold, so that nothing else is wrong."""
    return {path.replace("NR/6_keV", "NR/7_keV"): pixels for path, pixels in good().items()}


def twice_with_two_labels() -> Images:
    return {**good(), f"{ROOT}/ER/6_keV/twin.png": spot(100)}


def same_crop_in_two_splits() -> Images:
    """The same inside the crop, and so the same tensor; not the same pixels, which splits go by."""
    made = good()
    for n in range(12):
        pixels = spot(1)
        pixels[0, n] += 1
        made[f"{ROOT}/NR/6_keV/again-{n}.png"] = pixels
    return made


def tracks_outside() -> Images:
    edge, outside = SIDE // 2 - 64, 0
    places = {100: edge, 101: edge, 102: outside}
    return good() | {f"{ROOT}/NR/6_keV/{n}.png": spot(n, row) for n, row in places.items()}


def saturated() -> Images:
    made = good()
    for n in (100, 101, 102):
        made[f"{ROOT}/NR/6_keV/{n}.png"][80, 80] = 255
    return made


def another_pedestal() -> Images:
    """Light as before, but too bright for the window, or too dark."""
    made = good()
    for n, shift in ((100, 14), (101, 14), (102, -23)):
        made[f"{ROOT}/NR/6_keV/{n}.png"] = (spot(n).astype(int) + shift).astype(np.uint8)
    return made


def empty() -> Images:
    return good() | {f"{ROOT}/NR/6_keV/{n}.png": noise(n) for n in (100, 101, 102)}


def one_sided() -> Images:
    return {path: pixels for path, pixels in good().items() if "/NR/6_keV/1" not in path[:-6]} | {
        path: pixels for path, pixels in good().items() if "/NR/6_keV/10" in path
    }


def archived(images: Images) -> dict[str, bytes]:
    return {path: png(pixels) for path, pixels in images.items()}


def audited(side: TrainingSide, images: Images) -> None:
    """All that the audit is made from, and nothing else."""
    write_archive(side.archive, archived(images))
    assert side.run("training_archive").success
    side.backfill()
    assert side.run("unlabelled_paths", "ground_truth_table", *DATASET).success


def alarms(side: TrainingSide) -> dict[str, tuple[bool, str]]:
    """What the checks in the web UI say."""
    return {alarm.name: side.check("training_audit", alarm.name) for alarm in ALARMS}


def test_a_good_archive_raises_no_alarm(side: TrainingSide) -> None:
    audited(side, good())
    said = alarms(side)
    assert {name: text for name, (passed, text) in said.items() if not passed} == {}
    assert said["energy_does_not_tell_the_type"][1].startswith(
        "the energy alone tells the recoil type of 50.0% of the images"
    )
    assert side.metadata("training_audit")["raised"] == 0


@pytest.mark.parametrize(
    ("alarm", "severity", "archive", "offenders"),
    [
        ("energy_does_not_tell_the_type", "WARN", energies_tell, 0),
        ("no_tensor_has_two_labels", "ERROR", twice_with_two_labels, 2),
        ("no_tensor_is_in_two_splits", "ERROR", same_crop_in_two_splits, 12),
        ("tracks_are_inside_the_crop", "WARN", tracks_outside, 3),
        ("no_image_is_saturated", "WARN", saturated, 3),
        ("window_fits_every_image", "WARN", another_pedestal, 3),
        ("every_image_shows_a_track", "WARN", empty, 3),
        ("both_types_are_there", "WARN", one_sided, 0),
    ],
)
def test_an_archive_made_for_it_raises_the_alarm_and_no_other(
    side: TrainingSide,
    alarm: str,
    severity: str,
    archive: Callable[[], Images],
    offenders: int,
) -> None:
    audited(side, archive())
    said = {name: text for name, (passed, text) in alarms(side).items() if not passed}
    assert set(said) == {alarm}, said
    text = said[alarm]
    assert check_severity(side, alarm) == severity
    table = pd.read_parquet(side.home / "data" / "training_audit.parquet")
    mine = table[table["alarm"] == alarm]
    assert len(mine) == offenders
    assert set(mine["path"]) <= set(archive())
    shown = side.metadata("training_audit")
    [row] = [r.data for r in shown["alarms"].records if r.data["alarm"] == alarm]
    assert (row["passed"], row["severity"], row["found"]) == ("no", severity, text)
    if offenders:
        picture = shown_picture(shown[alarm])
        assert picture.size == (150 * min(offenders, 6), 180)

    audited(side, good())
    assert side.check("training_audit", alarm)[0]


def check_severity(side: TrainingSide, name: str) -> str:
    from dagster import AssetCheckKey

    [record] = side.instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(AssetKey("training_audit"), name), limit=1
    )
    assert record.event is not None
    assert record.event.dagster_event is not None
    return str(record.event.dagster_event.asset_check_evaluation_data.severity.value)


def test_every_alarm_is_raised_by_an_archive_of_its_own() -> None:
    [marker] = [
        mark
        for mark in test_an_archive_made_for_it_raises_the_alarm_and_no_other.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    ]
    assert {case[0] for case in marker.args[1]} == {alarm.name for alarm in ALARMS}


@pytest.mark.parametrize(
    ("other", "why"),
    [(None, "100.png"), (noise(1), "100.png: other pixels")],
    ids=["gone", "other"],
)
def test_an_audit_that_does_not_fit_its_archive_is_said(
    side: TrainingSide, other: np.ndarray | None, why: str
) -> None:
    images = empty()
    audited(side, images)
    del images[f"{ROOT}/NR/6_keV/100.png"]
    if other is not None:
        images[f"{ROOT}/NR/6_keV/100.png"] = other
    write_archive(side.archive, archived(images))
    assert side.run("training_archive").success
    said = reason(side.run("training_audit"))
    assert "the archive does not fit training_dataset" in said
    assert why in said


def test_it_all_works_on_s3_too_and_says_where_it_is_stored(
    side: TrainingSide, store_bucket: BucketSettings
) -> None:
    side.overrides |= {
        "storage_url": f"s3://{store_bucket.bucket}/dataset",
        "storage_s3_endpoint": store_bucket.endpoint,
        "storage_s3_access_key_id": store_bucket.access_key_id,
        "storage_s3_secret_access_key": store_bucket.secret_access_key,
        "storage_s3_ca_file": store_bucket.ca_file,
    }
    side.all(BOTH)
    assert not (side.home / "data").exists()
    bucket = data_root(load_settings(side.overrides)).fs
    for stored in _stored(side):
        assert stored.startswith(f"s3://{store_bucket.bucket}/dataset/")
        assert bucket.isfile(stored)
    on_s3 = loaded_with(side.overrides)
    side.overrides.clear()
    side.all(BOTH)
    for stored in _stored(side):
        assert Path(stored).is_file()
        assert Path(stored).is_relative_to(side.home / "data")
    local = load_training()
    assert np.array_equal(on_s3.tensors, local.tensors)
    pd.testing.assert_frame_equal(on_s3.rows, local.rows)
    assert AFTER[-3:] == DATASET


def _stored(side: TrainingSide) -> list[str]:
    """Where the web UI says that each asset of the training set, or its first cell, is stored."""
    first = side.cells[0]
    paths = {
        key: side.metadata(key.to_user_string(), first if key in TRAINING_CELLS else None)["path"]
        for key in TRAINING_ASSETS
    }
    assert len(set(paths.values())) == len(TRAINING_ASSETS)
    return [*paths.values(), side.metadata("training_dataset")["tensors_path"]]


def loaded_with(overrides: Mapping[str, Any]) -> Any:
    """`load_training` where the environment has these settings."""
    from cygno_assets.settings import environment_name

    with pytest.MonkeyPatch.context() as patched:
        for name, value in overrides.items():
            patched.setenv(environment_name(name), str(value))
        return load_training()
