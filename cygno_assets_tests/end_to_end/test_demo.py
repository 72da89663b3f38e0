"""`cygno-assets demo`, with all its real processes."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pandas as pd
import psutil
import pytest

from cygno_assets.daq.simulator.training_set import POPULATION
from cygno_assets.training.tables import population
from cygno_assets_tests.end_to_end.running import Program, processes_of
from cygno_assets_tests.wire import REAL_IMAGES, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demo_takes_the_real_images_to_tensors_and_ends(tmp_path: Path) -> None:
    home = tmp_path / "home"
    arguments = ["demo", "--events", "4", "--seed", "1", "--images", str(REAL_IMAGES[0].parent)]
    with Program(arguments, home) as demo:
        assert demo.ends() == 0, demo.output
        assert "4 announced, 4 recorded, 4 materialized, 0 failed" in demo.output
        demo.nothing_left()
    for file in REAL_IMAGES:
        assert (home / "data" / "raw_image" / file.name).read_bytes() == file.read_bytes()
        assert (home / "data" / "preprocessed_tensor" / f"{file.stem}.npy").is_file()


def test_the_demo_waits_for_the_training_set_if_asked(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Program(["demo", "--events", "2", "--seed", "1", "--training"], home) as demo:
        assert demo.ends(420) == 0, demo.output
        assert "2 announced, 2 recorded, 2 materialized, 0 failed" in demo.output
        assert "training set: 12 of 12 cells materialized" in demo.output
        demo.nothing_left()
    table = pd.read_parquet(home / "data" / "ground_truth_table.parquet")
    assert population(table) == POPULATION
    total = json.loads((home / "data" / "dataset_pixel_histogram.json").read_text())
    assert (total["images"], total["pixels"]) == (612, 612 * 576 * 576)


def inner(process: psutil.Process) -> psutil.Process:
    """The half of the guarded pair that starts the services."""
    return process.children()[0]


@pytest.mark.parametrize("end", ["ctrl-c", "kill -9 outer", "kill -9 inner"])
def test_nothing_is_left_running(tmp_path: Path, end: str) -> None:
    with Program(["demo", "--rate", "0.5"], tmp_path / "home") as demo:
        demo.says(r"DAQ +simulated")
        assert len(processes_of(demo.home)) > 8
        outer = psutil.Process(demo.process.pid)
        if end == "ctrl-c":
            assert demo.interrupt() == 130
        elif end == "kill -9 outer":
            demo.process.kill()
        else:
            inner(outer).kill()
            assert demo.ends(60) == 128 + signal.SIGKILL
        demo.nothing_left()


def test_services_that_die_are_started_again_and_the_demo_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Program(["demo", "--events", "20", "--rate", "2", "--seed", "1"], home) as demo:
        demo.says(r"DAQ +simulated")
        for what, program in (
            ("recorder 1", "--name recorder 1"),
            ("daemon", "engine.daemon"),
            ("web UI", "dagster_webserver"),
        ):
            killed = next(p for p in processes_of(home) if program in " ".join(p.cmdline()))
            killed.kill()
            demo.says(f"{what} started again")
        assert demo.ends() == 0, demo.output
        assert "20 announced, 20 recorded, 20 materialized, 0 failed" in demo.output
        demo.nothing_left()


def test_a_second_system_in_the_same_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Program(["inbox"], home) as first:
        first.says(r"inbox nats://127\.0\.0\.1:\d+")
        with Program(["up"], home) as second:
            assert second.ends(60) == 1
            assert f"a system runs in {home} already" in second.output
        assert first.interrupt() == 130
        first.nothing_left()


def test_same_seed_same_images(tmp_path: Path) -> None:
    def images(number: int) -> set[str]:
        home = tmp_path / str(number)
        with Program(["demo", "--events", "3", "--seed", "7", "--rate", "5"], home) as demo:
            assert demo.ends() == 0, demo.output
        return {path.name for path in (home / "data" / "raw_image").iterdir()}

    first = images(1)
    assert len(first) == 3
    assert images(2) == first


def test_a_wrong_setting_is_said_without_a_traceback(tmp_path: Path) -> None:
    with Program(["up"], tmp_path / "home", {"CYGNO_WINDOW_LOW": "much"}) as up:
        assert up.ends(60) == 1
        assert "CYGNO_WINDOW_LOW" in up.output
        assert "Traceback" not in up.output


def test_wait_until_itself_fails() -> None:
    with pytest.raises(AssertionError, match="still not: never"):
        wait_until("never", lambda: False, 0.1)
