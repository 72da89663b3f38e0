"""Dagster's own commands in the checkout: what people who know Dagster type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from cygno_assets.services.process import free_port
from cygno_assets.settings import CHECKOUT
from cygno_assets_tests.end_to_end.running import WebUI, processes_of
from cygno_assets_tests.wire import wait_until


@pytest.mark.parametrize("program", ["dg", "dagster"])
def test_dev_works_in_the_checkout_with_its_state_in_the_home(tmp_path: Path, program: str) -> None:
    home, port = tmp_path / "home", free_port()
    ui = WebUI(f"http://127.0.0.1:{port}")

    def loaded() -> bool:
        try:
            answer = ui.ask(
                "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } "
                "assetNodes { assetKey { path } } } } } }"
            )
        except requests.ConnectionError:
            return False
        nodes = answer["repositoriesOrError"].get("nodes", [])
        return [node["location"]["name"] for node in nodes] == ["cygno_assets"] and any(
            node["assetKey"]["path"] == ["raw_image"] for node in nodes[0]["assetNodes"]
        )

    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).parent / program, "dev", "--port", str(port)],
            cwd=CHECKOUT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"CYGNO_HOME": str(home)},
            # Whatever started the tests may have had Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 – tests have one thread
        )
        try:
            wait_until("the definitions are loaded", loaded, 120)
            assert (home / "dagster" / "dagster.db").is_file()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                for left in processes_of(home):  # Dagster's own dev command leaves some behind
                    left.kill()
