"""`cygno-assets up` against a simulated DAQ started separately, and what the web UI then does."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import psutil

from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets_tests.end_to_end.running import Program, WebUI, processes_of
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def listening_addresses(home: Path) -> list[str]:
    """Where the processes started for this home listen for TCP connections."""
    return [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes_of(home)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


def files_with_a_signature(home: Path) -> set[str]:
    """The first folders below the home in which some file holds a presigned URL's signature."""
    return {
        file.relative_to(home).parts[0]
        for file in home.rglob("*")
        if file.is_file() and b"X-Amz-Signature" in file.read_bytes()
    }


def test_live_events_then_another_window_then_an_event_that_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    nowhere = {"CYGNO_DAQ_NATS_URL": "nats://127.0.0.1:1"}

    with Program(["simulate", "daq", "--rate", "0.4", "--seed", "3"], tmp_path / "daq") as daq:
        nats = daq.says(r"DAQ's NATS server (nats://[^,]+)")
        ca_file = daq.says(r"--ca-file (\S+)")
        image_host = daq.says(r"--image-host (\S+)")
        options = ["--nats", nats, "--ca-file", ca_file, "--image-host", image_host]
        with Program(["up", *options], home) as up:
            ui = WebUI(up.says(r"web UI +(\S+)"))
            wait_until(
                "three tensors",
                lambda: ui.partition_counts("preprocessed_tensor")["numMaterialized"] >= 3,
            )
            listening = set(listening_addresses(home) + listening_addresses(daq.home))
            assert up.interrupt() == 130
            up.nothing_left()
        assert daq.interrupt() == 130
        daq.nothing_left()
    assert listening
    assert {address for address in listening if not ip_address(address).is_loopback} == set()
    assert files_with_a_signature(home) == {"inbox"}  # which keeps announcements verbatim

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


def test_without_a_host_for_images_it_does_not_start(tmp_path: Path) -> None:
    with Program(["up"], tmp_path / "home", {"CYGNO_DOWNLOAD_HOSTS": ""}) as up:
        assert up.ends(60) == 1
        up.nothing_left()
    assert "CYGNO_DOWNLOAD_HOSTS: no host to fetch images from. Set it to the object" in up.output
    assert "`up --image-host HOST`" in up.output
    assert "Traceback" not in up.output
