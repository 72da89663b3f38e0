"""What the camera sees of one recoil, and how the DAQ records it as a file.

Belongs here: the parametric image model, its constants, the DAQ's noise and JPEG.
Does not: which recoils happen and when (events.py).

An image goes through the same two stages as the school's: `simulate_image` stands for the PNG of
the simulation (pedestal, track, the sensor's own noise), `record_image` for what the DAQ does to
a PNG (Gaussian noise, JPEG). "Measured" means: on four real images of the school's stream.
"""

import hashlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cygno_assets.physics.ground_truth import RecoilType

SIDE_PX = 576
"""Rows and columns: the sensor's 2304 pixels rebinned by 4, about 0.6 mm each."""
PEDESTAL_ADU = 99.9
"""Mean of an image without light (measured)."""
LIGHT_ADU_PER_KEV = 320.0
"""Integrated light: the two bright spots measured, 6350 and 6790 ADU, taken as 20 keV."""
SPOT_SIGMA_PX = (4.2, 5.0)
"""Gaussian width of a point-like recoil after the charge's diffusion (measured: 4.3 to 5.0)."""
START_SIGMA_PX = 3.0
"""Spread of the recoils' starts about the image's centre (measured: up to 8 pixels off)."""
COLUMN_SIGMA_ADU = 0.69
"""Column pattern: with the noise it makes the measured SD of column means, 0.71.

It is another one in each image: between the four real images the column means are uncorrelated
(|r| at most 0.12), as of noise in the columns' read-out and not of a fixed pattern."""
READ_NOISE_ADU = 3.15
"""Median pixel's read noise, such that a recorded image has the measured SD, 5.3."""
READ_NOISE_SPREAD = 0.3
"""Log-normal spread of read noise among pixels: the measured tails are wider than Gaussian."""
DAQ_NOISE_ADU = 0.02 * 255
"""RMS of the Gaussian noise that the school's DAQ adds to a PNG."""
JPEG_QUALITY = 80
"""The school's DAQ."""
HOT_COLUMN_ADU = 6.0
"""How far a hot column is above the others: 9 standard deviations of the column pattern, while the
hottest column of a good image is 2.2 ADU above them (median of 1,500 simulated images)."""

# An electron's range grows as a power of its energy; range and exponent follow the practical range
# of electrons in a light gas, stretched so that some 30 keV tracks leave the central 128 x 128, as
# the school's do. A nuclear recoil of these energies is shorter than a pixel.
_RANGE_30_KEV_PX = 115.0
_RANGE_EXPONENT = 1.7
_CURL_PER_PX = 0.03  # SD of a track's own constant turn, rad per pixel
_SCATTER_10_KEV = 0.2  # RMS of multiple scattering at 10 keV, rad per root pixel


@dataclass(frozen=True, kw_only=True)
class CameraFault:
    """What is wrong with a camera; by default nothing.

    Attributes:
        pedestal_shift_adu: added to every pixel, as a drifting offset of the read-out.
        hot_columns: so many columns are HOT_COLUMN_ADU too bright, the same ones in each image.
        exposure: the exposure's length over the right one. Light grows with it, and the pixels'
            noise with its square root, as that of light and of the dark current. Pedestal and
            column pattern come from the read-out, and stay; so does the DAQ's own noise.

    Raises:
        ValueError: a field out of its range.
    """

    pedestal_shift_adu: float = 0.0
    hot_columns: int = 0
    exposure: float = 1.0

    def __post_init__(self) -> None:
        if not -255 <= self.pedestal_shift_adu <= 255:
            raise ValueError(
                f"pedestal_shift_adu = {self.pedestal_shift_adu!r}: must be within 255 of 0"
            )
        if not 0 <= self.hot_columns <= SIDE_PX:
            raise ValueError(f"hot_columns = {self.hot_columns!r}: must be 0 to {SIDE_PX}")
        if not 0 < self.exposure <= 1000:
            raise ValueError(f"exposure = {self.exposure!r}: must be above 0, and at most 1000")


NO_FAULT = CameraFault()


def simulate_image(
    rng: np.random.Generator,
    recoil_type: RecoilType,
    energy_kev: float,
    *,
    noise: bool = True,
    pedestal_adu: float = PEDESTAL_ADU,
    camera_seed: int = 0,
    fault: CameraFault = NO_FAULT,
) -> NDArray[np.uint8]:
    """One image of the simulation, as the school's PNGs: before the DAQ's noise and JPEG.

    Args:
        rng: Decides the track and the noise.
        recoil_type: A compact spot ("nuclear") or a long curling track ("electronic").
        energy_kev: Recoil energy in keV, above 0.
        noise: With the sensor's noise and column pattern; without, only pedestal and light.
        pedestal_adu: Mean of the image without light, in ADU.
        camera_seed: Which camera: its pixels' read noise, and which of its columns become hot.
        fault: What is wrong with it. It draws nothing from `rng`, so the same seed makes the same
            tracks and the same noise with any fault.

    Returns:
        Shape (576, 576), uint8, in ADU.

    Raises:
        ValueError: A recoil type or energy that does not exist.
    """
    light = np.float32(fault.exposure) * track_light(rng, recoil_type, energy_kev)
    image = pedestal_adu + fault.pedestal_shift_adu + light
    if noise:
        image += COLUMN_SIGMA_ADU * rng.standard_normal(SIDE_PX, dtype=np.float32)
        read_noise = np.float32(math.sqrt(fault.exposure)) * _read_noise(camera_seed)
        image += read_noise * rng.standard_normal(image.shape, dtype=np.float32)
    image[:, hot_columns(fault.hot_columns, camera_seed)] += HOT_COLUMN_ADU
    return _to_uint8(image)


def hot_columns(number: int, camera_seed: int = 0) -> NDArray[np.intp]:
    """Which columns of a camera become hot first: so many, all different."""
    columns: NDArray[np.intp] = np.random.default_rng([camera_seed, 1]).permutation(SIDE_PX)
    return columns[:number]


def track_light(
    rng: np.random.Generator, recoil_type: RecoilType, energy_kev: float
) -> NDArray[np.float32]:
    """The light of one recoil alone, LIGHT_ADU_PER_KEV for each keV.

    Args:
        rng: Decides start, direction, path and diffusion.
        recoil_type: "nuclear" or "electronic".
        energy_kev: Recoil energy in keV, above 0.

    Returns:
        Shape (576, 576), float32, in ADU.

    Raises:
        ValueError: A recoil type or energy that does not exist.
    """
    if not (np.isfinite(energy_kev) and energy_kev > 0):
        raise ValueError(f"energy_kev = {energy_kev!r}: must be above 0")
    start = rng.normal(SIDE_PX / 2, START_SIGMA_PX, 2)
    sigma = rng.uniform(*SPOT_SIGMA_PX)
    if recoil_type == "nuclear":
        points, deposits = start[:, np.newaxis], np.array([energy_kev])
    elif recoil_type == "electronic":
        path, deposits = _electron_path(rng, energy_kev)
        points = start[:, np.newaxis] + path
    else:
        raise ValueError(f"recoil_type = {recoil_type!r}: must be 'nuclear' or 'electronic'")
    light = LIGHT_ADU_PER_KEV * deposits[:, np.newaxis]
    # A Gaussian spot is the product of its row and column profiles. Only where there is light, and
    # not by BLAS, which would occupy all cores.
    row_window, rows = _profiles(points[0], sigma)
    column_window, columns = _profiles(points[1], sigma)
    image = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    image[row_window, column_window] = np.einsum("nr,nc->rc", light * rows, columns)
    return image


def record_image(rng: np.random.Generator, image: NDArray[np.uint8]) -> bytes:
    """What the school's DAQ makes of a PNG: Gaussian noise of RMS 5.1 ADU, then JPEG.

    Args:
        rng: Decides the noise.
        image: Shape (rows, columns), uint8, in ADU.

    Returns:
        The bytes of a JPEG file.

    Raises:
        ValueError: Not a two-dimensional uint8 image.
    """
    noise = DAQ_NOISE_ADU * rng.standard_normal(image.shape, dtype=np.float32)
    return encode_jpeg(_to_uint8(image + noise))


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """The image as a JPEG file of quality 80.

    Args:
        image: Shape (rows, columns), uint8, in ADU.

    Returns:
        The bytes of a JPEG file, mode L.

    Raises:
        ValueError: Not a two-dimensional uint8 image.
    """
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}: must be uint8 and 2-D")
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def file_name(image_bytes: bytes) -> str:
    """The name under which the school's DAQ publishes a file: `cygno-<md5 of its bytes>.jpg`."""
    return f"cygno-{hashlib.md5(image_bytes, usedforsecurity=False).hexdigest()}.jpg"


def _profiles(centres: NDArray[np.float64], sigma: float) -> tuple[slice, NDArray[np.float64]]:
    """Where Gaussian spots at `centres` (n,) are, m pixels, and their profiles there (n, m)."""
    reach = [centres.min() - 5 * sigma, centres.max() + 5 * sigma]
    low, high = np.clip(reach, 0, SIDE_PX).astype(int)
    offsets = (np.arange(low, high) - centres[:, np.newaxis]) / sigma
    return slice(low, high), np.exp(-0.5 * offsets**2) / (sigma * np.sqrt(2 * np.pi))


def _electron_path(
    rng: np.random.Generator, energy_kev: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Path (2, n) in pixels from the start, and the energy (n,) in keV lost at each point."""
    range_px = _RANGE_30_KEV_PX * (energy_kev / 30) ** _RANGE_EXPONENT
    steps = max(1, int(np.ceil(range_px)))
    step_px = range_px / steps
    # The range still ahead is the energy still left (Bragg): most is lost at the end.
    left_kev = energy_kev * np.linspace(1, 0, steps + 1) ** (1 / _RANGE_EXPONENT)
    # Scattering grows as the electron slows down, so tracks curl up at their end.
    turn = rng.normal(0, _CURL_PER_PX) * step_px
    scatter = _SCATTER_10_KEV * (10 / left_kev[:-1]) * np.sqrt(step_px)
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(turn + scatter * rng.standard_normal(steps))
    # Seen from the cathode: a track along the drift direction looks short and bright.
    seen = step_px * np.sqrt(1 - rng.uniform(-1, 1) ** 2)
    return seen * np.cumsum([np.sin(angle), np.cos(angle)], axis=1), -np.diff(left_kev)


@lru_cache(maxsize=4)
def _read_noise(camera_seed: int) -> NDArray[np.float32]:
    """RMS of each pixel's read noise, in ADU, (576, 576): what is fixed in one camera."""
    spread = np.random.default_rng(camera_seed).standard_normal(
        (SIDE_PX, SIDE_PX), dtype=np.float32
    )
    factor: NDArray[np.float32] = np.exp(np.float32(READ_NOISE_SPREAD) * spread)
    return np.float32(READ_NOISE_ADU) * factor


def _to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
