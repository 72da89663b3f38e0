"""A site of several machines under load, while parts of it are killed or away."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest
from PIL import Image

from cygno_assets.daq.simulator.bucket import Bucket
from cygno_assets.names import DATASET_PIXEL_HISTOGRAM
from cygno_assets.physics.histogram import PixelHistogram
from cygno_assets.settings import load_settings
from cygno_assets.storage.io_managers import JsonIOManager
from cygno_assets.storage.locations import data_root
from cygno_assets_tests.chaos.__main__ import suffer
from cygno_assets_tests.chaos.account import Expected
from cygno_assets_tests.chaos.faults import Fault
from cygno_assets_tests.chaos.world import event_of
from cygno_assets_tests.end_to_end.running import PROGRAM, WebUI
from cygno_assets_tests.scale.site import ARCHIVE, Site, running_site
from cygno_assets_tests.training.archives import cell, write_archive
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cygno_assets_tests.chaos.store import Download

_AWAY_S = 20.0


class Server(Protocol):
    """What can be stopped, and started on what it had."""

    def start(self) -> object: ...
    def stop(self) -> object: ...


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


def made_once(site: Site, fault: Fault) -> None:
    """Each event that was announced has one tensor of one successful run, and nothing hangs."""
    expected = Expected(hits=False, rate_hz=0)  # the DAQ shares two cores with all of them
    account = suffer(site, replace(fault, expected=expected, loaded=False))
    assert account.problems == []
    assert len(account.materialized) == fault.events, account


def test_each_of_300_events_is_made_once_and_both_hosts_take_part(site: Site) -> None:
    made_once(site, Fault("nothing", lambda _: None, events=300, options=("--rate", "15")))
    assert min(host.executed for host in site.hosts) > 50


def test_status_counts_the_workers_of_all_hosts(site: Site) -> None:
    environ = {**os.environ, "CYGNO_HOME": str(site.home)}  # each test has another one
    status = subprocess.run(
        [PROGRAM, "status", "--json"], env=environ, stdout=subprocess.PIPE, check=False
    )
    found = json.loads(status.stdout)
    assert found["workers"]["processes"] == 6, found  # two for events and one more on each
    assert found["servers"]["daemon"]
    assert found["wrong"] == []


def test_a_host_that_is_killed_loses_nothing(site: Site) -> None:
    doomed = site.add_host()

    def kill(world: object) -> None:
        before = doomed.executed
        wait_until("it works", lambda: doomed.executed > before)
        doomed.kill()
        site.pause(3)

    made_once(site, Fault("kill -9 a host", kill, events=150, options=("--rate", "10")))


def away(service: Callable[[Site], Server]) -> Callable[[Site], None]:
    """Ends a server, and starts it again after a while."""

    def does(site: Site) -> None:
        server = service(site)
        server.stop()
        site.pause(_AWAY_S)
        server.start()

    return does


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(lambda site: site.broker, id="broker"),
        pytest.param(lambda site: site.postgres, id="Postgres"),
        pytest.param(lambda site: site.s3_store.service, id="S3"),
    ],
)
def test_a_server_that_is_away_for_20_s_loses_nothing(
    site: Site, server: Callable[[Site], Server]
) -> None:
    made_once(site, Fault("away", away(server), events=300, options=("--rate", "8")))  # type: ignore[arg-type]


def test_a_backfill_of_the_training_set_is_spread_over_the_hosts(
    site: Site, tmp_path: Path
) -> None:
    """From an archive in the bucket; the sum is exact, whoever counted what."""
    folders = [f"{recoil}/{energy}_keV" for recoil in ("NR", "ER") for energy in range(1, 9)]
    images: dict[str, bytes] = {}
    for number, folder in enumerate(folders):
        images |= cell(folder, *range(3 * number, 3 * number + 3))
    write_archive(tmp_path / ARCHIVE, images)
    Bucket(site.bucket).put(ARCHIVE, (tmp_path / ARCHIVE).read_bytes())
    ui = WebUI(site.stack.dagster.url)

    def totals() -> list[int]:
        return [made["images"] for made in ui.materializations("dataset_pixel_histogram")]

    wait_until("the totals are made", lambda: totals()[:1] == [len(images)], 300)
    stored = JsonIOManager(data_root(load_settings())).stored(DATASET_PIXEL_HISTOGRAM)
    assert stored is not None
    pixels = [np.asarray(Image.open(io.BytesIO(image))).ravel() for image in images.values()]
    counts = np.bincount(np.concatenate(pixels), minlength=256)
    assert PixelHistogram.from_json(stored).counts.tolist() == counts.tolist()
    alive = [host for host in site.hosts if host.processes()]
    assert min(host.backfilled for host in alive) > 0


def test_a_run_is_stopped_from_the_web_ui(site: Site) -> None:
    ui = WebUI(site.stack.dagster.url)
    goes_on = threading.Event()

    def never_ends(download: Download) -> None:
        status, body = download.fetch()
        goes_on.wait(60)
        download.send(status, body)

    since = len(site.witness.messages)
    with site.store.answering(never_ends, set()):
        site.announce(1, "--burst")
        wait_until("it is announced", lambda: len(site.witness.messages) > since)
        [event] = {event_of(message) for message in site.witness.messages[since:]}
        wait_until("it runs", lambda: ui.runs_of(event) == ["STARTED"])
        ui.terminate(ui.newest_run(event))
        wait_until("it has stopped", lambda: ui.runs_of(event) == ["CANCELED"], 30)
        goes_on.set()
    made_once(site, Fault("afterwards", lambda _: None, events=10))
