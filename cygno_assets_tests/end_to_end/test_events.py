"""The event catalogue of a running system, and one event's story beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cygno_assets import load_events
from cygno_assets_tests.end_to_end.running import Program, WebUI
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_a_running_systems_events_come_into_the_catalogue(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def rows() -> int:
        try:
            return len(load_events(data=home / "data"))
        except FileNotFoundError:
            return 0

    with Program(
        ["demo", "--rate", "3", "--seed", "1"], home, {"CYGNO_CATALOG_EVERY_S": "5"}
    ) as it:
        url = it.says(r"(http://127\.0\.0\.1:\d+)")
        wait_until("events are in the catalogue", rows, 120)
        first = rows()
        wait_until("and more of them", lambda: rows() > first, 60)
        events = load_events(data=home / "data")
        assert set(events["status"]) == {"materialized"}
        assert events["latency_s"].between(0, 60).all()
        event_id, day = events["event_id"].iloc[0], datetime.now(UTC).date().isoformat()
        with Program(["show", event_id[:20], "--picture", str(home / "p.png")], home) as show:
            assert show.ends(60) == 0, show.output
            for expected in (
                event_id,
                "its URL is valid until",
                "success",
                "md5 right",
                "mean_adu",
            ):
                assert expected in show.output
        assert (home / "p.png").is_file()
        assert WebUI(url).materialize(["event_tensors"], day) == "SUCCESS"
        assert (home / "data" / "event_tensors" / f"{day}.parquet").is_file()
        assert it.interrupt() == 130
        it.nothing_left()
