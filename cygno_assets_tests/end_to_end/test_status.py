"""`cygno-assets status` beside one running system, well and unwell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psutil

from cygno_assets.services.process import free_port
from cygno_assets.services.status import NOTHING_RUNS, WELL, WRONG, run_status
from cygno_assets.settings import CHECKOUT, load_settings
from cygno_assets_tests.end_to_end.running import PROGRAM, Program, WebUI, processes_of
from cygno_assets_tests.end_to_end.test_mending import IMAGES, Daq
from cygno_assets_tests.webhook import SECRET, Webhook
from cygno_assets_tests.wire import name_of, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from cygno_assets.daq.simulator.bucket import BucketSettings


def status(home: Path, *options: str) -> tuple[int, str]:
    """Asked as a shift does, in another terminal."""
    asked = subprocess.run(
        [PROGRAM, "status", *options],
        env=os.environ | {"CYGNO_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return asked.returncode, asked.stdout


def found(home: Path) -> dict[str, Any]:
    """The same, without a process and its imports each time."""
    lines: list[str] = []
    code = run_status(load_settings({"home": home}), lines.append, as_json=True)
    [said] = lines
    document: dict[str, Any] = json.loads(said)
    assert code == (WELL if document["well"] else WRONG)
    assert bool(document["wrong"]) != document["well"]
    assert "X-Amz" not in said
    return document


def freshness(ui: WebUI, asset: str) -> str:
    """What the web UI says of an asset's age."""
    node = ui.ask(
        """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
        freshnessStatusInfo { freshnessStatus } } } }""",
        key={"path": [asset]},
    )["assetNodeOrError"]
    return str((node["freshnessStatusInfo"] or {}).get("freshnessStatus"))


def process(home: Path, *arguments: str) -> psutil.Process:
    [one] = [p for p in processes_of(home) if set(arguments) <= set(p.cmdline())]
    return one


def test_a_system_well_and_unwell(
    tmp_path: Path,
    daq_bucket: BucketSettings,
    daq_nats_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    webhook = Webhook(free_port())
    home = tmp_path / "system"  # the fixtures' servers know the usual one
    environ = {
        "CYGNO_DAQ_NATS_URL": daq_nats_url,
        "CYGNO_DOWNLOAD_CA_FILE": str(daq_bucket.ca_file),
        "CYGNO_DOWNLOAD_HOSTS": daq_bucket.endpoint,
        "CYGNO_NOTIFY_WEBHOOK_URL": webhook.url,
        "FRESHNESS_DAEMON_INTERVAL_SECONDS": "1",
    }
    # Where the status, asked in this process, looks; as it was before when the test ends.
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))
    monkeypatch.setenv("CYGNO_HOME", str(home))
    code, said = status(home)
    assert code == NOTHING_RUNS
    assert said.count("\n") == 1
    assert said.startswith("nothing runs in ")
    daq = Daq(daq_nats_url, daq_bucket)
    with webhook.up(), Program(["up"], home, environ) as up:
        ui = WebUI(up.says(r"web UI +(\S+)"))
        events = {daq.announces(name_of(image), image) for image in IMAGES[:3]}
        wait_until("three tensors", lambda: set(ui.events()) == events)
        code, said = status(home)
        assert code == WELL, said
        assert said.endswith("all is well\n")

        document = found(home)
        assert set(document) == {
            *("home", "running", "well", "wrong", "measured", "servers", "events"),
            *("backlog", "latency", "failed", "rejected", "workers", "disk_bytes"),
        }
        assert document["servers"] == {
            "recorders": {"recorder 1": True, "recorder 2": True},
            **dict.fromkeys(("inbox", "daq_connected", "web_ui", "daemon", "code_server"), True),
        }
        assert document["events"]["announced"]["last_hour"] == 3
        assert document["events"]["materialized"]["last_hour"] == 3
        assert document["backlog"]["events"] == 0
        assert document["latency"]["acquired_to_materialized"]["events"] == 3
        assert document["workers"]["processes"] >= 1
        assert document["disk_bytes"]["data"] > 3 * 40_000
        wait_until("the daemon looks", lambda: freshness(ui, "raw_image") == "HEALTHY")
        assert freshness(ui, "pipeline_health") == "UNKNOWN"  # not made yet
        assert ui.materialize(["pipeline_health"], "") == "SUCCESS"

        # A recorder that is stuck is not started again, for it runs.
        recorder = process(home, "--name", "recorder 2")
        recorder.suspend()
        assert found(home)["wrong"] == ["recorder 2 does not answer"]
        recorder.resume()
        server = process(home, "-m", "dagster_webserver")
        server.suspend()
        assert found(home)["wrong"] == ["the web UI is down"]
        server.resume()
        wait_until("both are back", lambda: found(home)["well"])

        wrong = daq.announces(name_of(b"no image"), b"no image")
        wait_until("a failure", lambda: ui.runs_of(wrong) == ["FAILURE"])
        document = found(home)
        assert document["failed"] == {"no_image": 1}
        assert document["wrong"] == ["events failed for good in the last day: 1"]
        code, said = status(home)
        assert code == WRONG
        assert "1 no_image" in said
        wait_until("people are told", lambda: webhook.messages)
        [message] = webhook.messages
        assert message["failed"] == {"live event: no_image": 1}
        assert wrong in message["text"]
        assert f"{ui.url}/runs/{ui.newest_run(wrong)}" in message["text"]
        assert not [
            file
            for file in home.rglob("*")
            if file.is_file() and SECRET.encode() in file.read_bytes()
        ]

        [server_of_daq] = [
            p.pid
            for p in psutil.process_iter(["cmdline"])
            if str(tmp_path / "daq-nats" / "nats-server.conf") in (p.info["cmdline"] or [])
        ]
        os.kill(server_of_daq, signal.SIGKILL)
        wait_until(
            "no DAQ",
            lambda: (
                "the DAQ is not connected: no recorder reaches its NATS server"
                in found(home)["wrong"]
            ),
        )
        assert up.interrupt() == 130
        up.nothing_left()
    code, said = status(home, "--json")
    assert code == NOTHING_RUNS
    assert json.loads(said)["running"] is False
