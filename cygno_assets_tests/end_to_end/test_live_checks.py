"""The checks of live data on a running system, whose DAQ has something wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cygno_assets_tests.end_to_end.running import Program, WebUI
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_a_shifted_pedestal_is_seen_and_backfills_take_no_check_along(tmp_path: Path) -> None:
    arguments = ["demo", "--rate", "20", "--seed", "1"]
    arguments += ["--pedestal-shift", "8", "--stop-after", "30"]
    environ = {"CYGNO_LIVE_CHECKS_CRON": "* * * * *"}
    with Program(arguments, tmp_path / "home", environ) as demo:
        ui = WebUI(demo.says(r"web UI +(\S+)"))
        wait_until("30 tensors", lambda: len(set(ui.events())) == 30)
        event = ui.events()[0]
        assert ui.backfill_ends(ui.backfill(["raw_image", "preprocessed_tensor"], [event])) == (
            "COMPLETED_SUCCESS"
        )
        assert ui.runs_of(event) == ["SUCCESS", "SUCCESS"]
        assert ui.checks_in(ui.newest_run(event)) == []

        def judged() -> list[tuple[str, str]]:
            verdicts = ui.check_verdicts("daq_announcements", "pedestal_is_steady")
            assert not [one for one in verdicts if one[0] in {"SKIPPED", "EXECUTION_FAILED"}]
            return [one for one in verdicts if "before" in one[1] or "without past" in one[1]]

        wait_until("a verdict on the pedestal", judged, 90)
        status, description = judged()[-1]
        assert status == "FAILED"
        assert "mean 107.9" in description
        for check in (
            "no_column_is_hot",
            "specification_is_that_of_training",
            "rate_is_as_expected",
        ):
            assert ui.check_verdicts("daq_announcements", check)[0][0] == "SUCCEEDED"
