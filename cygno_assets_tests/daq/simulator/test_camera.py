import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cygno_assets.daq.simulator.camera import (
    HOT_COLUMN_ADU,
    LIGHT_ADU_PER_KEV,
    PEDESTAL_ADU,
    SIDE_PX,
    CameraFault,
    RecoilType,
    encode_jpeg,
    file_name,
    hot_columns,
    record_image,
    simulate_image,
    track_light,
)
from cygno_assets.daq.simulator.events import ParametricImages

REAL_EVENTS = Path(__file__).parents[2] / "data" / "real_events"
RECOIL_TYPES: tuple[RecoilType, ...] = ("nuclear", "electronic")
recoil_types = st.sampled_from(RECOIL_TYPES)
energies = st.floats(0.5, 30)
seeds = st.integers(0, 2**32 - 1)


def decode(image_bytes: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(image_bytes)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (SIDE_PX, SIDE_PX))
        return np.asarray(image).astype(float)


def statistics(image_bytes: bytes) -> dict[str, float]:
    image = decode(image_bytes)
    return {
        "mean": float(image.mean()),
        "sd": float(image.std()),
        "column means": float(image.mean(axis=0).std()),
        "row means": float(image.mean(axis=1).std()),
        "min": float(image.min()),
        "max": float(image.max()),
        "kB": len(image_bytes) / 1000,
    }


def outside_crop(light: NDArray[np.float32]) -> float:
    low, high = SIDE_PX // 2 - 64, SIDE_PX // 2 + 64
    return 1 - float(light[low:high, low:high].sum() / light.sum())


def length(light: NDArray[np.float32]) -> float:
    """RMS distance of the light from its centre, in pixels."""
    rows, columns = np.indices(light.shape)
    weights = light / light.sum()
    row, column = (weights * rows).sum(), (weights * columns).sum()
    return float(np.sqrt((weights * ((rows - row) ** 2 + (columns - column) ** 2)).sum()))


@pytest.fixture(scope="module")
def real() -> list[bytes]:
    files = sorted(REAL_EVENTS.glob("*.jpg"))
    assert len(files) == 4
    return [file.read_bytes() for file in files]


@pytest.fixture(scope="module")
def simulated() -> list[bytes]:
    source = ParametricImages(seed=1)
    return [source.next_event(0.5).image_bytes for _ in range(60)]


@pytest.mark.parametrize(
    ("quantity", "tolerance"),
    [
        ("mean", 0.08),
        ("sd", 0.08),
        ("column means", 0.04),
        ("row means", 0.02),
        ("min", 9),
        ("kB", 0.5),
    ],
)
def test_mean_statistics_agree_with_the_real_images(
    quantity: str, tolerance: float, real: list[bytes], simulated: list[bytes]
) -> None:
    theirs = np.mean([statistics(image)[quantity] for image in real])
    ours = np.mean([statistics(image)[quantity] for image in simulated])

    assert ours == pytest.approx(theirs, abs=tolerance)


def test_every_image_is_within_the_range_of_the_live_stream(simulated: list[bytes]) -> None:
    for image in simulated:
        found = statistics(image)
        assert found["mean"] == pytest.approx(99.9, abs=0.15)
        assert found["sd"] == pytest.approx(5.35, abs=0.15)
        assert found["column means"] == pytest.approx(0.71, abs=0.09)  # 4 SD of an SD of 576
        assert found["row means"] == pytest.approx(0.29, abs=0.07)
        assert 55 <= found["min"] <= 76
        assert 120 <= found["max"] <= 195


def test_cumulative_histogram_agrees_with_the_real_images(
    real: list[bytes], simulated: list[bytes]
) -> None:
    def cumulative(images: list[bytes]) -> NDArray[np.float64]:
        pixels = np.concatenate([decode(image).ravel() for image in images]).astype(np.int64)
        return np.bincount(pixels, minlength=256).cumsum() / pixels.size

    assert np.abs(cumulative(real) - cumulative(simulated)).max() < 0.005


def test_the_noise_is_as_blurred_by_the_jpeg_as_in_the_real_images(
    real: list[bytes], simulated: list[bytes]
) -> None:
    def correlations(images: list[bytes]) -> NDArray[np.float64]:
        corners = np.array([decode(image)[:192, :192] for image in images])
        z = (corners - corners.mean()) / corners.std()
        return np.array([(z[:, 1:] * z[:, :-1]).mean(), (z[:, :, 1:] * z[:, :, :-1]).mean()])

    np.testing.assert_allclose(correlations(simulated), correlations(real), atol=0.03)


def test_the_column_pattern_is_another_one_in_each_image_as_in_the_real_ones() -> None:
    def correlations(images: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        columns = np.corrcoef([image.mean(axis=0) for image in images])
        return np.asarray(np.abs(columns[np.triu_indices(len(images), 1)]))

    real = [np.asarray(Image.open(file)) for file in REAL_EVENTS.glob("*.jpg")]
    simulated = [simulate_image(np.random.default_rng(seed), "nuclear", 1) for seed in range(6)]
    assert correlations(real).max() < 0.15
    assert correlations(simulated).max() < 0.15


@given(seeds, recoil_types, energies)
@settings(max_examples=25, deadline=None)
def test_light_is_proportional_to_energy_and_inside_the_image(
    seed: int, recoil_type: RecoilType, energy_kev: float
) -> None:
    light = track_light(np.random.default_rng(seed), recoil_type, energy_kev)

    assert light.shape == (SIDE_PX, SIDE_PX)
    assert light.dtype == np.float32
    assert light.min() >= 0
    assert light.sum() == pytest.approx(LIGHT_ADU_PER_KEV * energy_kev, rel=1e-3)


@given(seeds, recoil_types, energies)
@settings(max_examples=10, deadline=None)
def test_the_clean_image_is_pedestal_and_light_only(
    seed: int, recoil_type: RecoilType, energy_kev: float
) -> None:
    image = simulate_image(np.random.default_rng(seed), recoil_type, energy_kev, noise=False)
    light = track_light(np.random.default_rng(seed), recoil_type, energy_kev)

    assert image.shape == (SIDE_PX, SIDE_PX)
    assert image.dtype == np.uint8
    assert np.abs(image - (PEDESTAL_ADU + light)).max() <= 0.5 + 1e-4


def test_pedestal_moves_the_image() -> None:
    image = simulate_image(np.random.default_rng(0), "nuclear", 1, pedestal_adu=40)

    assert image.mean() == pytest.approx(40, abs=0.1)


def faulty(fault: CameraFault, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    image = simulate_image(rng, "electronic", 6, fault=fault)
    return decode(record_image(rng, image))


def test_a_shifted_pedestal_moves_every_pixel_and_nothing_else() -> None:
    good, bad = faulty(CameraFault()), faulty(CameraFault(pedestal_shift_adu=8))

    assert (bad - good).mean() == pytest.approx(8, abs=0.02)
    assert bad.std() == pytest.approx(good.std(), abs=0.02)


def test_hot_columns_are_the_same_ones_in_each_image() -> None:
    fault = CameraFault(hot_columns=3)
    excess = [faulty(fault, s).mean(0) - faulty(CameraFault(), s).mean(0) for s in range(3)]

    assert [set(np.flatnonzero(one > HOT_COLUMN_ADU / 2)) for one in excess] == [
        set(hot_columns(3))
    ] * 3
    # The JPEG takes up to half an ADU of it.
    assert np.mean(excess, axis=0)[hot_columns(3)] == pytest.approx(HOT_COLUMN_ADU, abs=0.8)
    assert set(hot_columns(3)) < set(hot_columns(10))
    assert set(hot_columns(3, camera_seed=1)) != set(hot_columns(3))


def test_a_longer_exposure_has_more_light_and_the_root_more_noise() -> None:
    def images(exposure: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        fault, rng = CameraFault(exposure=exposure), np.random.default_rng
        clean = simulate_image(rng(0), "nuclear", 6, noise=False, fault=fault)
        return clean, simulate_image(rng(0), "nuclear", 6, fault=fault)

    (light, image), (more_light, brighter) = images(1), images(4)
    lit = light > PEDESTAL_ADU + 5
    assert (more_light[lit] - PEDESTAL_ADU).sum() == pytest.approx(
        4 * (light[lit] - PEDESTAL_ADU).sum(), rel=0.01
    )
    dark = ~lit & (more_light < PEDESTAL_ADU + 1)
    noise, more_noise = ((one - one.mean(axis=0))[dark].std() for one in (image, brighter))
    assert more_noise / noise == pytest.approx(2, rel=0.02)
    assert np.median(brighter) == np.median(image)


@given(seeds, st.floats(-50, 50), st.integers(0, 20), st.floats(0.5, 4))
@settings(max_examples=5, deadline=None)
def test_a_fault_draws_nothing(seed: int, shift: float, columns: int, exposure: float) -> None:
    fault = CameraFault(pedestal_shift_adu=shift, hot_columns=columns, exposure=exposure)
    good, bad = np.random.default_rng(seed), np.random.default_rng(seed)
    simulate_image(good, "electronic", 6)
    simulate_image(bad, "electronic", 6, fault=fault)

    assert good.bit_generator.state == bad.bit_generator.state


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pedestal_shift_adu", 256),
        ("pedestal_shift_adu", float("nan")),
        ("hot_columns", -1),
        ("hot_columns", 577),
        ("exposure", 0),
        ("exposure", float("inf")),
    ],
)
def test_a_fault_that_does_not_exist_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        CameraFault(**{field: value})  # type: ignore[arg-type]


def test_electron_tracks_are_longer_and_only_they_leave_the_crop() -> None:
    rng = np.random.default_rng(2)
    nuclear = [track_light(rng, "nuclear", 30) for _ in range(20)]
    electron = [track_light(rng, "electronic", 30) for _ in range(40)]

    assert max(length(light) for light in nuclear) < 8
    assert np.median([length(light) for light in electron]) > 15
    assert max(outside_crop(light) for light in nuclear) < 1e-6
    leaving = np.mean([outside_crop(light) > 0.05 for light in electron])
    assert 0.1 < leaving < 0.6


def test_light_outside_the_image_is_lost() -> None:
    rng = np.random.default_rng(0)
    seen = [float(track_light(rng, "electronic", 100).sum()) for _ in range(20)]

    assert min(seen) < 0.9 * LIGHT_ADU_PER_KEV * 100
    assert max(seen) <= 1.001 * LIGHT_ADU_PER_KEV * 100


def test_light_starts_near_the_centre_and_peaks_as_high_as_the_schools() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        light = track_light(rng, "nuclear", 30)
        row, column = np.unravel_index(light.argmax(), light.shape)
        assert np.hypot(row - SIDE_PX / 2, column - SIDE_PX / 2) < 20
        assert 60 < light.max() < 90


def test_electron_tracks_are_brightest_at_their_end() -> None:
    rng = np.random.default_rng(4)
    rows, columns = np.indices((SIDE_PX, SIDE_PX))

    def within_8_pixels(light: NDArray[np.float32], row: float, column: float) -> float:
        return float(light[np.hypot(rows - row, columns - column) < 8].sum())

    end_to_start = []
    for _ in range(60):
        light = track_light(rng, "electronic", 30)
        row, column = np.unravel_index(light.argmax(), light.shape)
        if np.hypot(row - SIDE_PX / 2, column - SIDE_PX / 2) > 20:
            at_start = within_8_pixels(light, SIDE_PX / 2, SIDE_PX / 2)
            end_to_start.append(within_8_pixels(light, float(row), float(column)) / at_start)

    assert len(end_to_start) > 30
    assert np.median(end_to_start) > 5  # 3.3 with the same energy loss all along


@given(seeds, recoil_types)
@settings(max_examples=5, deadline=None)
def test_one_seed_makes_one_file(seed: int, recoil_type: RecoilType) -> None:
    def image_bytes(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return record_image(rng, simulate_image(rng, recoil_type, 10))

    assert image_bytes(seed) == image_bytes(seed)
    assert image_bytes(seed) != image_bytes(seed + 1)


def test_jpeg_quality_is_the_schools(real: list[bytes]) -> None:
    ours = encode_jpeg(np.full((SIDE_PX, SIDE_PX), 100, np.uint8))

    with Image.open(io.BytesIO(ours)) as image, Image.open(io.BytesIO(real[0])) as theirs:
        assert image.quantization == theirs.quantization  # type: ignore[attr-defined]


def test_real_files_are_named_by_the_same_rule() -> None:
    for file in REAL_EVENTS.glob("*.jpg"):
        assert file_name(file.read_bytes()) == file.name


@pytest.mark.parametrize("energy_kev", [0, -1, float("nan"), float("inf")])
def test_an_energy_that_does_not_exist_is_named(energy_kev: float) -> None:
    with pytest.raises(ValueError, match=rf"energy_kev = {energy_kev}"):
        simulate_image(np.random.default_rng(0), "nuclear", energy_kev)


def test_a_recoil_type_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="recoil_type = 'muon'"):
        track_light(np.random.default_rng(0), "muon", 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8)])
def test_only_greyscale_bytes_are_encoded(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"of shape \(4, 4"):
        encode_jpeg(image)
