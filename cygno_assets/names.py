"""What things are called in Dagster: asset keys, groups, tags, and metadata that others read.

Here belong names that more than one module needs; what an asset is and does, is in assets/.
"""

from dagster import AssetKey

LIVE_GROUP = "live"
ANNOUNCEMENTS = AssetKey("daq_announcements")
RAW_IMAGE = AssetKey("raw_image")
PREPROCESSED_TENSOR = AssetKey("preprocessed_tensor")
EVENT_CATALOG = AssetKey("event_catalog")
EVENT_TENSORS = AssetKey("event_tensors")

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
PIPELINE_HEALTH = AssetKey("pipeline_health")

LIVE_JOB = "live_event"
"""The job that makes one event, from its announcement to its tensor."""

DAQ_EVENTS = "daq_events"
"""The sensor that reads the inbox; its cursor says how far."""
FAILED_EVENTS = "failed_events"
"""The sensor that makes events again whose failure may pass; its cursor says which wait for it."""
NOTIFICATIONS = "notifications"
"""The sensor that tells people of failures."""

CATALOG_JOB = "catalog_day"
"""The job of one day of the event catalogue."""

PARTITION_TAG = "dagster/partition"
BACKGROUND = {"dagster/priority": "-1"}
"""Tags of runs that yield to live events, in the queue and on the CPU."""
LIVE_TAG = "cygno/live"
"""On runs that a sensor requested; `"true"`."""
SEQUENCE_TAG = "cygno/stream_sequence"
"""On runs that a sensor requested; of the announcement in the inbox."""
CATALOG_TAG = "cygno/catalog"
"""On runs of the event catalogue that a sensor requested: the place in Dagster's event log up to
which their day has nothing new."""
FINAL_TAG = "cygno/failed_for_good"
"""On runs that failed on something that trying again would not mend; its kind."""
KIND_TAG = "cygno/failed_on"
"""On runs that failed on something that may pass; its kind, if that is known."""
DOUBTS_TAG = "cygno/doubts"
"""On runs that failed on what a server answered, and on those that make their events again; how
many did one after the other."""
MAX_DOUBTS = 3
"""Runs after which the next to fail like that fails for good; with their pauses, a minute later."""
ATTEMPT_TAG = "cygno/attempt"
"""On runs that make an event again after a failure; the how-manieth attempt, the first run's 0."""
MAX_ATTEMPTS = 20
"""They take 80 minutes, more than a presigned URL lives."""

KIND = "kind"
"""Metadata of a failure: what it is, in a word that stays the same; docs/operating.md has them."""
