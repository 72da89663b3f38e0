"""The web UI as a person uses it. `make screenshots` keeps the pictures taken on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.sync_api import Page, expect

from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cygno_assets_tests.end_to_end.running import WebUI

ASSETS = ["daq_announcements", "raw_image", "preprocessed_tensor"]


def test_the_asset_graph_shows_the_road_of_an_event(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 560})
    page.goto(f"{ui.url}/asset-groups")
    for asset in ASSETS:
        expect(page.locator("svg").get_by_text(asset, exact=True)).to_be_visible()
    expect(page.locator("svg").get_by_text("100% filled")).to_have_count(2)
    page.get_by_text("Hide navigation").click()
    expect(page.get_by_text("Hide navigation")).to_be_hidden()
    picture("asset-graph")


def test_a_tensor_has_a_thumbnail_one_can_look_at(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    shares = {e: ui.metadata("preprocessed_tensor", e)["clipped_high_share"] for e in ui.events()}
    brightest = max(shares, key=shares.__getitem__)
    page.goto(f"{ui.url}/assets/preprocessed_tensor?view=partitions&partition={brightest}")
    for label in ("spec_hash", "clipped_high_share", "latency_s", "path"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    page.get_by_text("[Show Markdown]").click()
    image = page.locator("img[src^='data:image/jpeg']")
    expect(image).to_be_visible()
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [256, 256]
    picture("tensor")


def test_one_event_is_materialized_with_nothing_typed_in(ui: WebUI, page: Page) -> None:
    event = ui.events()[0]
    page.goto(f"{ui.url}/assets/raw_image?view=partitions&partition={event}")
    expect(page.get_by_text("View all historical events (1)")).to_be_visible()
    page.get_by_role("button", name="Materialize").first.click()
    expect(page.get_by_text("1 partition", exact=True)).to_be_visible()
    launch = page.get_by_role("button", name="Launch 1 run")
    launch.hover()  # while the dialog fades in, a click would miss
    launch.click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    wait_until("the run succeeds", lambda: ui.runs_of(event) == ["SUCCESS", "SUCCESS"])
    page.goto(f"{ui.url}/runs/{ui.newest_run(event)}")
    expect(page.get_by_text("already stored: not downloaded")).to_be_visible()


def test_the_sensor_is_on_and_can_be_switched_off_and_on(ui: WebUI, page: Page) -> None:
    assert ui.sensor_status() == "RUNNING"
    page.goto(f"{ui.url}/automation")
    boxes = page.locator("label:has(input[type=checkbox])")
    expect(boxes).to_have_count(3)  # two that select rows, and the switch
    switch = boxes.last
    expect(switch.locator("input")).to_be_checked()
    switch.click()
    wait_until("the sensor is off", lambda: ui.sensor_status() == "STOPPED")
    switch.click()
    wait_until("the sensor is on", lambda: ui.sensor_status() == "RUNNING")
