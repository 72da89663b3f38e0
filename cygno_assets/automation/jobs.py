"""The jobs that sensors start."""

from __future__ import annotations

from dagster import AssetSelection, define_asset_job

from cygno_assets.names import LIVE_JOB, PREPROCESSED_TENSOR, RAW_IMAGE

live_event_job = define_asset_job(
    LIVE_JOB,
    selection=AssetSelection.assets(RAW_IMAGE, PREPROCESSED_TENSOR),
    description="One event of the DAQ, from its announcement to its tensor.",
)
