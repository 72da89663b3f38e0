"""Each check of a window of live events: quiet when all is well, fires on its fault, and heals."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetMaterialization,
    AssetSelection,
    DagsterInstance,
    Definitions,
    define_asset_job,
)
from PIL import Image

from cygno_assets.assets.live import image_metadata, tensor_metadata
from cygno_assets.build import build_defs
from cygno_assets.checks.live_window import (
    ALARM_P,
    FEWEST_EVENTS,
    LIVE_WINDOW_CHECKS,
    judge_camera,
    judge_clipping,
    judge_columns,
    judge_histogram,
    judge_pedestal,
    judge_rate,
    judge_silence,
    judge_specification,
)
from cygno_assets.daq.simulator.camera import NO_FAULT, CameraFault, hot_columns, simulate_image
from cygno_assets.names import TRAINING_DATASET
from cygno_assets.physics.histogram import PixelHistogram, pixel_counts
from cygno_assets.settings import SettingsError, load_settings
from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets_tests.checks.live_events import RATE_HZ, SPEC, Event, events, until, window
from cygno_assets_tests.wire import REAL_IMAGES, fill_inbox, message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dagster import AssetCheckResult

    from cygno_assets.records.window import Window

WINDOW = 30
"""Events in the windows of these tests."""


@lru_cache
def training() -> PixelHistogram:
    rng = np.random.default_rng(77)
    return PixelHistogram.total(
        PixelHistogram(1, pixel_counts(Image.fromarray(simulate_image(rng, recoil_type, 10))))
        for recoil_type in ("nuclear", "electronic") * 10  # type: ignore[arg-type]
    )


def judged(name: str, of: Window) -> AssetCheckResult:
    """One check's verdict, with a training set there."""
    verdicts = {
        "camera": lambda: judge_camera(of),
        "pedestal": lambda: judge_pedestal(of),
        "columns": lambda: judge_columns(of),
        "histogram": lambda: judge_histogram(of, training()),
        "clipping": lambda: judge_clipping(of, SPEC, training()),
        "specification": lambda: judge_specification(of, SPEC.hash, SPEC.hash),
        "rate": lambda: judge_rate(of, None),
        "silence": lambda: judge_silence(of, None, last=of.newest, now=of.newest or 0.0),
    }
    return verdicts[name]()


def with_mode(found: Sequence[Event]) -> list[Event]:
    return [replace(event, image={**event.image, "mode": "I;16"}) for event in found]


def of_other_spec(found: Sequence[Event]) -> list[Event]:
    return [replace(event, tensor={**event.tensor, "spec_hash": "0" * 12}) for event in found]


FAULTS: dict[str, tuple[str, Any]] = {
    "another mode": ("camera", with_mode),
    "pedestal +2 ADU": ("pedestal", CameraFault(pedestal_shift_adu=2)),
    "pedestal −2 ADU": ("pedestal", CameraFault(pedestal_shift_adu=-2)),
    "exposure × 2": ("pedestal", CameraFault(exposure=2)),
    "a hot column": ("columns", CameraFault(hot_columns=1)),
    "many hot columns": ("columns", CameraFault(hot_columns=40)),
    "pedestal +2 ADU, pixels": ("histogram", CameraFault(pedestal_shift_adu=2)),
    "exposure × 4, pixels": ("histogram", CameraFault(exposure=4)),
    "pedestal +3 ADU, clipped": ("clipping", CameraFault(pedestal_shift_adu=3)),
    "exposure × 4, clipped": ("clipping", CameraFault(exposure=4)),
    "another specification": ("specification", of_other_spec),
    "a tenth of the rate": ("rate", 0.1),
    "thrice the rate": ("rate", 3.0),
}


def bad_events(fault: Any, after: Sequence[Event]) -> list[Event]:
    if isinstance(fault, CameraFault):
        return events(WINDOW, 5, fault, after=after)
    if isinstance(fault, float):
        return events(WINDOW, 5, rate_hz=fault * RATE_HZ, after=after)
    return list(fault(events(WINDOW, 5, after=after)))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_it_fires_one_good_event_does_not_heal_it_and_a_good_window_does(fault: str) -> None:
    check, what = FAULTS[fault]
    past = events(60, 1)
    bad = bad_events(what, past)
    red = judged(check, window(bad, past))
    assert not red.passed, red.description
    one_good = events(1, 6, after=bad)
    still = judged(check, window([*bad[1:], *one_good], past))
    assert not still.passed, still.description
    good = events(WINDOW, 7, after=bad)
    green = judged(check, window(good, past))
    assert green.passed, green.description


@pytest.mark.parametrize("check", sorted({check for check, _ in FAULTS.values()} | {"silence"}))
def test_twenty_good_windows_give_no_alarm(check: str) -> None:
    stream = events(60 + 20 * WINDOW, 2)
    for number, first in enumerate(range(60, len(stream), WINDOW)):
        past = stream[first - 60 : first] if number % 2 else []
        found = judged(check, window(stream[first : first + WINDOW], past))
        assert found.passed, found.description


@pytest.mark.parametrize("check", sorted({check for check, _ in FAULTS.values()}))
def test_too_few_events_are_not_judged(check: str) -> None:
    bad = dict(FAULTS.values())[check]
    found = judged(check, window(bad_events(bad, events(5, 1))[: FEWEST_EVENTS - 1]))
    assert found.passed
    assert found.description == "too few events to judge: 19, and 20 are needed"


@pytest.mark.parametrize("check", sorted({check for check, _ in FAULTS.values()} | {"silence"}))
def test_numbers_can_be_plotted_and_keep_their_names(check: str) -> None:
    past, labels = events(60, 1), []
    for fault in (NO_FAULT, CameraFault(pedestal_shift_adu=2)):
        found = judged(check, window(events(WINDOW, 5, fault, after=past), past))
        plotted = {
            label: entry.value
            for label, entry in found.metadata.items()
            if isinstance(entry.value, float)
        }
        assert plotted
        assert all(math.isfinite(value) for value in plotted.values())
        labels.append(sorted(plotted))
    assert labels[0] == labels[1]


@pytest.mark.parametrize("check", ["camera", "pedestal", "columns", "histogram", "clipping"])
def test_the_schools_own_images_give_no_alarm(check: str) -> None:
    real = [Image.open(path) for path in REAL_IMAGES] * 5
    found = [
        replace(event, image=image_metadata(image), tensor=tensor_metadata(image, SPEC))
        for event, image in zip(events(len(real), 5), real, strict=True)
    ]
    verdict = judged(check, window(found))
    assert verdict.passed, verdict.description
    assert "too few" not in str(verdict.description)


def test_without_a_past_the_documented_pedestal_is_the_limit() -> None:
    assert judge_pedestal(window(events(WINDOW, 5, CameraFault(pedestal_shift_adu=2)))).passed
    found = judge_pedestal(window(events(WINDOW, 5, CameraFault(pedestal_shift_adu=8))))
    assert not found.passed
    assert "+8.0" in str(found.description)
    assert "without past" in str(found.description)


def test_a_drift_that_harms_nobody_is_no_alarm() -> None:
    past = events(60, 1)
    drifted = events(WINDOW, 5, CameraFault(pedestal_shift_adu=0.3), after=past)
    assert judge_pedestal(window(drifted, past)).passed


def test_a_mended_pedestal_is_good_however_long_it_was_bad() -> None:
    past = events(60, 1, CameraFault(pedestal_shift_adu=8))
    assert judge_pedestal(window(events(WINDOW, 5, after=past), past)).passed
    half = events(WINDOW, 5, CameraFault(pedestal_shift_adu=4), after=past)
    assert not judge_pedestal(window(half, past)).passed


def test_the_hot_column_is_named() -> None:
    found = judge_columns(window(events(WINDOW, 5, CameraFault(hot_columns=1))))
    assert found.metadata["hottest_column"].value == hot_columns(1)[0]
    assert f"column {hot_columns(1)[0]} is the hottest in" in str(found.description)


def test_images_of_another_kind_are_named() -> None:
    found = events(WINDOW, 5)
    found[3] = replace(found[3], image={**found[3].image, "dimensions_px": "640 × 480"})
    verdict = judge_camera(window(found))
    assert verdict.description == (
        "3.3% of 30 images are not 576 × 576 pixels of mode L; 1 are 640 × 480 of mode L"
    )
    assert verdict.metadata["which"].value == found[3].event_id


def test_without_a_training_set_nothing_is_compared_with_it() -> None:
    shifted = window(events(WINDOW, 5, CameraFault(pedestal_shift_adu=8)))
    found = judge_histogram(shifted, None)
    assert (found.passed, found.description) == (True, "no training set to compare with yet")
    clipping = judge_clipping(shifted, SPEC, None)
    assert not clipping.passed
    assert "limits from the pedestal alone" in str(clipping.description)
    assert judge_clipping(window(events(WINDOW, 5)), SPEC, None).passed


def test_a_training_set_of_another_specification_is_said() -> None:
    found = judge_specification(window(events(WINDOW, 5)), SPEC.hash, "f" * 12)
    assert not found.passed
    assert "the training dataset is made by ffffffffffff" in str(found.description)
    assert judge_specification(window(events(WINDOW, 5)), SPEC.hash, None).passed


def test_the_rate_may_be_set_and_pauses_are_none_of_it() -> None:
    found = window(events(WINDOW, 5))
    assert judge_rate(found, RATE_HZ).passed
    assert not judge_rate(found, 5 * RATE_HZ).passed
    assert not judge_rate(found, RATE_HZ / 5).passed
    first = events(WINDOW, 5)
    later = [replace(e, at=e.at + 7200) for e in events(WINDOW, 8, after=first)]
    paused = judge_rate(window([*first, *later], events(60, 1)), None)
    assert paused.passed, paused.description
    assert "1 pauses left out" in str(paused.description)


def test_a_backlog_that_arrives_at_once_is_no_burst() -> None:
    past, found = events(60, 1), events(WINDOW, 5)
    at_once = [
        replace(event, at=found[-1].at, image={**event.image, "acquired": event.at})
        for event in found
    ]
    assert judge_rate(window(at_once), RATE_HZ).passed
    assert judge_rate(window(at_once, past), None).passed


@pytest.mark.parametrize("expected_hz", [None, RATE_HZ])
def test_silence_is_an_alarm_when_it_is_improbable_and_ends_with_an_event(
    expected_hz: float | None,
) -> None:
    found = window(events(WINDOW, 5), events(60, 1))
    newest = found.newest
    assert newest is not None

    def after(seconds: float, last: float | None = None) -> AssetCheckResult:
        return judge_silence(found, expected_hz, last=last, now=newest + seconds)

    assert after(60).passed
    limit = float(str(after(60).metadata["limit_s"].value))
    assert 80 < limit < 400  # 166 s for a rate that is known
    assert after(limit - 1).passed
    silent = after(limit + 1)
    assert not silent.passed
    assert float(str(silent.metadata["p_value"].value)) < ALARM_P
    assert not after(1e7).passed
    assert after(1e7, last=newest + 1e7 - 5).passed  # announced, and not made yet


def test_silence_after_a_few_events_needs_longer_and_after_none_is_no_alarm() -> None:
    few = events(5, 5)
    quiet = judge_silence(window(few), None, last=few[-1].at, now=few[-1].at + 200)
    assert quiet.passed
    assert not judge_silence(window(few), None, last=None, now=few[-1].at + 86_400).passed
    never = judge_silence(window([]), None, last=None, now=time.time())
    assert (never.passed, never.description) == (True, "nothing was ever announced")
    one = judge_silence(window([]), None, last=time.time() - 9, now=time.time())
    assert one.passed
    assert "too few events to say how long is long" in str(one.description)
    assert not judge_silence(window([]), 1.0, last=time.time() - 90, now=time.time()).passed


# Through Dagster


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:  # in memory; its SQL is that of the files
        yield ephemeral


def evaluated(instance: DagsterInstance, **overrides: object) -> dict[str, AssetCheckEvaluation]:
    definitions = Definitions.merge(
        build_defs(load_settings(overrides)),
        Definitions(jobs=[define_asset_job("judge", AssetSelection.checks(*LIVE_WINDOW_CHECKS))]),
    )
    result = definitions.resolve_job_def("judge").execute_in_process(instance=instance)
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def failing(checks: dict[str, AssetCheckEvaluation]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


def test_dagster_judges_the_window_of_its_own_event_log(
    instance: DagsterInstance, inbox_url: str
) -> None:
    counts = training().to_json()
    write_whole(
        data_root(load_settings()) / "dataset_pixel_histogram.json",
        json.dumps(counts).encode(),
    )
    instance.report_runless_asset_event(
        AssetMaterialization(TRAINING_DATASET, metadata={"spec_hash": SPEC.hash})
    )
    settings = {"inbox_url": inbox_url, "live_window_s": 600.0}
    checks = evaluated(instance, **settings)
    assert set(checks) == {key.name for key in LIVE_WINDOW_CHECKS}
    assert not failing(checks)  # no event at all

    past = events(30, 1)
    bad = events(60, 5, CameraFault(pedestal_shift_adu=4, hot_columns=1), after=past)
    for event in until(time.time() - 600, [*past, *bad]):
        event.report(instance)
    checks = evaluated(instance, **settings)
    assert failing(checks) == {
        "pedestal_is_steady",
        "no_column_is_hot",
        "pixels_are_as_in_training",
        "window_clips_few_pixels",
        "daq_is_not_silent",
    }
    pedestal = checks["pedestal_is_steady"]
    assert pedestal.asset_key.to_user_string() == "daq_announcements"
    assert pedestal.severity.value == "ERROR"
    assert "data:image/" in str(pedestal.metadata["plot"].value)
    assert pedestal.metadata["mean_adu_shift"].value == pytest.approx(4, abs=0.1)
    assert checks["window_clips_few_pixels"].severity.value == "WARN"

    # It is announced again, but nothing of it is made yet.
    fill_inbox(inbox_url, [message("cygno-1.jpg", "https://daq.invalid/x")])
    assert "daq_is_not_silent" not in failing(evaluated(instance, **settings))

    for event in until(time.time(), events(60, 9, after=bad)):
        event.report(instance)
    assert not failing(evaluated(instance, **settings))


def test_runs_of_the_assets_take_no_check_along() -> None:
    definitions = build_defs(load_settings())
    job = definitions.resolve_job_def("live_event")
    assert not job.asset_layer.asset_graph.asset_check_keys
    # Made by no run, so that Dagster calls no verdict on it out of date.
    graph = definitions.get_repository_def().asset_graph
    assert not any(graph.get(key.asset_key).is_materializable for key in LIVE_WINDOW_CHECKS)


def test_a_cron_line_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r"CYGNO_LIVE_CHECKS_CRON: 'daily' is no cron line"):
        build_defs(load_settings({"live_checks_cron": "daily"}))
