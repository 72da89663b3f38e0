"""A cell of ten times the images needs no more memory, read by ranges and made into tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets_tests.storage.conftest import s3_settings
from cygno_assets_tests.training.archives import png, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings

IMAGES = 200
"""More than are in memory at once anyhow."""
ALLOWED_MB = 90.0
"""Allocators take up to 50 MB more; the tensors of ten times the images would take 118 MB."""
NOISE = np.random.default_rng(0).integers(90, 110, (10, 160, 160), np.uint8)

CELL = """
import re, sys
from pathlib import Path
import matplotlib, pandas, pyarrow.parquet
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.settings import load_settings
from cygno_assets.storage.locations import data_root, whole_file
from cygno_assets.storage.objects import StoredObject
from cygno_assets.storage.tensor_table import read_tensor_tables, write_tensor_tables
from cygno_assets.training.archive import Archive
from cygno_assets.training.survey import labelled, survey
from cygno_assets.training.tables import ground_truth_rows
from cygno_assets.training.tensors import make_tensors

def in_mb(field):
    [kb] = re.findall(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return int(kb) / 1024

before = in_mb("VmRSS")
# Not getrusage's peak, which remembers the parent's memory across exec.
place = data_root(load_settings()) / sys.argv[1]
with Archive(StoredObject.at(place)) as archive:
    labels = labelled(archive.members)[0]
    rows = ground_truth_rows(survey(archive, labels, max_pixels=10**6).images)
    with whole_file(place.with_name("cell.parquet")) as file:
        write_tensor_tables(make_tensors(archive, rows, PreprocessSpec(), max_pixels=10**6), file)
        assert sum(len(part.rows) for part in read_tensor_tables(file)) == int(sys.argv[2])
print(in_mb("VmHWM") - before)
"""


def test_memory_does_not_grow_with_a_cell(store_bucket: BucketSettings, tmp_path: Path) -> None:
    settings = s3_settings(store_bucket)
    environ = {
        "CYGNO_STORAGE_URL": settings.storage_url,
        "CYGNO_STORAGE_S3_ENDPOINT": store_bucket.endpoint,
        "CYGNO_STORAGE_S3_REGION": store_bucket.region,
        "CYGNO_STORAGE_S3_ACCESS_KEY_ID": store_bucket.access_key_id,
        "CYGNO_STORAGE_S3_SECRET_ACCESS_KEY": store_bucket.secret_access_key,
        "CYGNO_STORAGE_S3_CA_FILE": str(store_bucket.ca_file),
    }

    def growth_mb(images: int) -> float:
        members = ((f"NR/6_keV/{n:04}.png", png(NOISE[n % 10])) for n in range(images))
        name = f"{tmp_path.name}/{images}.zip"
        write_whole(data_root(settings) / name, zipped(*members))
        run = subprocess.run(
            [sys.executable, "-c", CELL, name, str(images)],
            env={**os.environ, **environ},
            check=True,
            capture_output=True,
            text=True,
        )
        return float(run.stdout)

    few, many = growth_mb(IMAGES), growth_mb(10 * IMAGES)
    assert many < few + ALLOWED_MB, f"{few:.0f} MB, and {many:.0f} MB for ten times the images"
