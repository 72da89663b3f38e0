"""The jobs that sensors start."""

from __future__ import annotations

from dagster import AssetSelection, define_asset_job

from cygno_assets.names import (
    BACKGROUND,
    CATALOG_JOB,
    EVENT_CATALOG,
    EVENT_TENSORS,
    LIVE_JOB,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
)

_LONGEST_LIVE_RUN_S = 900
"""Far beyond the slowest server's; a worker that is stuck, in a decoder say, is ended then."""

live_event_job = define_asset_job(
    LIVE_JOB,
    selection=AssetSelection.assets(RAW_IMAGE, PREPROCESSED_TENSOR),
    tags={"dagster/max_runtime": str(_LONGEST_LIVE_RUN_S)},
    description="One event of the DAQ, from its announcement to its tensor.",
)

catalog_day_job = define_asset_job(
    CATALOG_JOB,
    selection=AssetSelection.assets(EVENT_CATALOG),
    tags=BACKGROUND,
    description="What is new of one day's events, into the catalogue.",
)

event_tensors_job = define_asset_job(
    "day_of_tensors",
    selection=AssetSelection.assets(EVENT_TENSORS),
    tags=BACKGROUND,
    description="One day's tensors as one dataset.",
)
