"""Which events happen, and when: seasons, arrival times, and the sources of images.

Belongs here: everything that is random about the stream, all of it decided by seeds.
Does not: what an image looks like (camera.py), clocks and the network (daq.py).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from cygno_assets.daq.simulator.camera import (
    NO_FAULT,
    CameraFault,
    file_name,
    record_image,
    simulate_image,
)
from cygno_assets.physics.ground_truth import RecoilType, UnlabelledPathError, label_of

ENERGIES_KEV = (1.0, 3.0, 6.0, 10.0, 20.0, 30.0)
"""The energies of the school's simulation."""


@dataclass(frozen=True, slots=True)
class SimulatedEvent:
    """One image as it goes into the bucket, and the truth about it, which never does.

    Args:
        image_bytes: The JPEG file.
        filename: Its name on the wire, from the md5 of the bytes.
        original: Where the image comes from: a file's path, or the seed and number of a simulation.
        recoil_type: None if unknown.
        energy_kev: Recoil energy in keV; None if unknown.
    """

    image_bytes: bytes
    filename: str
    original: str
    recoil_type: RecoilType | None
    energy_kev: float | None

    @property
    def is_signal(self) -> bool | None:
        """Whether it is a nuclear recoil; None if unknown."""
        return None if self.recoil_type is None else self.recoil_type == "nuclear"


@dataclass(frozen=True)
class Season:
    """The probability of signal, which rises and falls like dark matter's over the year.

    P(t) = peak * (1 + sin(2 pi t / period)) / 2: the school's DAQ.

    Args:
        period_s: Length of a "year" in seconds: 3 h by default there, 8 minutes at the school.
        peak: The highest probability.

    Raises:
        ValueError: A period that is not above 0, or a peak outside 0 to 1.
    """

    period_s: float
    peak: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.period_s < math.inf:
            raise ValueError(f"period_s = {self.period_s!r}: must be above 0")
        if not 0 <= self.peak <= 1:
            raise ValueError(f"peak = {self.peak!r}: must be between 0 and 1")

    def probability(self, t_s: float) -> float:
        """P(signal) at `t_s` seconds after the stream's start."""
        return self.peak * (1 + math.sin(2 * math.pi * t_s / self.period_s)) / 2


class ImageSource(Protocol):
    """Where images come from. It remembers its place: a second stream needs a new source."""

    def next_event(self, signal_probability: float) -> SimulatedEvent:
        """The next image; `signal_probability` is the season's."""


class ParametricImages:
    """Images from the camera model: nuclear recoils as often as the season says, else electronic.

    Args:
        seed: Decides every image. The camera is always the same one.
        fault: What is wrong with the camera.
        fault_from: The first event that it is wrong from, counted from 1.

    Raises:
        ValueError: fault_from below 1.
    """

    def __init__(self, seed: int, *, fault: CameraFault = NO_FAULT, fault_from: int = 1) -> None:
        if fault_from < 1:
            raise ValueError(f"fault_from = {fault_from}: must be at least 1")
        self._fault, self._fault_from = fault, fault_from
        self._seed = seed
        _, self._choices, self._pixels = _random_streams(seed)
        self._numbers = itertools.count()

    def next_event(self, signal_probability: float) -> SimulatedEvent:
        """The next image, of an energy drawn evenly from ENERGIES_KEV."""
        is_signal = self._choices.random() < signal_probability
        recoil_type: RecoilType = "nuclear" if is_signal else "electronic"
        energy_kev = float(self._choices.choice(ENERGIES_KEV))
        number = next(self._numbers)
        fault = self._fault if number + 1 >= self._fault_from else NO_FAULT
        image = simulate_image(self._pixels, recoil_type, energy_kev, fault=fault)
        image_bytes = record_image(self._pixels, image)
        return SimulatedEvent(
            image_bytes=image_bytes,
            filename=file_name(image_bytes),
            original=f"parametric/seed-{self._seed}/{number}",
            recoil_type=recoil_type,
            energy_kev=energy_kev,
        )


class ImagesFromDirectory:
    """The images of a folder and its subfolders, over and over in one seeded order.

    A .jpg or .jpeg goes out byte for byte; a .png as the school's DAQ does it, with noise and as
    JPEG. Truth comes from the path as in the school's training set, `{NR,ER}/<E>_keV/<name>`.
    The folder decides how many nuclear recoils there are; the season does not.

    Args:
        path: The folder.
        seed: Decides the order and the noise.

    Raises:
        ValueError: No images there.
    """

    def __init__(self, path: Path, seed: int) -> None:
        _, order, self._pixels = _random_streams(seed)
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in {".jpg", ".jpeg", ".png"})
        if not files:
            raise ValueError(f"path = {str(path)!r}: no .jpg, .jpeg or .png files there")
        self._files = itertools.cycle([files[i] for i in order.permutation(len(files))])

    def next_event(self, signal_probability: float) -> SimulatedEvent:  # noqa: ARG002
        """The next file.

        Raises:
            ValueError: A .png that is not 8-bit greyscale.
        """
        file = next(self._files)
        image_bytes = self._record(file) if file.suffix.lower() == ".png" else file.read_bytes()
        recoil_type, energy_kev = _truth_in_path(file)
        return SimulatedEvent(
            image_bytes=image_bytes,
            filename=file_name(image_bytes),
            original=str(file),
            recoil_type=recoil_type,
            energy_kev=energy_kev,
        )

    def _record(self, file: Path) -> bytes:
        with Image.open(file) as image:
            if image.mode != "L":
                raise ValueError(f"{file}: mode {image.mode!r}, must be 'L' (8-bit greyscale)")
            return record_image(self._pixels, np.asarray(image))


def event_stream(
    source: ImageSource, season: Season, rate_hz: float, seed: int
) -> Iterator[tuple[float, SimulatedEvent]]:
    """Events for ever, at Poisson times.

    Time is the stream's own, the sum of its gaps, so that the stream can be made again.

    Args:
        source: Where the images come from.
        season: How often the source is asked for signal.
        rate_hz: Mean events/s.
        seed: Decides the gaps, and nothing else.

    Yields:
        The seconds since the event before (the first: since the start), and the event.

    Raises:
        ValueError: A rate that is not above 0.
    """
    check_rate(rate_hz)
    arrivals, _, _ = _random_streams(seed)
    t_s = 0.0
    while True:
        gap_s = float(arrivals.exponential(1 / rate_hz))
        t_s += gap_s
        yield gap_s, source.next_event(season.probability(t_s))


def check_rate(rate_hz: float) -> None:
    """Raises ValueError if there is no Poisson process of `rate_hz` events/s."""
    if not 0 < rate_hz < math.inf:
        raise ValueError(f"rate_hz = {rate_hz!r}: must be above 0")


def _random_streams(seed: int) -> list[np.random.Generator]:
    """Independent generators for arrivals, choices and pixels: no draw in one shifts another."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)]


def _truth_in_path(file: Path) -> tuple[RecoilType | None, float | None]:
    try:
        label = label_of(file.as_posix())
    except UnlabelledPathError:
        return None, None
    return label.recoil_type, label.energy_kev
