"""A running system with some events in it, and a real browser to look at it with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cygno_assets.daq.simulator.training_set import write_training_set
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import free_port
from cygno_assets_tests.end_to_end.running import Program, WebUI
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cygno_assets.daq.simulator.bucket import BucketSettings

SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Where to leave the screenshots; set by `make screenshots`."""

EVENTS = 6
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def ui(daq_bucket: BucketSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """The web UI of a system that has made its tensors and its training set, and now is idle."""
    folder = tmp_path_factory.mktemp("ui")
    archive = folder / "training_set.zip"
    for _ in write_training_set(archive, seed=0):
        pass
    nats = NatsServer(folder / "nats", folder / "nats.log", name="DAQ's NATS server")
    listen = [
        *("up", "--nats", nats.url, "--ca-file", str(daq_bucket.ca_file)),
        *("--image-host", daq_bucket.endpoint, "--port", str(free_port())),
    ]
    announce = [
        *("simulate", "daq", "--nats", nats.url, "--s3-endpoint", daq_bucket.endpoint),
        *("--ca-file", str(daq_bucket.ca_file), "--events", str(EVENTS), "--seed", "2"),
    ]
    keys = {
        "AWS_ACCESS_KEY_ID": daq_bucket.access_key_id,
        "AWS_SECRET_ACCESS_KEY": daq_bucket.secret_access_key,
    }
    try:
        nats.start()
        with Program(listen, folder / "home", {"CYGNO_TRAINING_ARCHIVE": str(archive)}) as up:
            web_ui = WebUI(up.says(r"web UI +(\S+)"))
            with Program(announce, folder / "daq", keys) as daq:
                assert daq.ends() == 0, daq.output
            wait_until("all tensors", lambda: len(web_ui.events()) == EVENTS, 180)
            wait_until("the training set", lambda: web_ui.materializations("training_audit"), 300)
            wait_until("no run is left", lambda: not web_ui.unfinished_runs())
            yield web_ui
            assert up.interrupt() == 130
            up.nothing_left()
    finally:
        nats.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing: sudo apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """An empty page; what it showed last is kept, and pytest says where if the test fails."""
    page = browser.new_page(viewport={"width": 1400, "height": 800}, timezone_id="UTC")
    page.set_default_timeout(30_000)
    yield page
    page.screenshot(path=tmp_path / "last.png")
    print(f"the page as it was last: {tmp_path / 'last.png'}")
    page.close()


@pytest.fixture
def picture(page: Page, tmp_path: Path) -> Callable[[str], None]:
    """Takes a screenshot of this name."""

    def take(name: str) -> None:
        # Disabled animations are those that have come to their end: no half-faded dialog.
        path = Path(SCREENSHOTS or tmp_path) / f"{name}.png"
        page.screenshot(path=path, animations="disabled")

    return take
