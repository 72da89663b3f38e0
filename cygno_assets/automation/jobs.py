"""The jobs that sensors start."""

from __future__ import annotations

from dagster import AssetSelection, define_asset_job

from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE

live_event_job = define_asset_job(
    "live_event",
    # Their checks judge a window of events, by the clock and not in each event's run.
    selection=AssetSelection.assets(RAW_IMAGE, PREPROCESSED_TENSOR).without_checks(),
    description="One event of the DAQ, from its announcement to its tensor.",
)
