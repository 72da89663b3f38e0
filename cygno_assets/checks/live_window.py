"""Checks of live data's quality: each judges a window of the newest events, by the clock.

Here belongs what is asked of a window, and which answer is an alarm; docs/checks.md says where the
limits come from. Which events are in it is records/window.py's, probabilities and distances are
physics/. That no event is lost is live.py's.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    ResourceParam,
    multi_asset_check,
)

from cygno_assets.assets.metadata import figure
from cygno_assets.daq.inbox import Inbox, InboxUnavailableError
from cygno_assets.names import (
    ANNOUNCEMENTS,
    DATASET_PIXEL_HISTOGRAM,
    TRAINING_DATASET,
)
from cygno_assets.physics.counting import (
    LiveTime,
    binomial_at_least,
    live_time,
    longest_silence,
    rate_p_value,
    silence_p_value,
)
from cygno_assets.physics.histogram import PixelHistogram
from cygno_assets.records.window import (
    Window,
    acquired,
    announced,
    numbers,
    read_window,
    summed_counts,
)
from cygno_assets.settings import SettingsError
from cygno_assets.storage.io_managers import JsonIOManager

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from dagster import DagsterInstance, MarkdownMetadataValue, RawMetadataValue
    from numpy.typing import NDArray

    from cygno_assets.physics.spec import PreprocessSpec
    from cygno_assets.settings import Settings

ALARM_P = 1e-6
"""What is less probable by chance is an alarm: looked for every 5 minutes, one in ten years."""
FEWEST_EVENTS = 20
"""In a window of fewer nothing is judged but silence."""

SIDE_PX, MODE = 576, "L"
"""What the camera delivers."""

PEDESTAL_ADU, PEDESTAL_LIMIT_ADU = 99.9, 3.0
"""Mean of the school's images, and how far from it a window may be that has no past."""
SPREAD_ADU, SPREAD_LIMIT_ADU = 5.35, 1.0
"""Their standard deviation, and likewise."""
PEDESTAL_TOLERANCE_ADU = 0.5
"""A drift that is no alarm, however surely it is one: a sixtieth of the window 80–110 ADU."""
SPREAD_TOLERANCE_ADU = 0.25
"""Likewise, of the standard deviation: a twentieth of it."""
STANDARD_ERRORS = 6.0
"""Of the difference of two medians; less is noise (p = 2e-9 if it is Gaussian)."""

HOTTEST_BY_CHANCE = 0.05
"""The most often that a column is the hottest without being hot: recoils light the central ones.
0.03 is the largest share measured, with only nuclear recoils; 1/576 it is without light."""
COLUMN_EXCESS_LIMIT_ADU = 3.0
"""Of the median over a window. Of good images it is 2.2, and of a single one 3.0 at the 99th
percentile."""

CLIPPED_FACTOR, CLIPPED_MARGIN = 2.0, 0.01
"""So many times what is expected, and so much more, may be clipped: the crop is where the tracks
are, and has up to 1.8 times the share of the whole image."""

DISTANCE_LIMIT_ADU = 0.5
"""Between live and training images: 0.05 if nothing is wrong (benchmarks/live_vs_training.py)."""

SHORTEST_SILENCE_S = 60.0
"""A shorter one is no alarm: at high rates it would be of the network, and nobody could act."""

# All of them on the stream as a whole. On an asset that has just been made for another event,
# Dagster would show a check as not evaluated yet; and it would run it in each event's run.
CAMERA = AssetCheckKey(ANNOUNCEMENTS, "images_are_the_cameras")
PEDESTAL = AssetCheckKey(ANNOUNCEMENTS, "pedestal_is_steady")
COLUMNS = AssetCheckKey(ANNOUNCEMENTS, "no_column_is_hot")
HISTOGRAM = AssetCheckKey(ANNOUNCEMENTS, "pixels_are_as_in_training")
CLIPPING = AssetCheckKey(ANNOUNCEMENTS, "window_clips_few_pixels")
SPECIFICATION = AssetCheckKey(ANNOUNCEMENTS, "specification_is_that_of_training")
RATE = AssetCheckKey(ANNOUNCEMENTS, "rate_is_as_expected")
SILENCE = AssetCheckKey(ANNOUNCEMENTS, "daq_is_not_silent")

_ASKED = {
    CAMERA: f"Every image is {SIDE_PX} × {SIDE_PX} pixels of mode {MODE}.",
    PEDESTAL: "Mean and standard deviation of the images, in ADU, are those of the recent past, "
    "or of the school's images.",
    COLUMNS: "No column is the hottest in more images than by chance.",
    HISTOGRAM: "The pixels' values are distributed as in the training set with the DAQ's noise.",
    CLIPPING: "The window clips hardly more of the live images than of the training set.",
    SPECIFICATION: "Live tensors are made by the specification of the settings and the training "
    "set.",
    RATE: "Events come at the rate of the recent past, or of CYGNO_EXPECTED_RATE_HZ.",
    SILENCE: "The last announcement is no longer ago than Poisson arrivals make probable.",
}
LIVE_WINDOW_CHECKS = tuple(_ASKED)
"""All of them."""


def build_live_window_checks(settings: "Settings") -> list[AssetChecksDefinition]:
    """The checks of a window of live events, for these settings."""
    spec = settings.preprocess_spec

    @multi_asset_check(
        name="live_window",
        can_subset=True,
        specs=[
            AssetCheckSpec(key.name, asset=key.asset_key, description=asked)
            for key, asked in _ASKED.items()
        ],
    )
    def live_window(
        context: AssetCheckExecutionContext,
        inbox: ResourceParam[Inbox],
        json_io_manager: ResourceParam[JsonIOManager],
    ) -> Iterator[AssetCheckResult]:
        window = read_window(context.instance, settings.live_window_s)
        training = _training_histogram(json_io_manager)
        results = (
            judge_camera(window),
            judge_pedestal(window),
            judge_columns(window),
            judge_histogram(window, training),
            judge_clipping(window, spec, training),
            judge_specification(window, spec.hash, _training_spec(context.instance)),
            judge_rate(window, settings.expected_rate_hz),
            judge_silence(
                window, settings.expected_rate_hz, last=_last_message(inbox), now=time.time()
            ),
        )
        selected = {key.name for key in context.selected_asset_check_keys}
        yield from (result for result in results if result.check_name in selected)

    return [live_window]


def judge_camera(window: Window) -> AssetCheckResult:
    """Whether every image has the camera's dimensions and mode."""
    if _too_few(window):
        return _unjudged(CAMERA, window)
    expected = f"{SIDE_PX} × {SIDE_PX}", MODE
    found = Counter(
        (str(one.metadata["dimensions_px"]), str(one.metadata["mode"])) for one in window.events
    )
    others = {what: count for what, count in found.items() if what != expected}
    share = sum(others.values()) / len(window.events)
    which = [
        one.event_id
        for one in window.events
        if (one.metadata["dimensions_px"], one.metadata["mode"]) != expected
    ]
    return _result(
        CAMERA,
        window,
        passed=not others,
        severity=AssetCheckSeverity.ERROR,
        description=f"{share:.1%} of {len(window.events)} images are not {expected[0]} pixels of "
        f"mode {MODE}"
        + "".join(f"; {count} are {size} of mode {mode}" for (size, mode), count in others.items()),
        metadata={"different_share": share, "which": "\n".join(which[:100]) or "none"},
    )


def judge_pedestal(window: Window) -> AssetCheckResult:
    """Whether mean and standard deviation of the images are those of the past, or as documented.

    By medians, which a few bright or broken images do not move.
    """
    import numpy as np

    if _too_few(window):
        return _unjudged(PEDESTAL, window)
    has_past = len(window.past) >= FEWEST_EVENTS
    metadata: dict[str, RawMetadataValue] = {"past_events": len(window.past)}
    said, passed = [], True
    expected_mean, mean_limit = PEDESTAL_ADU, PEDESTAL_LIMIT_ADU
    for label, what, documented, generous, tolerance in (
        ("mean_adu", "mean", PEDESTAL_ADU, PEDESTAL_LIMIT_ADU, PEDESTAL_TOLERANCE_ADU),
        ("sd_adu", "standard deviation", SPREAD_ADU, SPREAD_LIMIT_ADU, SPREAD_TOLERANCE_ADU),
    ):
        values = numbers(window.events, label)
        expected, limit = documented, generous
        if has_past:
            before = numbers(window.past, label)
            expected = float(np.median(before))
            # The median's standard error is 1.25 times that of the mean; 1.48 median deviations
            # are a standard deviation.
            spread = 1.4826 * float(np.median(np.abs(before - expected)))
            error = 1.2533 * spread * (1 / values.size + 1 / before.size) ** 0.5
            limit = max(tolerance, STANDARD_ERRORS * error)
        shift = float(np.median(values)) - expected
        # A mended camera is good, however long the past was bad.
        as_documented = abs(expected + shift - documented) <= tolerance
        passed = passed and (abs(shift) <= limit or as_documented)
        said.append(
            f"{what} {expected + shift:.2f} ADU, {shift:+.2f} from {expected:.2f} "
            f"(limit {limit:.2f})"
        )
        metadata |= {
            label: expected + shift,
            f"{label}_expected": expected,
            f"{label}_shift": shift,
            f"{label}_limit": limit,
        }
        if label == "mean_adu":
            expected_mean, mean_limit = expected, limit
    shown = [*window.past, *window.events]
    metadata["plot"] = _over_time(
        [announced(one) for one in shown],
        numbers(shown, "mean_adu"),
        (expected_mean - mean_limit, expected_mean + mean_limit),
        "mean of image, ADU",
        "pedestal, and the limits of the window's median",
    )
    return _result(
        PEDESTAL,
        window,
        passed=passed,
        severity=AssetCheckSeverity.ERROR,
        description=f"{'; '.join(said)}: {len(window.events)} events against "
        + (f"the {len(window.past)} before" if has_past else "the documented values, without past"),
        metadata=metadata,
    )


def judge_columns(window: Window) -> AssetCheckResult:
    """Whether one column is the hottest too often, or the hottest ones are too hot."""
    import numpy as np

    from cygno_assets.physics.figures import columns_figure

    if _too_few(window):
        return _unjudged(COLUMNS, window)
    hottest = numbers(window.events, "hottest_column").astype(np.int64)
    column, images = Counter(hottest.tolist()).most_common(1)[0]
    # Any column might have been it.
    by_chance = SIDE_PX * binomial_at_least(images, hottest.size, HOTTEST_BY_CHANCE)
    p_value = min(1.0, by_chance)
    excess = float(np.median(numbers(window.events, "hottest_column_excess_adu")))
    title = f"hottest column of {hottest.size} images"
    return _result(
        COLUMNS,
        window,
        passed=p_value >= ALARM_P and excess <= COLUMN_EXCESS_LIMIT_ADU,
        severity=AssetCheckSeverity.WARN,
        description=f"column {column} is the hottest in {images} of {hottest.size} images "
        f"(p = {p_value:.2g}); the hottest is {excess:.2f} ADU above the median column "
        f"(limit {COLUMN_EXCESS_LIMIT_ADU:g})",
        metadata={
            "hottest_column": column,
            "hottest_share": images / hottest.size,
            "p_value": p_value,
            "median_excess_adu": excess,
            "median_excess_adu_limit": COLUMN_EXCESS_LIMIT_ADU,
            "median_column_sd_adu": float(np.median(numbers(window.events, "column_sd_adu"))),
            "plot": figure(columns_figure(hottest, SIDE_PX, title), title),
        },
    )


def judge_histogram(window: Window, training: PixelHistogram | None) -> AssetCheckResult:
    """Whether live pixels are distributed as the training set's would be after the DAQ."""
    from cygno_assets.physics.distance import RECORDED_NOISE_ADU, wasserstein_adu, with_noise
    from cygno_assets.physics.figures import comparison_figure

    if training is None:
        return _result(
            HISTOGRAM,
            window,
            passed=True,
            severity=AssetCheckSeverity.WARN,
            description="no training set to compare with yet",
            metadata={},
        )
    if _too_few(window):
        return _unjudged(HISTOGRAM, window)
    live = summed_counts(window.events)
    recorded = with_noise(training.counts, RECORDED_NOISE_ADU)
    distance = wasserstein_adu(live, recorded)
    title = f"{len(window.events)} live and {training.images} training images, with noise"
    return _result(
        HISTOGRAM,
        window,
        passed=distance <= DISTANCE_LIMIT_ADU,
        severity=AssetCheckSeverity.WARN,
        description=f"pixels of {len(window.events)} live images are {distance:.2f} ADU from those "
        f"of {training.images} training images with the DAQ's noise (limit "
        f"{DISTANCE_LIMIT_ADU:g}; Wasserstein distance)",
        metadata={
            "distance_adu": distance,
            "distance_adu_limit": DISTANCE_LIMIT_ADU,
            "training_images": training.images,
            "plot": figure(comparison_figure(live, recorded, title), title),
        },
    )


def judge_clipping(
    window: Window, spec: "PreprocessSpec", training: PixelHistogram | None
) -> AssetCheckResult:
    """Whether the window of the specification clips more of live images than it should."""
    import numpy as np

    if len(window.tensors) < FEWEST_EVENTS:
        return _unjudged(CLIPPING, window)
    metadata: dict[str, RawMetadataValue] = {}
    said, passed, limit = [], True, 0.0
    for side, expected in zip(("low", "high"), _expected_clipping(spec, training), strict=True):
        label = f"clipped_{side}_share"
        share = float(np.median(numbers(window.tensors, label)))
        limit = CLIPPED_FACTOR * expected + CLIPPED_MARGIN
        passed = passed and share <= limit
        edge = f"below {spec.window_low:g}" if side == "low" else f"above {spec.window_high:g}"
        said.append(f"{share:.2%} {edge} ADU (limit {limit:.2%})")
        metadata |= {label: share, f"{label}_expected": expected, f"{label}_limit": limit}
    when = {one.event_id: announced(one) for one in window.events}
    metadata["plot"] = _over_time(
        [when[one.event_id] for one in window.tensors],
        numbers(window.tensors, "clipped_high_share"),
        (0.0, limit),
        "clipped high, share",
        "pixels above the window, and the limit of their median",
    )
    return _result(
        CLIPPING,
        window,
        passed=passed,
        severity=AssetCheckSeverity.WARN,
        description=f"the window clips {' and '.join(said)}, median of {len(window.tensors)} "
        "tensors; limits from "
        + ("the pedestal alone" if training is None else "the training set with the DAQ's noise"),
        metadata=metadata,
    )


def judge_specification(window: Window, ours: str, of_training: str | None) -> AssetCheckResult:
    """Whether live and training tensors are made alike, and as the settings say."""
    if len(window.tensors) < FEWEST_EVENTS:
        return _unjudged(SPECIFICATION, window)
    found = Counter(str(one.metadata["spec_hash"]) for one in window.tensors)
    share = 1 - found[ours] / len(window.tensors)
    agrees = of_training in {None, ours}
    if of_training is None:
        training = "there is no training dataset yet"
    elif agrees:
        training = "so is the training dataset"
    else:
        training = f"the training dataset is made by {of_training}"
    return _result(
        SPECIFICATION,
        window,
        passed=share == 0 and agrees,
        severity=AssetCheckSeverity.ERROR,
        description=f"{found[ours]} of {len(window.tensors)} tensors are made by specification "
        f"{ours} of the settings; {training}",
        metadata={
            "other_share": share,
            "differs_from_training": float(not agrees),
            "specifications": ", ".join(f"{spec}: {n}" for spec, n in found.most_common()),
            "settings": ours,
            "training": of_training or "none",
        },
    )


def judge_rate(window: Window, expected_hz: float | None) -> AssetCheckResult:
    """Whether events come as often as they should, while they come."""
    if _too_few(window):
        return _unjudged(RATE, window)
    # What waited somewhere on its way is announced at once, but was not acquired at once.
    now = live_time([acquired(one) for one in window.events])
    past = live_time([acquired(one) for one in window.past])
    expected = past if expected_hz is None else expected_hz
    p_value = rate_p_value(now, expected)
    wanted = past.rate_hz if expected_hz is None else expected_hz
    source = "of the setting" if expected_hz else f"of the {len(window.past)} events before"
    known = expected_hz is not None or past.gaps > 0
    return _result(
        RATE,
        window,
        passed=p_value >= ALARM_P,
        severity=AssetCheckSeverity.WARN,
        description=f"{now.rate_hz * 3600:.0f} events/h in {now.seconds / 60:.0f} min"
        + (f", {wanted * 3600:.0f} {source} (p = {p_value:.2g})" if known else ", without past")
        + (f"; {now.pauses} pauses left out" if now.pauses else ""),
        metadata=_finite(
            rate_hz=now.rate_hz,
            expected_rate_hz=wanted,
            p_value=p_value,
            live_s=now.seconds,
            pauses=float(now.pauses),
        ),
    )


def judge_silence(
    window: Window, expected_hz: float | None, *, last: float | None, now: float
) -> AssetCheckResult:
    """Whether the DAQ still announces anything; asked of any number of events.

    Args:
        window: whose events, and those before, tell the rate.
        expected_hz: events/s, if that is set.
        last: when the inbox had its newest message, in seconds since 1970; None if not known.
        now: likewise.
    """
    heard = max((when for when in (last, window.newest) if when is not None), default=None)
    if heard is None:
        return _result(
            SILENCE,
            window,
            passed=True,
            severity=AssetCheckSeverity.ERROR,
            description="nothing was ever announced",
            metadata={},
        )
    times = [acquired(one) for one in (*window.past, *window.events)]
    expected: LiveTime | float = live_time(times) if expected_hz is None else expected_hz
    rate_hz = expected.rate_hz if isinstance(expected, LiveTime) else expected
    silent_s = max(0.0, now - heard)
    p_value = silence_p_value(silent_s, expected)
    limit_s = max(SHORTEST_SILENCE_S, longest_silence(ALARM_P, expected))
    return _result(
        SILENCE,
        window,
        passed=silent_s <= limit_s,
        severity=AssetCheckSeverity.ERROR,
        description=f"{silent_s:.0f} s since the last announcement"
        + (
            ": too few events to say how long is long"
            if math.isinf(limit_s)
            else f" (p = {p_value:.2g}, limit {limit_s:.0f} s at {rate_hz * 3600:.0f} events/h)"
        ),
        metadata=_finite(silent_s=silent_s, limit_s=limit_s, p_value=p_value, rate_hz=rate_hz),
    )


def _training_histogram(io_manager: JsonIOManager) -> PixelHistogram | None:
    """The training set's pixels; None as long as there are none."""
    stored = io_manager.stored(DATASET_PIXEL_HISTOGRAM)
    histogram = None if stored is None else PixelHistogram.from_json(stored)
    return histogram if histogram is not None and histogram.pixels else None


def _training_spec(instance: "DagsterInstance") -> str | None:
    """Of the specification that the training dataset was made by; None if there is no dataset."""
    event = instance.get_latest_materialization_event(TRAINING_DATASET)
    made = None if event is None else event.asset_materialization
    entry = None if made is None else made.metadata.get("spec_hash")
    return None if entry is None else str(entry.value)


def _last_message(inbox: Inbox) -> float | None:
    """When the inbox had its newest message from the DAQ, in seconds since 1970."""
    try:
        state = inbox.state()
        _, messages = inbox.read_after(state.last_sequence - 1, limit=1)
    except (InboxUnavailableError, SettingsError):
        return None  # what was materialized tells it, a little late
    received = [message.received for message in messages if message.received is not None]
    return received[-1].timestamp() if received else None


def _expected_clipping(
    spec: "PreprocessSpec", training: PixelHistogram | None
) -> tuple[float, float]:
    """Shares of the pixels, in [0, 1], that the window should clip low and high."""
    import numpy as np

    from cygno_assets.physics.distance import RECORDED_NOISE_ADU, with_noise
    from cygno_assets.physics.histogram import BINS

    if training is None:
        counts, noise = np.zeros(BINS, np.int64), SPREAD_ADU
        counts[round(PEDESTAL_ADU)] = 1
    else:
        counts, noise = training.counts, RECORDED_NOISE_ADU
    pixels, values = with_noise(counts, noise), np.arange(BINS)
    low, high = pixels[values < spec.window_low].sum(), pixels[values > spec.window_high].sum()
    return float(low / pixels.sum()), float(high / pixels.sum())


def _too_few(window: Window) -> bool:
    return len(window.events) < FEWEST_EVENTS


def _unjudged(key: AssetCheckKey, window: Window) -> AssetCheckResult:
    few = f"too few events to judge: {len(window.events)}, and {FEWEST_EVENTS} are needed"
    return _result(
        key,
        window,
        passed=True,
        severity=AssetCheckSeverity.WARN,
        description=few,
        metadata={},
    )


def _result(
    key: AssetCheckKey,
    window: Window,
    *,
    passed: bool,
    severity: AssetCheckSeverity,
    description: str,
    metadata: "Mapping[str, RawMetadataValue]",
) -> AssetCheckResult:
    return AssetCheckResult(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=passed,
        severity=severity,
        description=description,
        metadata={"events": len(window.events), **metadata},
    )


def _finite(**values: float) -> "dict[str, RawMetadataValue]":
    """Those that can be plotted."""
    return {label: value for label, value in values.items() if math.isfinite(value)}


def _over_time(
    times: "Sequence[float]",
    values: "NDArray[np.float64]",
    limits: tuple[float, float],
    label: str,
    title: str,
) -> "MarkdownMetadataValue":
    import numpy as np

    from cygno_assets.physics.figures import quantity_figure

    minutes = (np.array(times) - max(times)) / 60
    return figure(quantity_figure(minutes, values, limits, label, title), title)
