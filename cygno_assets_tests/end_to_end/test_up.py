"""`cygno-assets up` against a simulated DAQ started separately, and what the web UI then does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets_tests.end_to_end.running import Program, WebUI
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_live_events_then_another_window_then_an_event_that_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    nowhere = {"CYGNO_DAQ_NATS_URL": "nats://127.0.0.1:1"}

    with Program(["simulate", "daq", "--rate", "0.4", "--seed", "3"], tmp_path / "daq") as daq:
        nats = daq.says(r"DAQ's NATS server (nats://[^,]+)")
        ca_file = daq.says(r"--ca-file (\S+)")
        with Program(["up", "--nats", nats, "--ca-file", ca_file], home) as up:
            ui = WebUI(up.says(r"web UI +(\S+)"))
            wait_until(
                "three tensors",
                lambda: ui.partition_counts("preprocessed_tensor")["numMaterialized"] >= 3,
            )
            assert up.interrupt() == 130
            up.nothing_left()
        assert daq.interrupt() == 130
        daq.nothing_left()

    files = (home / "data" / "preprocessed_tensor").glob("*.npy")
    event, other, *_ = sorted(file.stem for file in files)
    written = (home / "data" / "raw_image" / f"{event}.jpg").stat()

    # The DAQ is gone; another window makes tensors stale, and a backfill makes them anew.
    with Program(["up"], home, {**nowhere, "CYGNO_WINDOW_LOW": "60"}) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        assert ui.staleness("raw_image", event) == ("FRESH", [])
        assert ui.staleness("preprocessed_tensor", event) == ("STALE", ["CODE"])
        assert ui.metadata("preprocessed_tensor", event)["spec_hash"] == PreprocessSpec().hash
        backfill = ui.backfill(["preprocessed_tensor"], [event, other])
        assert ui.backfill_ends(backfill) == "COMPLETED_SUCCESS"
        for partition in (event, other):
            assert ui.staleness("preprocessed_tensor", partition) == ("FRESH", [])
            made = ui.metadata("preprocessed_tensor", partition)
            assert made["spec_hash"] == PreprocessSpec(window_low=60).hash
        assert (home / "data" / "raw_image" / f"{event}.jpg").stat().st_mtime == written.st_mtime

        # Materialized in the UI with nothing typed in: the stored image will do.
        assert ui.materialize(["raw_image", "preprocessed_tensor"], event) == "SUCCESS"
        assert up.interrupt() == 130

    # Bytes and announcement are both gone.
    (home / "data" / "raw_image" / f"{event}.jpg").unlink()
    with Program(["up"], home, {**nowhere, "CYGNO_INBOX_MAX_AGE_DAYS": "0.00001"}) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        assert ui.materialize(["raw_image", "preprocessed_tensor"], event) == "FAILURE"
        [failure] = ui.failures(event)
        assert failure.startswith(f"{event}: neither its image is stored nor its announcement")
        assert up.interrupt() == 130
        up.nothing_left()
