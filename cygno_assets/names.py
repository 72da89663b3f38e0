"""What things are called in Dagster: asset keys, groups, tags, and metadata that others read.

Here belong names that more than one module needs; what an asset is and does, is in assets/.
"""

from dagster import AssetKey

LIVE_GROUP = "live"
ANNOUNCEMENTS = AssetKey("daq_announcements")
RAW_IMAGE = AssetKey("raw_image")
PREPROCESSED_TENSOR = AssetKey("preprocessed_tensor")

TRAINING_GROUP = "training"
TRAINING_ARCHIVE = AssetKey("training_archive")
UNLABELLED_PATHS = AssetKey("unlabelled_paths")
GROUND_TRUTH = AssetKey("ground_truth")
PIXEL_HISTOGRAM = AssetKey("pixel_histogram")
TRAINING_TENSORS = AssetKey("training_tensors")
GROUND_TRUTH_TABLE = AssetKey("ground_truth_table")
DATASET_PIXEL_HISTOGRAM = AssetKey("dataset_pixel_histogram")
SUGGESTED_WINDOW = AssetKey("suggested_window")
RAW_IMAGE_FIGURE = AssetKey("raw_image_figure")
HISTOGRAM_FIGURE = AssetKey("histogram_figure")
RECOILS_FIGURE = AssetKey("recoils_figure")
TRAINING_SPLITS = AssetKey("training_splits")
TRAINING_DATASET = AssetKey("training_dataset")
TRAINING_AUDIT = AssetKey("training_audit")

TRAINING_CELLS = (GROUND_TRUTH, PIXEL_HISTOGRAM, TRAINING_TENSORS)
"""The assets with a partition for each recoil type and energy; made together."""
TRAINING_FIGURES = (RAW_IMAGE_FIGURE, HISTOGRAM_FIGURE, RECOILS_FIGURE)
TRAINING_DATASET_ASSETS = (TRAINING_SPLITS, TRAINING_DATASET, TRAINING_AUDIT)
"""What is made of the cells' tensors."""
TRAINING_ASSETS = (
    TRAINING_ARCHIVE,
    UNLABELLED_PATHS,
    *TRAINING_CELLS,
    GROUND_TRUTH_TABLE,
    DATASET_PIXEL_HISTOGRAM,
    SUGGESTED_WINDOW,
    *TRAINING_FIGURES,
    *TRAINING_DATASET_ASSETS,
)
"""All of them."""

QUALITY_GROUP = "quality"
"""What says how good the others are, and is an input of none of them."""

DAQ_EVENTS = "daq_events"
"""The sensor that reads the inbox; its cursor says how far."""

PARTITION_TAG = "dagster/partition"
LIVE_TAG = "cygno/live"
"""On runs that a sensor requested; `"true"`."""
SEQUENCE_TAG = "cygno/stream_sequence"
"""On runs that a sensor requested; of the announcement in the inbox."""
FINAL_TAG = "cygno/failed_for_good"
"""On runs that failed on something that trying again would not mend; its kind."""
ATTEMPT_TAG = "cygno/attempt"
"""On runs that make an event again after a failure; the how-manieth attempt, the first run's 0."""
MAX_ATTEMPTS = 20
"""They take 80 minutes, more than a presigned URL lives."""

KIND = "kind"
"""Metadata of a failure: what it is, in a word that stays the same; docs/operating.md has them."""
