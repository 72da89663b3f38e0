"""The web UI as a person uses it. `make screenshots` keeps the pictures taken on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cygno_assets_tests.end_to_end.running import WebUI

LIVE_GRAPH = "locations/cygno_assets/asset-groups/live/lineage"


def test_the_asset_graph_shows_the_road_of_an_event(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 560})
    page.goto(f"{ui.url}/{LIVE_GRAPH}")
    page.get_by_text("Hide navigation").click()
    page.reload()  # the graph is centred anew

    graph = page.locator("svg").filter(has=page.locator("foreignObject"))
    filled = ["100% filled", f"{len(ui.events())} partitions"]
    nodes = {
        "daq_announcements": ["nats"],
        "raw_image": ["image", "File", *filled],
        "preprocessed_tensor": ["NumPy", "File", *filled],
    }
    left = 0.0
    for asset, shown in nodes.items():
        node = graph.locator("foreignObject").filter(has=page.get_by_text(asset, exact=True))
        for text in shown:
            expect(node.get_by_text(text, exact=True)).to_be_visible()
        box = node.bounding_box()
        assert box is not None
        assert box["x"] > left  # from left to right
        left = box["x"]
    expect(graph.locator("path[marker-end]")).to_have_count(4)  # the arrows
    picture("asset-graph")


def test_a_tensor_has_a_thumbnail_one_can_look_at(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    shares = {e: ui.metadata("preprocessed_tensor", e)["clipped_high_share"] for e in ui.events()}
    brightest = max(shares, key=shares.__getitem__)
    page.set_viewport_size({"width": 1400, "height": 640})
    page.goto(f"{ui.url}/assets/preprocessed_tensor?view=partitions&partition={brightest}")
    page.get_by_text("Hide navigation").click()
    for label in ("spec_hash", "window_adu", "clipped_high_share", "latency_s", "path"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()

    page.get_by_text("[Show Markdown]").click()
    image = page.get_by_role("dialog").locator("img[src^='data:image/jpeg']")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 256
    picture("tensor")


def test_one_event_is_materialized_with_nothing_typed_in(ui: WebUI, page: Page) -> None:
    event = ui.events()[0]
    page.goto(f"{ui.url}/{LIVE_GRAPH}")
    page.get_by_role("button", name="Materialize all (2)").click()
    page.get_by_text("Select a partition or create one").click()
    page.get_by_role("menu").get_by_text(event, exact=True).first.click()
    page.keyboard.press("Escape")  # closes the menu
    expect(page.get_by_text("1 partition", exact=True)).to_be_visible()
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("link", name="View", exact=True).click()

    expect(page).to_have_url(f"{ui.url}/runs/{ui.newest_run(event)}")
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=60_000)
    page.get_by_placeholder("Filter…").fill("already stored")
    expect(page.get_by_text("already stored: not downloaded")).to_be_visible()


def test_the_sensor_is_on_and_can_be_switched_off_and_on(ui: WebUI, page: Page) -> None:
    assert ui.sensor_status() == "RUNNING"  # nobody has switched it on
    page.goto(f"{ui.url}/automation")
    row = page.locator("[data-index]").filter(has=page.get_by_text("daq_events", exact=True))
    switch = row.locator("label[class*=Switch]")
    expect(switch.locator("input")).to_be_checked()

    # The daemon undoes a click that comes while it ends a tick: click between two ticks.
    before = _last_tick(ui)
    wait_until("a tick has ended", lambda: _last_tick(ui) != before)
    switch.click()
    wait_until("the sensor is off", lambda: ui.sensor_status() == "STOPPED")
    expect(switch.locator("input")).not_to_be_checked()
    switch.click()
    wait_until("the sensor is on", lambda: ui.sensor_status() == "RUNNING")
    expect(switch.locator("input")).to_be_checked()


def test_the_training_set_is_a_grid_of_recoil_type_and_energy(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/assets/pixel_histogram?view=partitions&partition=6keV%7CNR")
    page.get_by_text("Hide navigation").click()
    expect(page.get_by_text("Materialized (12)")).to_be_visible()
    for key in ("1keV", "3keV", "6keV", "10keV", "20keV", "30keV", "ER", "NR"):
        expect(page.get_by_text(key, exact=True).first).to_be_visible()
    for label in ("mean_adu", "quantiles_adu", "made_from"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    picture("training-grid")


def test_the_histogram_has_a_plot(ui: WebUI, page: Page, picture: Callable[[str], None]) -> None:
    page.set_viewport_size({"width": 1400, "height": 700})
    page.goto(f"{ui.url}/assets/dataset_pixel_histogram")
    page.get_by_text("Hide navigation").click()
    open_picture(page, 600)
    picture("histogram")


@pytest.mark.parametrize("figure", ["raw_image_figure", "histogram_figure", "recoils_figure"])
def test_each_figure_can_be_seen(
    ui: WebUI, page: Page, picture: Callable[[str], None], figure: str
) -> None:
    page.set_viewport_size({"width": 1400, "height": 760})
    page.goto(f"{ui.url}/assets/{figure}")
    page.get_by_text("Hide navigation").click()
    open_picture(page, 600)
    if figure == "recoils_figure":
        picture("recoils")


def test_the_ground_truth_has_columns_with_units_and_its_population(ui: WebUI, page: Page) -> None:
    page.goto(f"{ui.url}/assets/ground_truth_table")
    expect(page.get_by_text("energy of the recoil in keV, from the path")).to_be_visible()
    population = page.locator("table").filter(has=page.get_by_text("electronic", exact=True))
    rows = population.last.locator("tr")
    expect(rows).to_have_count(1 + 6)
    expect(rows.nth(3)).to_have_text("61002")  # 6 keV, 100 nuclear, 2 electronic
    open_picture(page, 600)


def test_windows_stand_side_by_side(ui: WebUI, page: Page) -> None:
    page.goto(f"{ui.url}/assets/suggested_window")
    expect(page.get_by_text("set CYGNO_WINDOW_LOW=")).to_be_visible()
    windows = page.locator("table").filter(has=page.get_by_text("clipped_low", exact=True))
    for which, count in (("suggested", 1), ("in use", 1), ("known", 3)):
        expect(windows.last.get_by_text(which, exact=True)).to_have_count(count)


def test_the_backfill_is_a_real_one(ui: WebUI, page: Page, picture: Callable[[str], None]) -> None:
    page.set_viewport_size({"width": 1400, "height": 480})
    page.goto(f"{ui.url}/runs?view=backfills")
    page.get_by_text("Hide navigation").click()
    expect(page.get_by_text("training_automation", exact=True).first).to_be_visible()
    page.goto(f"{ui.url}/runs/b/{ui.backfills()[0]['id']}")
    expect(page.get_by_text("100% completed").first).to_be_visible()
    for asset in ("ground_truth", "pixel_histogram"):
        expect(page.locator(f"a[href='/assets/{asset}']").first).to_be_visible()
    picture("backfill")


def test_the_audit_says_what_is_wrong_with_the_training_set(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(f"{ui.url}/assets/training_audit")
    page.get_by_text("Hide navigation").click()
    alarms = page.locator("table").filter(has=page.get_by_text("severity", exact=True)).last
    expect(alarms.locator("tr")).to_have_count(1 + 7)
    energy = alarms.locator("tr").filter(has=page.get_by_text("energy_does_not_tell_the_type"))
    expect(energy.get_by_text("the energy alone tells the recoil type of 98.0%")).to_be_visible()

    row = page.locator("tr").filter(has=page.get_by_text("tracks_are_inside_the_crop", exact=True))
    row.get_by_text("[Show Markdown]").click()
    image = page.get_by_role("dialog").locator("img[src^='data:image/']")
    expect(image).to_be_visible()
    picture("audit-tracks")

    page.goto(f"{ui.url}/assets/training_audit?view=checks")
    page.get_by_text("tracks_are_inside_the_crop", exact=True).first.click()
    expect(page.get_by_text("60 of 612 images have light at the crop's edge").first).to_be_visible()
    picture("audit")


def test_the_dataset_says_how_it_is_loaded_and_divided(ui: WebUI, page: Page) -> None:
    page.goto(f"{ui.url}/assets/training_dataset")
    for label in ("splits_hash", "table", "how_to_load"):
        expect(page.get_by_text(label, exact=True).first).to_be_visible()
    splits = page.locator("table").filter(has=page.get_by_text("validation", exact=True)).last
    expect(splits.locator("tr")).to_have_count(1 + 12)


def open_picture(page: Page, at_least: int) -> None:
    """Opens the first picture in an asset's metadata; it is as wide as that, in pixels."""
    page.get_by_text("[Show Markdown]").first.click()
    image = page.get_by_role("dialog").locator("img[src^='data:image/']")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") >= at_least


def _last_tick(ui: WebUI) -> float:
    """When the sensor's last tick began, of those that have been written down to the end."""
    sensors = ui.ask(
        """{ sensorsOrError(repositorySelector: {repositoryLocationName: "cygno_assets",
        repositoryName: "__repository__"}) { ... on Sensors { results { name sensorState {
        typeSpecificData { ... on SensorData { lastTickTimestamp } } } } } } }"""
    )["sensorsOrError"]["results"]
    [sensor] = [sensor for sensor in sensors if sensor["name"] == "daq_events"]
    return float(sensor["sensorState"]["typeSpecificData"]["lastTickTimestamp"])
