"""The training set's assets, run in this process on archives with something wrong in them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.names import TRAINING_ASSETS, TRAINING_FIGURES
from cygno_assets.records.history import failed_training_runs, training_state
from cygno_assets.training import decode, fetch, survey
from cygno_assets.training.archive import Archive
from cygno_assets_tests.assets.detector import reason
from cygno_assets_tests.assets.training_side import (
    AFTER,
    CELLS,
    TOTALS,
    TrainingSide,
    pixels_of,
    shown_picture,
)
from cygno_assets_tests.training.archives import ROOT, cell, png, simulated_png, write_archive
from cygno_assets_tests.wire import REAL_IMAGES

ALL = TRAINING_ASSETS
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)
SET = {**cell("NR/6_keV", 1, 3, 5), **cell("ER/6_keV", 2), **cell("ER/0.5_keV", 4)}


def test_from_an_archive_to_its_table_histogram_window_and_figures(side: TrainingSide) -> None:
    missing, *counts = training_state(side.instance, BEFORE)
    assert set(missing) == {key.to_user_string() for key in ALL}
    assert counts == [0, 0]
    side.all(SET)

    assert set(side.cells) == {"0.5keV|ER", "0.5keV|NR", "6keV|ER", "6keV|NR"}
    assert training_state(side.instance, BEFORE) == ([], 4, 4)
    assert training_state(side.instance, datetime.now(UTC)) == (["training_archive"], 4, 4)
    table = side.table()
    assert list(table["path"]) == sorted(SET)
    for row in table.itertuples(index=False):
        pixels = pixels_of(SET[row.path])
        assert row.file_name == row.path.rpartition("/")[2]
        assert row.recoil_type == ("nuclear" if "/NR/" in row.path else "electronic")
        assert row.energy_kev == (0.5 if "/0.5_keV/" in row.path else 6.0)
        assert (row.height_px, row.width_px) == pixels.shape
        assert row.pixel_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert side.check("ground_truth_table", "every_file_is_accounted_for") == (
        True,
        "5 files in the archive: 5 with ground truth, 0 without a label",
    )
    population = side.metadata("ground_truth_table")["population"].records
    assert [record.data for record in population] == [
        {"energy_kev": 0.5, "nuclear": 0, "electronic": 1},
        {"energy_kev": 6.0, "nuclear": 3, "electronic": 1},
    ]

    together = np.concatenate([pixels_of(data).ravel() for data in SET.values()])
    total = side.json("dataset_pixel_histogram.json")
    assert total["counts"] == np.bincount(together, minlength=256).tolist()
    shown = side.metadata("dataset_pixel_histogram")
    assert (shown["images"], shown["pixels"]) == (5, together.size)
    assert (shown["cells"], shown["empty_cells"]) == (4, 1)
    assert shown["mean_adu"] == pytest.approx(together.mean(), abs=1e-4)
    assert shown["sd_adu"] == pytest.approx(together.std(), abs=1e-4)
    median = int(np.quantile(together, 0.5, method="inverted_cdf"))
    assert f"50.0%: {median}," in shown["quantiles_adu"]

    window = side.json("suggested_window.json")
    low, high = window["window_low_adu"], window["window_high_adu"]
    assert window["clipped_low_share"] == np.mean(together < low) <= 0.001
    assert window["clipped_high_share"] == np.mean(together > high) <= 0.001
    rows = [record.data for record in side.metadata("suggested_window")["windows"].records]
    assert [(row["which"], row["low_adu"], row["high_adu"]) for row in rows] == [
        ("suggested", low, high),
        *(("in use", 80, 110), ("known", 60, 130), ("known", 98, 105), ("known", 50, 200)),
    ]
    assert rows[1]["clipped_high"] == f"{np.mean(together > 110):.4%}"

    for asset, name in [
        ("dataset_pixel_histogram", "plot"),
        ("ground_truth_table", "population_plot"),
        *((figure.to_user_string(), "figure") for figure in TRAINING_FIGURES),
    ]:
        picture = shown_picture(side.metadata(asset)[name])
        assert picture.width >= 600
    for figure in TRAINING_FIGURES:
        Image.open(side.home / "data" / f"{figure.to_user_string()}.png").verify()


def test_an_empty_cell_is_zero_images_and_not_a_gap(side: TrainingSide) -> None:
    side.all(SET)
    shown = side.metadata("pixel_histogram", "0.5keV|NR")
    assert (shown["images"], shown["pixels"]) == (0, 0)
    assert "mean_adu" not in shown
    assert shown_picture(shown["plot"]).width >= 600
    assert side.json("pixel_histogram/0.5keV/NR.json")["counts"] == [0] * 256
    assert pd.read_parquet(side.home / "data" / "ground_truth" / "0.5keV" / "NR.parquet").empty


def test_only_what_has_changed_is_decoded_again(
    side: TrainingSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.all(SET)
    before = side.json("dataset_pixel_histogram.json")
    assert side.decoded() == {"0.5keV|ER": 1, "0.5keV|NR": 0, "6keV|ER": 1, "6keV|NR": 3}
    plot = side.metadata("pixel_histogram", "6keV|NR")["plot"]

    with monkeypatch.context() as patched:
        patched.setattr(decode, "decode_image", None)  # whoever decodes, fails
        side.backfill()
    assert set(side.decoded().values()) == {0}
    assert side.metadata("pixel_histogram", "6keV|NR")["plot"] == plot
    assert side.run(*TOTALS).success
    assert side.json("dataset_pixel_histogram.json") == before

    # One image more in one cell, and a new energy.
    side.all({**SET, **cell("NR/6_keV", 7), **cell("NR/30_keV", 9)})
    assert side.decoded() == {
        "0.5keV|ER": 0,
        "0.5keV|NR": 0,
        "6keV|ER": 0,
        "6keV|NR": 4,
        "30keV|ER": 0,
        "30keV|NR": 1,
    }
    assert side.json("dataset_pixel_histogram.json")["images"] == 7
    assert len(side.table()) == 7

    # Other code.
    monkeypatch.setattr(survey, "CODE_VERSION", "another")
    side.backfill()
    assert sum(side.decoded().values()) == 7


@pytest.mark.parametrize("damage", ["ground_truth/6keV/NR.parquet", "pixel_histogram/6keV/NR.json"])
def test_a_cell_whose_files_are_gone_or_damaged_is_made_again(
    side: TrainingSide, damage: str
) -> None:
    write_archive(side.archive, SET)
    assert side.run("training_archive").success
    assert side.run(*CELLS, partition="6keV|NR").success
    file = side.home / "data" / damage
    before = file.read_bytes()
    for left in (None, b"", b"{}", b"PAR1 no more", before[:-10]):
        file.unlink() if left is None else file.write_bytes(left)
        assert side.run(*CELLS, partition="6keV|NR").success
        assert side.metadata("pixel_histogram", "6keV|NR")["decoded"] == 3
        assert file.read_bytes() == before


def test_an_energy_that_a_new_archive_lacks_becomes_empty_cells(side: TrainingSide) -> None:
    side.all(SET)
    side.all(cell("NR/6_keV", 1, 3, 5))
    assert "0.5keV|ER" in side.cells
    assert side.metadata("pixel_histogram", "0.5keV|ER")["images"] == 0
    assert side.metadata("dataset_pixel_histogram")["empty_cells"] == 3
    assert side.check("ground_truth_table", "every_file_is_accounted_for")[0]


def test_what_fits_no_rule_is_kept_with_its_reason_and_raises_a_check(side: TrainingSide) -> None:
    odd = {
        "data/export/train/README.txt": b"read me",
        f"{ROOT}/XR/6_keV/a.png": simulated_png(1),
        f"{ROOT}/NR/6_MeV/a.png": simulated_png(1),
        f"{ROOT}/NR/-6_keV/a.png": simulated_png(1),
        "__MACOSX/._a.png": b"",
    }
    side.all({**SET, **odd})
    rows = pd.read_parquet(side.home / "data" / "unlabelled_paths.parquet")
    reasons = dict(zip(rows["path"], rows["reason"], strict=True))
    assert set(reasons) == set(odd)
    assert reasons[f"{ROOT}/XR/6_keV/a.png"] == "folder 'XR' is neither NR nor ER"
    assert side.check("unlabelled_paths", "every_path_has_a_label") == (
        False,
        "5 paths fit no rule",
    )
    assert side.check("ground_truth_table", "every_file_is_accounted_for") == (
        True,
        "10 files in the archive: 5 with ground truth, 5 without a label",
    )
    side.all(SET)
    assert side.check("unlabelled_paths", "every_path_has_a_label")[0]


def test_a_table_that_lacks_a_file_of_the_archive_raises_a_check(side: TrainingSide) -> None:
    side.all(SET)
    write_archive(side.archive, {**SET, **cell("NR/6_keV", 7)})
    assert side.run("training_archive").success
    assert side.run("ground_truth_table").success  # before the cells were made again
    assert not side.check("ground_truth_table", "every_file_is_accounted_for")[0]
    assert side.check("ground_truth_table", "its_rows_are_of_this_archive") == (
        False,
        "1 of 4 cells were made from another archive",
    )


def test_totals_of_two_archives_raise_a_check_even_if_all_paths_are_there(
    side: TrainingSide,
) -> None:
    side.all(SET)
    path = next(path for path in SET if "/ER/6_keV/" in path)
    write_archive(side.archive, {**SET, path: simulated_png(8)})
    assert side.run("training_archive").success
    assert side.run("unlabelled_paths", *TOTALS).success  # as if that cell had failed
    assert side.check("ground_truth_table", "every_file_is_accounted_for")[0]
    for asset, check in (
        ("ground_truth_table", "its_rows_are_of_this_archive"),
        ("dataset_pixel_histogram", "its_counts_are_of_this_archive"),
    ):
        assert not side.check(asset, check)[0]
    side.backfill()
    assert side.run(*TOTALS).success
    assert side.check("dataset_pixel_histogram", "its_counts_are_of_this_archive")[0]


def test_a_file_replaced_under_its_name_is_not_used_before_it_is_checked(
    side: TrainingSide,
) -> None:
    side.all(SET)
    write_archive(side.archive, {**SET, **cell("NR/30_keV", 9)})
    for assets, partition in ((CELLS, "6keV|NR"), (["recoils_figure"], None)):
        failed = side.run(*assets, partition=partition)
        assert "set.zip: another file); materialize training_archive again" in reason(failed)


def test_an_image_of_another_kind_fails_its_cell_by_name_and_no_other(side: TrainingSide) -> None:
    bad = f"{ROOT}/ER/6_keV/colour.png"
    write_archive(side.archive, {**SET, bad: png(np.zeros((9, 9, 3), np.uint8))})
    assert side.run("training_archive").success
    failed = side.run(*CELLS, partition="6keV|ER")
    assert reason(failed).startswith(f"1 of 2 images refused: {bad}: image is mode RGB")
    assert not [event for event in failed.all_events if event.is_step_up_for_retry]
    assert side.run(*CELLS, partition="6keV|NR").success
    [why] = failed_training_runs(side.instance, datetime.now(UTC) - timedelta(minutes=1))
    assert bad in why


def test_live_images_may_be_training_images_too(side: TrainingSide) -> None:
    side.all({f"{ROOT}/NR/6_keV/{file.name}": file.read_bytes() for file in REAL_IMAGES})
    shown = side.metadata("dataset_pixel_histogram")
    assert (shown["images"], shown["mean_adu"]) == (4, pytest.approx(99.91, abs=0.1))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>please log in</html>", "set.zip: not a zip"),
        (None, "CYGNO_TRAINING_ARCHIVE: there is no file "),
    ],
    ids=["html", "missing"],
)
def test_what_is_no_archive_is_refused_and_what_was_there_stays(
    side: TrainingSide, content: bytes | None, why: str
) -> None:
    side.all(SET)
    before = side.json("training_archive.json")
    side.archive.unlink() if content is None else side.archive.write_bytes(content)
    failed = side.run("training_archive")
    assert reason(failed).startswith(why)
    assert not [event for event in failed.all_events if event.is_step_up_for_retry]
    assert side.json("training_archive.json") == before


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"training_archive_max_members": 4}, "5 members are more than the 4 allowed"),
        ({"training_archive_max_unpacked_bytes": 1000}, "bytes are more than the 1000 allowed"),
        ({"training_archive_sha256": 64 * "0"}, "sha256 is "),
    ],
    ids=["members", "bytes", "digest"],
)
def test_limits_and_digest_are_settings(
    side: TrainingSide, overrides: dict[str, object], why: str
) -> None:
    write_archive(side.archive, SET)
    side.overrides |= overrides
    assert why in reason(side.run("training_archive"))
    assert side.cells == []


def test_an_archive_of_more_energies_than_any_simulation_has_is_refused_and_not_used(
    side: TrainingSide, daq_bucket: BucketSettings
) -> None:
    bucket = Bucket(daq_bucket)

    def offer(members: dict[str, bytes]) -> None:
        write_archive(side.archive, members)
        bucket.put("energies.zip", side.archive, "application/zip")
        url = bucket.presigned_url("energies.zip", timedelta(hours=1))
        ca_file = daq_bucket.ca_file
        side.overrides |= {"training_archive": url, "training_archive_ca_file": ca_file}

    offer(SET)
    assert side.run("training_archive").success
    before = side.json("training_archive.json")
    offer({f"NR/{n}_keV/a.png": b"" for n in range(1, 202)})
    failed = side.run("training_archive")
    assert "201 energies, from 1 to 201 keV, are more than the 200 allowed" in reason(failed)
    assert not [event for event in failed.all_events if event.is_step_up_for_retry]
    assert side.json("training_archive.json") == before
    side.backfill()
    assert side.metadata("pixel_histogram", "6keV|NR")["images"] == 3


def test_a_folder_is_no_archive(side: TrainingSide) -> None:
    side.archive.mkdir()
    failed = side.run("training_archive")
    assert reason(failed).endswith("set.zip: a folder and no zip")
    assert not [event for event in failed.all_events if event.is_step_up_for_retry]


def test_an_archive_gone_or_changed_after_it_was_fetched_is_said(side: TrainingSide) -> None:
    side.all(SET)
    side.archive.write_bytes(b"")
    assert "materialize training_archive again" in reason(side.run(*CELLS, partition="6keV|NR"))
    write_archive(side.archive, SET)
    assert side.run("training_archive").success
    side.archive.unlink()
    for assets in (["unlabelled_paths"], ["recoils_figure"], ["raw_image_figure"]):
        assert "materialize" in reason(side.run(*assets))


def test_of_an_archive_without_images_there_is_no_window_and_no_figure(side: TrainingSide) -> None:
    write_archive(side.archive, {"README": b"nothing yet"})
    assert side.run("training_archive").success
    assert side.cells == []
    assert side.run("unlabelled_paths", *TOTALS).success
    assert side.table().empty
    assert "no pixels were counted" in reason(side.run("suggested_window"))
    assert reason(side.run("raw_image_figure")) == "the training set has no images"
    assert side.run("histogram_figure", "recoils_figure").success


def test_another_seed_and_share_by_the_launchpad(side: TrainingSide) -> None:
    side.all({**cell("NR/6_keV", *range(1, 41, 2)), **cell("ER/6_keV", *range(2, 10, 2))})
    first = side.metadata("recoils_figure")["images"].splitlines()
    assert len(first) == 5 + 4  # all electron recoils there are
    assert sum("/NR/" in path for path in first) == 5
    assert side.run("recoils_figure", config={"seed": 1}).success
    assert side.metadata("recoils_figure")["images"].splitlines() != first
    second = side.data_version("recoils_figure")
    assert side.run("recoils_figure", config={"seed": 2}).success
    assert side.data_version("recoils_figure") != second
    wide = side.json("suggested_window.json")
    assert side.run("suggested_window", config={"max_clipped_share": 0.1}).success
    narrow = side.json("suggested_window.json")
    assert wide["window_low_adu"] < narrow["window_low_adu"]
    assert narrow["window_high_adu"] < wide["window_high_adu"]
    failed = side.run("suggested_window", config={"max_clipped_share": 0.7})
    assert "max_clipped_share = 0.7: must be in [0, 0.5)" in reason(failed)


def test_from_a_real_s3_server_into_a_real_s3_server_without_showing_the_signature(
    side: TrainingSide, daq_bucket: BucketSettings, store_bucket: BucketSettings
) -> None:
    write_archive(side.archive, SET)
    bucket = Bucket(daq_bucket)
    bucket.put("training_set.zip", side.archive, "application/zip")
    side.overrides |= {
        "training_archive": bucket.presigned_url("training_set.zip", timedelta(hours=1)),
        "training_archive_ca_file": daq_bucket.ca_file,
        "storage_url": f"s3://{store_bucket.bucket}/training",
        "storage_s3_endpoint": store_bucket.endpoint,
        "storage_s3_access_key_id": store_bucket.access_key_id,
        "storage_s3_secret_access_key": store_bucket.secret_access_key,
        "storage_s3_ca_file": store_bucket.ca_file,
    }
    assert side.run("training_archive").success
    shown = side.metadata("training_archive")
    assert shown["source"] == f"{daq_bucket.endpoint}/cygno-daq/training_set.zip"
    kept = f"s3://{store_bucket.bucket}/training/training_archive/"
    assert shown["archive_path"] == f"{kept}training_set-{shown['sha256']}.zip"
    [fetched] = (side.home / "training").glob("*.zip")
    with Archive(fetched) as archive:
        assert set(archive.members) == set(SET)
    assert side.run("unlabelled_paths").success
    side.backfill()
    side.backfill()
    assert set(side.decoded().values()) == {0}
    assert side.run(*TOTALS, *AFTER).success
    assert not (side.home / "data").exists()
    before = fetched.stat()
    assert side.run("training_archive").success
    assert fetched.stat() == before
    side.overrides["training_archive_ca_file"] = None
    failed = side.run("training_archive")
    assert "certificate is not trusted" in reason(failed)
    assert not [event for event in failed.all_events if event.is_step_up_for_retry]
    logs = [
        entry.to_json()
        for record in side.instance.get_run_records()
        for entry in side.instance.all_logs(record.dagster_run.run_id)
    ]
    assert any("training_set.zip" in line for line in logs)
    assert not [line for line in logs if "X-Amz" in line]


def test_progress_is_logged_while_it_is_fetched(
    side: TrainingSide, daq_bucket: BucketSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_CHUNK_BYTES", 100_000)
    write_archive(side.archive, SET)
    bucket = Bucket(daq_bucket)
    bucket.put("progress.zip", side.archive, "application/zip")
    side.overrides |= {
        "training_archive": bucket.presigned_url("progress.zip", timedelta(hours=1)),
        "training_archive_ca_file": daq_bucket.ca_file,
    }
    result = side.run("training_archive")
    logs = [entry.user_message for entry in side.instance.all_logs(result.run_id)]
    assert any("(100%)" in line and "fetched" in line for line in logs)
