"""What the tests start themselves."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from cygno_assets_tests.end_to_end.running import processes_of
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path

TESTS = """
import sys, time
from pathlib import Path
from cygno_assets_tests.end_to_end.running import Program

with Program(["simulate", "daq"], Path(sys.argv[1])) as program:
    program.says("nats://")
    print("it runs", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_tests_that_are_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    argv = [sys.executable, "-c", TESTS, str(home)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as tests:
        try:
            assert tests.stdout is not None
            assert tests.stdout.readline() == "it runs\n"
            assert processes_of(home)
        finally:
            tests.kill()
    wait_until("all is gone", lambda: not processes_of(home), 30)
