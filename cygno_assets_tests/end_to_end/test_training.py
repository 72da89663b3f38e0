"""The training set on a real daemon: who backfills it, when, and what is decoded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.end_to_end.running import Program, WebUI
from cygno_assets_tests.training.archives import cell, write_archive
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path

FIRST = {**cell("NR/6_keV", 1, 3, 5), **cell("ER/6_keV", 2)}
SECOND = {**FIRST, **cell("ER/30_keV", 4)}
LAST_MADE = "training_audit"
EXAMPLE = CHECKOUT / "docs" / "examples" / "train_a_model.py"


def settled(ui: WebUI, backfills: int, images: int) -> None:
    """Waits for the totals of so many images, after so many backfills, and until nothing runs."""

    def done() -> bool:
        totals = ui.materializations("dataset_pixel_histogram")
        return bool(
            len(ui.backfills()) == backfills
            and ui.backfills()[0]["status"] == "COMPLETED_SUCCESS"
            and totals
            and totals[0]["images"] == images
            and totals[0]["timestamp"] > ui.materializations("pixel_histogram")[0]["timestamp"]
            and len(ui.materializations(LAST_MADE)) == backfills
            and not ui.unfinished_runs()
        )

    wait_until(f"{backfills} backfills and their totals", done, 300)


def decoded(ui: WebUI, cells: int) -> dict[str, int]:
    """How many images the newest runs of the cells decoded."""
    counted, tensors = (
        {m["partition"]: m["decoded"] for m in ui.materializations(asset)[:cells]}
        for asset in ("pixel_histogram", "training_tensors")
    )
    assert counted == tensors
    return counted


def test_backfills_by_a_new_archive_by_hand_and_by_cron(tmp_path: Path) -> None:
    archive, home = tmp_path / "set.zip", tmp_path / "home"
    environ = {
        "CYGNO_DAQ_NATS_URL": "nats://127.0.0.1:1",
        "CYGNO_TRAINING_ARCHIVE": str(archive),
        "CYGNO_TRAINING_ARCHIVE_CHECK_S": "1",
    }
    with Program(["backfill", "training"], home, environ) as early:
        assert early.ends(60) == 1
        assert f"no system runs in {home}" in early.output

    with Program(["up"], home, environ) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        with Program(["backfill", "training"], home, environ) as early:
            assert early.ends(60) == 1
            assert "the training set has no partitions yet" in early.output

        write_archive(archive, FIRST)
        settled(ui, backfills=1, images=4)
        assert decoded(ui, 2) == {"6keV|NR": 3, "6keV|ER": 1}

        with Program(["backfill", "training"], home, environ) as backfill:
            assert backfill.ends() == 0, backfill.output
            assert "2 of 2 cells: completed success" in backfill.output
        settled(ui, backfills=2, images=4)
        assert decoded(ui, 2) == {"6keV|NR": 0, "6keV|ER": 0}
        assert ui.backfills()[0]["title"] == "cygno-assets backfill training"

        write_archive(archive, SECOND)
        settled(ui, backfills=3, images=5)
        assert decoded(ui, 4) == {"6keV|NR": 0, "6keV|ER": 0, "30keV|NR": 0, "30keV|ER": 1}
        # Each backfill was followed once.
        for total in ("ground_truth_table", "dataset_pixel_histogram", "suggested_window"):
            assert len(ui.materializations(total)) == 3
        assert ui.failed_runs() == []
        assert up.interrupt() == 130
        up.nothing_left()

    every_minute = {**environ, "CYGNO_TRAINING_BACKFILL_CRON": "* * * * *"}
    with Program(["up"], home, every_minute) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        wait_until(
            "a backfill by the cron, and totals after it",
            lambda: (
                sum(b["status"] == "COMPLETED_SUCCESS" for b in ui.backfills()) >= 4
                and len(ui.materializations("dataset_pixel_histogram")) >= 4
            ),
            300,
        )
        assert {made["decoded"] for made in ui.materializations("pixel_histogram")[:4]} == {0}
        totals = ui.materializations("dataset_pixel_histogram")
        assert len(totals) <= len(ui.backfills())
        assert totals[0]["images"] == 5
        assert ui.failed_runs() == []
        assert up.interrupt() == 130
        up.nothing_left()


def test_the_example_trains_a_model_where_there_is_no_training_set_yet(tmp_path: Path) -> None:
    """It makes one by the demo, and leaves nothing behind."""
    run = subprocess.run(
        [sys.executable, EXAMPLE],
        env=os.environ | {"CYGNO_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "training set: 12 of 12 cells materialized" in run.stdout
    assert "612 images" in run.stdout
    told = re.findall(r"(\d+)% of (\d+)", run.stdout)
    assert len(told) == 4
    assert int(told[0][0]) > 90  # of the test split
    assert min(int(share) for share, _ in told) < 60  # of energies left out
    assert list(tmp_path.iterdir()) == []
