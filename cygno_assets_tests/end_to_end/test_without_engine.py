"""The same road of an event with the engine's lines removed from dagster.yaml."""

from __future__ import annotations

import os
import subprocess
import sys

from cygno_assets.settings import CHECKOUT

THREE_EVENTS = """
import sys
from benchmarks.live import running_live, stock
from cygno_assets.services.guardian import guarded

def run():
    with running_live(change=stock) as live:
        live.announce(3, 1, "--burst")
        live.wait_for(3, 180)
        assert set(live.tensors()) == set(live.announced(1))
        print(type(live.instance.run_launcher).__name__, type(live.instance.run_storage).__name__)
    return 0

sys.exit(guarded(run))
"""


def test_on_stock_dagster_events_become_tensors_all_the_same() -> None:
    result = subprocess.run(  # a process of its own, for it forks
        [sys.executable, "-c", THREE_EVENTS],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "DefaultRunLauncher SqliteRunStorage" in result.stdout
