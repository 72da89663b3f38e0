"""A running system with some events in it, and a real browser to look at it with."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nats
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cygno_assets.daq.inbox import Inbox
from cygno_assets.daq.simulator.training_set import write_training_set
from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.process import free_port
from cygno_assets.settings import load_settings
from cygno_assets_tests.end_to_end.running import Program, WebUI
from cygno_assets_tests.origin import QUERY, Origin, answer, serving
from cygno_assets_tests.wire import message, name_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.server import BaseHTTPRequestHandler

    from cygno_assets.daq.simulator.bucket import BucketSettings

SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Where to leave the screenshots; set by `make screenshots`."""

EVENTS = 6
_LARGEST_BYTES = 250_000
"""Of a picture in full colour; a larger one has 256."""
expect.set_options(timeout=30_000)


@dataclass(frozen=True)
class System:
    """What runs, and what tests may do to it from outside.

    Attributes:
        web_ui: its web UI.
        home: where it keeps everything.
        nats_url: of the DAQ's server.
        images: an image server beside the DAQ's; `announce` puts images there.
        stored: the images on that server, by file name.
        may_answer: cleared, that server keeps whoever asks waiting.
    """

    web_ui: WebUI
    home: Path
    nats_url: str
    images: Origin
    stored: dict[str, bytes] = field(default_factory=dict)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def announce(self, *images: bytes) -> list[str]:
        """Announces images as the DAQ does; returns their event ids when the inbox has them."""
        named = {name_of(image): image for image in images}
        self.stored.update(named)
        self.images.answers[:] = [self._answer]
        with ThreadPoolExecutor(1) as thread:  # Playwright has the event loop of this one
            thread.submit(self._publish, list(named)).result()
        return [name.rpartition(".")[0] for name in named]

    def _publish(self, names: list[str]) -> None:
        async def publish() -> None:
            async with await nats.connect(self.nats_url) as client:
                for name in names:
                    url = f"{self.images.address}/cygno-daq/{name}?{QUERY}"
                    await client.publish("daq/data", message(name, url))
                await client.flush()

        def recorded() -> bool:
            return all(inbox.newest_announcement(name.rpartition(".")[0]) for name in names)

        asyncio.run(publish())
        inbox = Inbox(load_settings({"home": self.home}).resolve_inbox_url)
        wait_until("all are recorded", recorded)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.may_answer.wait()
        answer(self.stored[urlsplit(request.path).path.rpartition("/")[2]])(request)

    def tensor(self, event: str) -> Path:
        """Where an event's tensor is stored."""
        return self.home / "data" / "preprocessed_tensor" / f"{event}.npy"


@pytest.fixture(scope="session")
def system(
    daq_bucket: BucketSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """A system that has made its tensors and its training set, and now is idle."""
    folder = tmp_path_factory.mktemp("ui")
    archive = folder / "training_set.zip"
    for _ in write_training_set(archive, seed=0):
        pass
    nats_server = NatsServer(folder / "nats", folder / "nats.log", name="DAQ's NATS server")
    announce = [
        *("simulate", "daq", "--nats", nats_server.url, "--s3-endpoint", daq_bucket.endpoint),
        *("--ca-file", str(daq_bucket.ca_file), "--events", str(EVENTS), "--seed", "2"),
    ]
    keys = {
        "AWS_ACCESS_KEY_ID": daq_bucket.access_key_id,
        "AWS_SECRET_ACCESS_KEY": daq_bucket.secret_access_key,
    }
    try:
        nats_server.start()
        with serving() as images:
            listen = [
                *("up", "--nats", nats_server.url, "--ca-file", str(daq_bucket.ca_file)),
                *("--image-host", daq_bucket.endpoint, "--image-host", images.address),
                *("--port", str(free_port())),
            ]
            home = folder / "home"
            with Program(listen, home, {"CYGNO_TRAINING_ARCHIVE": str(archive)}) as up:
                web_ui = WebUI(up.says(r"web UI +(\S+)"))
                system = System(web_ui, home, nats_server.url, images)
                system.may_answer.set()
                with Program(announce, folder / "daq", keys) as daq:
                    assert daq.ends() == 0, daq.output
                wait_until("all tensors", lambda: len(web_ui.events()) == EVENTS, 180)
                wait_until(
                    "the training set", lambda: web_ui.materializations("training_audit"), 300
                )
                wait_until("no run is left", lambda: not web_ui.unfinished_runs())
                yield system
                system.may_answer.set()
                assert up.interrupt() == 130
                up.nothing_left()
    finally:
        nats_server.stop()


@pytest.fixture
def ui(system: System) -> WebUI:
    """Its web UI."""
    return system.web_ui


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
def picture(page: Page, tmp_path: Path) -> Callable[..., None]:
    """Takes a screenshot of this name, or of its upper part of this height in pixels."""

    def take(name: str, height: int | None = None) -> None:
        page.mouse.move(0, 0)  # away from what it would change by being there
        # Disabled animations are those that have come to their end: no half-faded dialog.
        shot = page.screenshot(animations="disabled")
        whole = Image.open(io.BytesIO(shot))
        image = whole.crop((0, 0, whole.width, height or whole.height))
        if len(shot) > _LARGEST_BYTES:
            image = image.convert("RGB").quantize(dither=Image.Dither.NONE)
        image.save(Path(SCREENSHOTS or tmp_path) / f"{name}.png", optimize=True)

    return take
