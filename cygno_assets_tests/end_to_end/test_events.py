"""The event catalogue of a running system, and one event's story beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cygno_assets import load_events
from cygno_assets_tests.end_to_end.running import Program
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

    settings = {"CYGNO_CATALOG_EVERY_S": "5"}
    with Program(["demo", "--rate", "0.5", "--seed", "1"], home, settings) as demo:
        wait_until("events are in the catalogue", rows, 240)
        first = rows()
        wait_until("and more of them", lambda: rows() > first, 240)
        events = load_events(data=home / "data")
        assert set(events["status"]) == {"materialized"}
        assert (events["materialized"] > events["acquired"]).all()
        event_id, picture = events["event_id"].iloc[0], home / "picture.png"
        with Program(["show", event_id[:20], "--picture", str(picture)], home) as show:
            assert show.ends(120) == 0, show.output
        for expected in (event_id, "its URL is valid until", "success", "md5 right", "mean_adu"):
            assert expected in show.output
        assert picture.is_file()
        assert demo.interrupt() == 130
        demo.nothing_left()
