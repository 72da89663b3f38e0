import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cygno_assets.daq.simulator import events
from cygno_assets.daq.simulator.camera import (
    DAQ_NOISE_ADU,
    CameraFault,
    file_name,
    simulate_image,
)
from cygno_assets.daq.simulator.events import (
    ENERGIES_KEV,
    ImagesFromDirectory,
    ImageSource,
    ParametricImages,
    Season,
    SimulatedEvent,
    event_stream,
)

REAL_EVENTS = Path(__file__).parents[2] / "data" / "real_events"
SEASON = Season(period_s=480)
seeds = st.integers(0, 2**32 - 1)
periods = st.floats(1e-3, 1e9)
times = st.floats(0, 1e9)


def first(
    number: int, source: ImageSource, seed: int = 0, rate_hz: float = 2
) -> list[tuple[float, SimulatedEvent]]:
    return list(itertools.islice(event_stream(source, SEASON, rate_hz, seed), number))


class FakeSource:
    """Costs nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.probabilities: list[float] = []

    def next_event(self, signal_probability: float) -> SimulatedEvent:
        self.probabilities.append(signal_probability)
        return SimulatedEvent(b"", "cygno-0.jpg", "fake", None, None)


@pytest.fixture
def pngs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder, recoil_type, energy_kev in (
        ("NR/6_keV", "nuclear", 6),
        ("ER/2.5_keV", "electronic", 2.5),
        ("other", "nuclear", 1),
    ):
        (tmp_path / folder).mkdir(parents=True)
        image = simulate_image(rng, recoil_type, energy_kev)  # type: ignore[arg-type]
        Image.fromarray(image).save(tmp_path / folder / "cygno-0001.png")
    return tmp_path


@given(periods, st.floats(0, 1), times)
def test_probability_stays_between_0_and_the_peak(period_s: float, peak: float, t: float) -> None:
    assert 0 <= Season(period_s, peak).probability(t) <= peak


@given(periods)
def test_season_starts_in_the_middle_rises_and_falls(period_s: float) -> None:
    season = Season(period_s)

    assert season.probability(0) == pytest.approx(0.05)
    assert season.probability(period_s / 4) == pytest.approx(0.1)
    assert season.probability(period_s * 3 / 4) == pytest.approx(0, abs=1e-12)
    assert season.probability(period_s) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("period_s", "peak", "message"),
    [
        (0, 0.1, "period_s = 0"),
        (float("nan"), 0.1, "period_s = nan"),
        (1, 1.1, r"peak = 1\.1"),
        (1, -0.1, r"peak = -0\.1"),
    ],
)
def test_a_season_that_does_not_exist_is_named(period_s: float, peak: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Season(period_s, peak)


@pytest.mark.parametrize("rate_hz", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_does_not_exist_is_named(rate_hz: float) -> None:
    with pytest.raises(ValueError, match=f"rate_hz = {rate_hz}"):
        next(event_stream(FakeSource(), SEASON, rate_hz, seed=0))


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_one_seed_makes_one_stream(seed: int) -> None:
    assert first(3, ParametricImages(seed), seed) == first(3, ParametricImages(seed), seed)


@given(seeds, seeds)
@settings(max_examples=20)
def test_gaps_depend_on_their_own_seed_only(seed: int, other: int) -> None:
    gaps = [gap_s for gap_s, _ in first(5, FakeSource(), seed)]

    assert gaps == [gap_s for gap_s, _ in first(5, FakeSource(), seed)]
    assert (gaps == [gap_s for gap_s, _ in first(5, FakeSource(), other)]) == (seed == other)


def test_gaps_do_not_depend_on_the_source() -> None:
    assert [gap_s for gap_s, _ in first(3, ParametricImages(9), 1)] == [
        gap_s for gap_s, _ in first(3, FakeSource(), 1)
    ]


def test_one_seed_gives_gaps_and_choices_that_have_nothing_in_common(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "simulate_image", lambda *_, **__: None)
    monkeypatch.setattr(events, "record_image", lambda *_: b"")
    always = Season(period_s=1e9, peak=1)
    gaps, signals = [], []
    for seed in range(400):
        gap_s, event = next(event_stream(ParametricImages(seed), always, 1, seed))
        gaps.append(gap_s)
        signals.append(event.is_signal)

    assert abs(np.corrcoef(np.array([gaps, signals], float))[0, 1]) < 0.2


def test_gaps_are_exponential() -> None:
    rate_hz, number = 5.0, 20_000
    gaps = np.array([gap_s for gap_s, _ in first(number, FakeSource(), rate_hz=rate_hz)])

    assert gaps.mean() == pytest.approx(1 / rate_hz, rel=0.03)
    assert gaps.std() == pytest.approx(1 / rate_hz, rel=0.05)
    assert (gaps > 2 / rate_hz).mean() == pytest.approx(np.exp(-2), abs=0.01)


def test_the_season_follows_the_streams_own_time() -> None:
    source = FakeSource()
    arrivals = np.cumsum([gap_s for gap_s, _ in first(50, source)])

    assert source.probabilities == pytest.approx([SEASON.probability(t) for t in arrivals])


def test_signal_is_as_probable_as_asked_for_and_energies_are_the_schools() -> None:
    source = ParametricImages(seed=3)
    drawn = [source.next_event(0.3) for _ in range(300)]

    assert np.mean([event.is_signal for event in drawn]) == pytest.approx(0.3, abs=0.08)
    assert {event.energy_kev for event in drawn} == set(ENERGIES_KEV)
    assert all(event.is_signal == (event.recoil_type == "nuclear") for event in drawn)
    assert len({event.filename for event in drawn}) == 300
    assert len({event.original for event in drawn}) == 300


def test_a_fault_begins_with_its_event_and_leaves_the_others_as_they_are() -> None:
    def names(source: ParametricImages) -> list[str]:
        return [source.next_event(0.5).filename for _ in range(5)]

    good, shift = names(ParametricImages(7)), CameraFault(pedestal_shift_adu=3)
    late = names(ParametricImages(7, fault=shift, fault_from=4))
    assert late[:3] == good[:3]
    assert not set(late[3:]) & set(good[3:])
    assert late[3:] == names(ParametricImages(7, fault=shift))[3:]
    assert names(ParametricImages(7, fault=CameraFault(), fault_from=2)) == good
    with pytest.raises(ValueError, match="fault_from = 0"):
        ParametricImages(7, fault_from=0)


@pytest.mark.parametrize(("probability", "is_signal"), [(0.0, False), (1.0, True)])
def test_the_extreme_seasons(probability: float, is_signal: bool) -> None:
    source = ParametricImages(seed=0)

    assert [source.next_event(probability).is_signal for _ in range(20)] == [is_signal] * 20


def test_jpegs_go_out_untouched_in_a_seeded_order_over_and_over() -> None:
    def names(seed: int) -> list[str]:
        return [event.filename for _, event in first(8, ImagesFromDirectory(REAL_EVENTS, seed))]

    files = {file.name: file for file in REAL_EVENTS.glob("*.jpg")}
    assert sorted(names(0)[:4]) == sorted(files)
    assert names(0)[:4] == names(0)[4:]
    assert names(0) == names(0)
    assert len({tuple(names(seed)) for seed in range(8)}) > 1
    for _, event in first(4, ImagesFromDirectory(REAL_EVENTS, 0)):
        assert event.image_bytes == files[event.filename].read_bytes()
        assert (event.recoil_type, event.is_signal, event.energy_kev) == (None, None, None)
        assert Path(event.original) == files[event.filename]


def test_pngs_go_out_as_noisy_jpegs_and_tell_their_truth(pngs: Path) -> None:
    truths = {}
    for _, event in first(3, ImagesFromDirectory(pngs, 0)):
        truths[Path(event.original).parent.name] = (
            event.is_signal,
            event.recoil_type,
            event.energy_kev,
        )
        with Image.open(event.original) as png, Image.open(io.BytesIO(event.image_bytes)) as jpeg:
            assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "L", png.size)
            before, after = np.asarray(png).astype(float), np.asarray(jpeg).astype(float)
        # the JPEG smooths some of the noise away again, so only means over blocks tell all of it
        blocks = (after - before).reshape(72, 8, 72, 8).mean(axis=(1, 3))
        assert blocks.std() == pytest.approx(DAQ_NOISE_ADU / 8, rel=0.1)
        assert blocks.mean() == pytest.approx(0, abs=0.05)
        assert event.filename == file_name(event.image_bytes)

    assert truths == {
        "6_keV": (True, "nuclear", 6.0),
        "2.5_keV": (False, "electronic", 2.5),
        "other": (None, None, None),
    }


def test_the_noise_on_a_png_is_seeded_and_new_each_time(pngs: Path) -> None:
    drawn = first(6, ImagesFromDirectory(pngs, 0))

    assert drawn == first(6, ImagesFromDirectory(pngs, 0))
    assert len({event.filename for _, event in drawn}) == 6


def test_the_nearest_folder_tells_the_truth(tmp_path: Path) -> None:
    folder = tmp_path / "NR" / "1_keV" / "ER" / "30_keV"
    folder.mkdir(parents=True)
    (folder / "x.JPEG").write_bytes(b"any")

    event = ImagesFromDirectory(tmp_path, 0).next_event(0)

    assert (event.recoil_type, event.energy_kev) == ("electronic", 30.0)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no image")

    with pytest.raises(ValueError, match=f"path = '{tmp_path}': no .jpg, .jpeg or .png"):
        ImagesFromDirectory(tmp_path, 0)


def test_a_png_in_colour_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")

    with pytest.raises(ValueError, match=r"colour\.png: mode 'RGB'"):
        ImagesFromDirectory(tmp_path, 0).next_event(0)
