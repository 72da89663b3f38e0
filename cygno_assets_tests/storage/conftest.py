"""Where the tests of this folder keep things: a local disk and a real S3 server, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cygno_assets.settings import Settings, load_settings
from cygno_assets.storage.locations import data_root

if TYPE_CHECKING:
    from pathlib import Path

    from upath import UPath

    from cygno_assets.daq.simulator.bucket import BucketSettings


def s3_settings(bucket: BucketSettings, **changed: object) -> Settings:
    given = {
        "storage_url": f"s3://{bucket.bucket}/some/prefix",
        "storage_s3_endpoint": bucket.endpoint,
        "storage_s3_region": bucket.region,
        "storage_s3_access_key_id": bucket.access_key_id,
        "storage_s3_secret_access_key": bucket.secret_access_key,
        "storage_s3_ca_file": bucket.ca_file,
    }
    return load_settings(given | changed)


@pytest.fixture(params=["local", "S3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, store_bucket: BucketSettings) -> UPath:
    """A folder of this test's own, wherever images may be kept."""
    if request.param == "local":
        return data_root(load_settings({"home": tmp_path}))
    return data_root(s3_settings(store_bucket)) / tmp_path.name
