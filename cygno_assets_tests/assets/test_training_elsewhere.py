"""The training side on machines that share nothing but a bucket and Dagster's database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from dagster import DagsterInstance, build_sensor_context

from cygno_assets.automation.training import build_archive_sensor
from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.settings import load_settings
from cygno_assets.storage.locations import data_root, s3_path
from cygno_assets.storage.objects import StoredObject
from cygno_assets_tests.assets.detector import reason
from cygno_assets_tests.assets.training_side import AFTER, CELLS, TOTALS, TrainingSide
from cygno_assets_tests.storage.conftest import s3_settings
from cygno_assets_tests.training.archives import cell, simulated_png, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer
    from upath import UPath

SET = {
    **cell("NR/6_keV", 1, 3, 5),
    **cell("ER/6_keV", *range(0, 60, 2)),
    **cell("ER/0.5_keV", 62),
}
MADE = ("ground_truth", "pixel_histogram", "training_tensors")


@pytest.fixture
def fetching(side: TrainingSide, store_bucket: BucketSettings, tmp_path: Path) -> TrainingSide:
    """A machine that fetches archives, of a site that keeps its data in a bucket."""
    given = s3_settings(store_bucket, storage_url=f"s3://{store_bucket.bucket}/{tmp_path.name}")
    side.overrides |= given.model_dump(exclude_defaults=True) | {"home": tmp_path / "fetching"}
    return side


def machine(of: TrainingSide, name: str) -> TrainingSide:
    """Another machine of the site, with nothing on it."""
    home = of.home.with_name(name)
    return replace(of, home=home, overrides={**of.overrides, "home": home})


def root_of(side: TrainingSide) -> UPath:
    return data_root(load_settings(side.overrides))


def in_a_bucket(side: TrainingSide, bucket: BucketSettings, key: str) -> UPath:
    """Has the side take its archive from a bucket, where it is."""
    place = f"s3://{bucket.bucket}/{key}"
    side.overrides["training_archive"] = place
    return s3_path(load_settings(side.overrides), place)


def files_of(root: UPath) -> dict[str, bytes]:
    return {
        f"{asset}/{file.parent.name}/{file.name}": file.read_bytes()
        for asset in MADE
        for file in (root / asset).rglob("*.*")
        if file.is_file()
    }


@pytest.fixture
def local(tmp_path: Path) -> Iterator[TrainingSide]:
    """The same on one machine with a folder."""
    with DagsterInstance.ephemeral() as instance:
        home = tmp_path / "local"
        yield TrainingSide(tmp_path / "local.zip", home, instance, {"home": home})


def test_cells_made_anywhere_are_byte_for_byte_those_of_one_machine(
    fetching: TrainingSide, local: TrainingSide
) -> None:
    local.all(SET)
    write_archive(fetching.archive, SET)
    assert fetching.run("training_archive").success
    fetching.archive.unlink()
    homes = []
    for number, key in enumerate(fetching.cells):
        other = machine(fetching, f"machine-{number}")
        assert other.run(*CELLS, partition=key).success
        homes.append(other.home)
    last = machine(fetching, "last")
    assert last.run("unlabelled_paths").success
    assert last.run(*TOTALS, *AFTER).success
    assert last.check("ground_truth_table", "every_file_is_accounted_for")[0]
    assert last.check("dataset_pixel_histogram", "its_counts_are_of_this_archive")[0]

    here, there = data_root(load_settings(local.overrides)), root_of(fetching)
    made = files_of(here)
    assert len(made) == 4 * len(MADE)
    assert files_of(there) == made
    for name in ("ground_truth_table.parquet", "dataset_pixel_histogram.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    for asset in (*TOTALS, "training_splits", "training_dataset", "recoils_figure"):
        assert last.data_version(asset) == local.data_version(asset)
    assert not [file for home in homes for file in home.rglob("*.zip")]


def test_a_cell_fetches_its_own_images_and_not_the_archive(
    fetching: TrainingSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(fetching.archive, SET)
    assert fetching.run("training_archive").success
    ranges: list[int] = []
    read = StoredObject.read

    def noted(self: StoredObject, start: int, end: int) -> Buffer:
        if self.name.endswith(".zip"):
            ranges.append(end - start)
        return read(self, start, end)

    monkeypatch.setattr(StoredObject, "read", noted)
    assert machine(fetching, "other").run(*MADE[:2], partition="6keV|NR").success
    own = sum(len(data) for path, data in SET.items() if "NR/6_keV" in path)
    assert len(ranges) == 1 + 3
    assert own <= sum(ranges) <= own + 128 * 1024 + 1000
    assert sum(ranges) < fetching.archive.stat().st_size / 4
    ranges.clear()
    assert machine(fetching, "third").run(*MADE[:2], partition="6keV|NR").success
    assert len(ranges) == 1  # unchanged: nothing but the directory


def test_one_that_was_fetched_is_not_uploaded_again_and_old_ones_go(
    fetching: TrainingSide,
) -> None:
    folder = root_of(fetching) / "training_archive"
    for number in range(3):
        write_archive(fetching.archive, {**SET, **cell("NR/30_keV", number)})
        for _ in range(2):
            assert fetching.run("training_archive").success
    shown = fetching.metadata("training_archive")
    kept = {path.name for path in folder.iterdir()}
    assert len(kept) == 2
    assert shown["archive_path"] == str(folder / f"training_set-{shown['sha256']}.zip")
    assert shown["archive_path"].rpartition("/")[2] in kept


def test_without_its_copy_in_the_bucket_it_is_said(fetching: TrainingSide) -> None:
    write_archive(fetching.archive, SET)
    assert fetching.run("training_archive").success
    copy = root_of(fetching) / "training_archive"
    for file in copy.iterdir():
        file.unlink()
    for assets, partition in ((CELLS, "6keV|NR"), (["unlabelled_paths"], None)):
        failed = reason(machine(fetching, "other").run(*assets, partition=partition))
        assert "not as it was when it was checked" in failed
        assert "materialize training_archive again" in failed
    assert fetching.run("training_archive").success
    assert machine(fetching, "other").run(*CELLS, partition="6keV|NR").success


def test_an_archive_in_a_bucket_is_used_where_it_is(
    fetching: TrainingSide, store_bucket: BucketSettings, tmp_path: Path
) -> None:
    key = f"{tmp_path.name}-sets/our set.zip"
    place = in_a_bucket(fetching, store_bucket, key)
    write_archive(fetching.archive, SET)
    Bucket(store_bucket).put(key, fetching.archive, "application/zip")
    assert fetching.run("training_archive").success
    shown = fetching.metadata("training_archive")
    assert shown["archive_path"] == shown["source"] == str(place)
    other = machine(fetching, "other")
    assert other.run("unlabelled_paths").success
    other.backfill()
    assert sum(other.decoded().values()) == len(SET)
    assert other.run(*TOTALS, *AFTER).success
    assert not (root_of(fetching) / "training_archive").exists()
    for home in (fetching.home.with_name("fetching"), other.home):
        assert not list(home.rglob("*.zip"))

    # Replaced by one that is as good, and yet was not checked.
    path = next(path for path in SET if "/NR/6_keV/" in path)
    write_archive(fetching.archive, {**SET, path: simulated_png(99)})
    Bucket(store_bucket).put(key, fetching.archive, "application/zip")
    for assets, partition in ((CELLS, "6keV|NR"), (["raw_image_figure"], None)):
        failed = other.run(*assets, partition=partition)
        assert "not as it was when it was checked (our set.zip: gone, or another" in reason(failed)
        assert not [event for event in failed.all_events if event.is_step_up_for_retry]
    assert fetching.run("training_archive").success
    assert other.run(*CELLS, partition="6keV|NR").success
    assert other.metadata("pixel_histogram", "6keV|NR")["decoded"] == 3


def test_data_in_a_folder_may_be_of_an_archive_in_a_bucket(
    fetching: TrainingSide, store_bucket: BucketSettings, tmp_path: Path
) -> None:
    key = f"{tmp_path.name}-set.zip"
    fetching.overrides["storage_url"] = None
    in_a_bucket(fetching, store_bucket, key)
    write_archive(fetching.archive, SET)
    Bucket(store_bucket).put(key, fetching.archive, "application/zip")
    assert fetching.run("training_archive").success
    fetching.backfill()
    assert sum(fetching.decoded().values()) == len(SET)


def test_a_truncated_or_missing_one_in_a_bucket_is_refused(
    fetching: TrainingSide, store_bucket: BucketSettings, tmp_path: Path
) -> None:
    key = f"{tmp_path.name}-cut.zip"
    in_a_bucket(fetching, store_bucket, key)
    failed = reason(fetching.run("training_archive"))
    assert failed.endswith("cut.zip: there is no such object")
    write_archive(fetching.archive, SET)
    Bucket(store_bucket).put(key, fetching.archive.read_bytes()[:-1000])
    failed = reason(fetching.run("training_archive"))
    assert "cut.zip: truncated, or its directory is broken" in failed


def test_credentials_that_do_not_open_the_bucket_are_said_and_not_shown(
    fetching: TrainingSide, store_bucket: BucketSettings, tmp_path: Path
) -> None:
    in_a_bucket(fetching, store_bucket, f"{tmp_path.name}-set.zip")
    settings = load_settings(
        {
            **fetching.overrides,
            "storage_url": None,
            "storage_s3_secret_access_key": "hunter2" * 5,
        }
    )
    with DagsterInstance.ephemeral() as instance:
        skipped = build_archive_sensor(settings)(build_sensor_context(instance))
    assert "access denied, or no such bucket" in str(skipped)
    for secret in ("hunter2", store_bucket.access_key_id):
        assert secret not in str(skipped)


def test_the_sensor_sees_another_object_by_its_etag(
    fetching: TrainingSide, store_bucket: BucketSettings, tmp_path: Path
) -> None:
    key = f"{tmp_path.name}-set.zip"
    place = in_a_bucket(fetching, store_bucket, key)
    sensor = build_archive_sensor(load_settings(fetching.overrides))
    with DagsterInstance.ephemeral() as instance:

        def look(cursor: str | None) -> tuple[bool, str | None]:
            found = sensor(build_sensor_context(instance, cursor))
            requests = getattr(found, "run_requests", None)
            return bool(requests), getattr(found, "cursor", None) or cursor

        assert look(None) == (False, None)
        Bucket(store_bucket).put(key, b"one")
        asked, cursor = look(None)
        assert (asked, str(place) in str(cursor)) == (True, True)
        assert look(cursor) == (False, cursor)
        Bucket(store_bucket).put(key, b"another")
        assert look(cursor)[0]
