"""A cell of ten times the images needs no more memory, surveyed and made into tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cygno_assets.settings import load_settings
from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets_tests.storage.conftest import s3_settings
from cygno_assets_tests.training.archives import png, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings

IMAGES = 200
"""More than are in memory at once anyhow."""
ALLOWED_MB = 90.0
"""Allocators take 20 to 60 MB more. Kept, the tensors of so many more images would take 118 MB,
and what was decoded 184 MB."""

CELL = """
import re, sys
from pathlib import Path
import matplotlib, pandas, pyarrow.parquet
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.settings import load_settings
from cygno_assets.storage.locations import data_root, local_path, whole_file
from cygno_assets.storage.objects import StoredObject
from cygno_assets.storage.tensor_table import read_tensor_tables, write_tensor_tables
from cygno_assets.training import survey, tensors
from cygno_assets.training.archive import Archive
from cygno_assets.training.tables import ground_truth_rows

def in_mb(field):
    [kb] = re.findall(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return int(kb) / 1024

kept = []
def keeping(real):
    def keep(*arguments):
        kept.append((arguments, real(*arguments)))
        return kept[-1][1]
    return keep

if sys.argv[3] == "images":
    survey.pixel_counts = keeping(survey.pixel_counts)
if sys.argv[3] == "tensors":
    tensors.TensorTable = keeping(tensors.TensorTable)

before = in_mb("VmRSS")
# Not getrusage's peak, which remembers the parent's memory across exec.
place = data_root(load_settings()) / sys.argv[1]
with Archive(local_path(place) or StoredObject.at(place)) as archive:
    labels = survey.labelled(archive.members)[0]
    rows = ground_truth_rows(survey.survey(archive, labels, max_pixels=10**6).images)
    made = tensors.make_tensors(archive, rows, PreprocessSpec(), max_pixels=10**6)
    with whole_file(place.with_name("cell.parquet")) as file:
        write_tensor_tables(made, file)
        assert sum(len(part.rows) for part in read_tensor_tables(file)) == int(sys.argv[2])
print(in_mb("VmHWM") - before)
"""


@pytest.fixture(params=["local", "S3"])
def environ(
    request: pytest.FixtureRequest, tmp_path: Path, store_bucket: BucketSettings
) -> dict[str, str]:
    """Where the archive is and the tensors go."""
    if request.param == "local":
        settings, there = load_settings({"home": tmp_path}), {"CYGNO_HOME": str(tmp_path)}
    else:
        settings = s3_settings(store_bucket)
        there = {
            "CYGNO_STORAGE_URL": settings.storage_url,
            "CYGNO_STORAGE_S3_ENDPOINT": store_bucket.endpoint,
            "CYGNO_STORAGE_S3_REGION": store_bucket.region,
            "CYGNO_STORAGE_S3_ACCESS_KEY_ID": store_bucket.access_key_id,
            "CYGNO_STORAGE_S3_SECRET_ACCESS_KEY": store_bucket.secret_access_key,
            "CYGNO_STORAGE_S3_CA_FILE": str(store_bucket.ca_file),
        }
    for images in (IMAGES, 10 * IMAGES):
        members = ((f"NR/6_keV/{n:04}.png", PNGS[n % len(PNGS)]) for n in range(images))
        write_whole(data_root(settings) / tmp_path.name / f"{images}.zip", zipped(*members))
    return {**os.environ, **there}


def noise_in_the_middle(seed: int) -> bytes:
    """Large when decoded, and a small file: noise is what fills it."""
    pixels = np.zeros((320, 320), np.uint8)
    pixels[80:240, 80:240] = np.random.default_rng(seed).integers(90, 110, (160, 160))
    return png(pixels)


PNGS = [noise_in_the_middle(seed) for seed in range(10)]


def more_mb_for_ten_times_the_images(
    environ: dict[str, str], tmp_path: Path, kept: str = "nothing"
) -> float:
    few, many = (
        float(
            subprocess.run(
                [sys.executable, "-c", CELL, f"{tmp_path.name}/{images}.zip", str(images), kept],
                env=environ,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for images in (IMAGES, 10 * IMAGES)
    )
    print(f"{few:.0f} MB, and {many:.0f} MB for ten times the images")
    return many - few


def test_memory_does_not_grow_with_a_cell(environ: dict[str, str], tmp_path: Path) -> None:
    assert more_mb_for_ten_times_the_images(environ, tmp_path) < ALLOWED_MB


@pytest.mark.parametrize("environ", ["local"], indirect=True)
@pytest.mark.parametrize("kept", ["images", "tensors"])
def test_it_would_be_seen_if_they_were_kept(
    environ: dict[str, str], tmp_path: Path, kept: str
) -> None:
    assert more_mb_for_ten_times_the_images(environ, tmp_path, kept) > ALLOWED_MB
