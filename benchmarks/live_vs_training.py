"""How far live pixels are from the training set's, with nothing wrong and with what may go wrong.

The calibration of the check `pixels_are_as_in_training` and of the noise it adds to the training
set, and what the other limits of checks/live_window.py are held against. On the simulated
detector; no server, no Dagster.

    python -m benchmarks.live_vs_training [--windows 20] [--events 50] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cygno_assets.daq.simulator.camera import NO_FAULT, CameraFault, simulate_image
from cygno_assets.daq.simulator.events import ParametricImages
from cygno_assets.daq.simulator.training_set import POPULATION
from cygno_assets.physics.columns import column_pattern
from cygno_assets.physics.distance import RECORDED_NOISE_ADU, wasserstein_adu, with_noise
from cygno_assets.physics.histogram import BINS, mean_and_sd, pixel_counts
from cygno_assets.physics.images import clipped_shares
from cygno_assets.physics.spec import PreprocessSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAULTS = {
    "nothing wrong": NO_FAULT,
    "pedestal +0.5 ADU": CameraFault(pedestal_shift_adu=0.5),
    "pedestal +1 ADU": CameraFault(pedestal_shift_adu=1),
    "pedestal +2 ADU": CameraFault(pedestal_shift_adu=2),
    "exposure × 1.5": CameraFault(exposure=1.5),
    "exposure × 2": CameraFault(exposure=2),
    "exposure × 4": CameraFault(exposure=4),
    "1 hot column": CameraFault(hot_columns=1),
    "50 hot columns": CameraFault(hot_columns=50),
}
_FRACTION = 0.25  # of the school's population: its histogram is known to a thousandth of an ADU
_SIGNAL = 0.05  # the mean over a season


def training_counts(seed: int) -> NDArray[np.int64]:
    """Pixels of a training set with the school's population, (256,)."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(BINS, np.int64)
    for (recoil_type, energy_kev), images in POPULATION.items():
        for _ in range(max(1, round(_FRACTION * images))):
            image = simulate_image(rng, recoil_type, energy_kev)
            counts += pixel_counts(Image.fromarray(image))
    return counts


def window(seed: int, events: int, fault: CameraFault, spec: PreprocessSpec) -> dict[str, Any]:
    """A window of live images, summed, and what single images of it tell."""
    source = ParametricImages(seed, fault=fault)
    counts = np.zeros(BINS, np.int64)
    found: dict[str, list[float]] = {"mean": [], "sd": [], "low": [], "high": [], "excess": []}
    hottest = []
    for _ in range(events):
        image = Image.open(io.BytesIO(source.next_event(_SIGNAL).image_bytes))
        of_image = pixel_counts(image)
        counts += of_image
        pattern = column_pattern(np.asarray(image))
        low, high = clipped_shares(image, spec)
        values = (*mean_and_sd(of_image), low, high, pattern.excess_adu)
        for label, value in zip(found, values, strict=True):
            found[label].append(value)
        hottest.append(pattern.hottest)
    medians = {label: float(np.median(values)) for label, values in found.items()}
    return {"counts": counts, "hottest_share": np.bincount(hottest).max() / events, **medians}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--windows", type=int, default=20, help="windows for each fault")
    parser.add_argument("--events", type=int, default=50, help="events in each window")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    spec, training = PreprocessSpec(), training_counts(seed=1_000_000)
    recorded = with_noise(training, RECORDED_NOISE_ADU)
    results: dict[str, dict[str, float]] = {}
    live_sd = 0.0
    for number, (name, fault) in enumerate(FAULTS.items()):
        windows = [
            window(1000 * number + seed, arguments.events, fault, spec)
            for seed in range(arguments.windows)
        ]
        distances = [wasserstein_adu(one["counts"], recorded) for one in windows]
        results[name] = {
            "distance_min": min(distances),
            "distance_median": float(np.median(distances)),
            "distance_max": max(distances),
            **{
                f"{label}_{edge.__name__}": float(edge([one[label] for one in windows]))
                for label in ("mean", "sd", "high", "excess", "hottest_share")
                for edge in (min, max)
            },
        }
        if fault == NO_FAULT:
            live_sd = mean_and_sd(sum(one["counts"] for one in windows))[1]
    training_sd = mean_and_sd(training)[1]
    noise = {
        "training_sd_adu": training_sd,
        "live_sd_adu": live_sd,
        "noise_adu": (live_sd**2 - training_sd**2) ** 0.5,
        "noise_used_adu": RECORDED_NOISE_ADU,
    }
    if not arguments.json:
        print(
            f"standard deviations, ADU: training {training_sd:.2f}, live {live_sd:.2f}; noise "
            f"between them {noise['noise_adu']:.2f}, used {RECORDED_NOISE_ADU}\n"
        )
        print(
            f"{arguments.windows} windows of {arguments.events} events: distance (min–max, ADU), "
            "and medians of mean and SD (ADU), clipped high, excess of the hottest column (ADU), "
            "its share"
        )
        for name, one in results.items():
            shown = (
                f"{one[f'{label}_min']:7.{digits}f}–{one[f'{label}_max']:<7.{digits}f}"
                for label, digits in (
                    *(("distance", 3), ("mean", 2), ("sd", 2), ("high", 4), ("excess", 2)),
                    ("hottest_share", 2),
                )
            )
            print(f"{name:18}", *shown)
    print(
        json.dumps(
            {
                "windows": arguments.windows,
                "events": arguments.events,
                "noise": noise,
                "faults": results,
            }
        )
    )


if __name__ == "__main__":
    main()
