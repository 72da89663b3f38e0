"""The web UI as a person uses it. `make screenshots` keeps the pictures taken on the way.

All of it is done to one system, one test after the other, and each leaves it idle and in order.
"""

from __future__ import annotations

import os
import re
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from cygno_assets.build import build_defs
from cygno_assets.checks.live import ACCOUNTED, NONE_FAILED
from cygno_assets.names import (
    ANNOUNCEMENTS,
    DAQ_EVENTS,
    GROUND_TRUTH,
    LIVE_GROUP,
    LIVE_JOB,
    PIXEL_HISTOGRAM,
    PREPROCESSED_TENSOR,
    QUALITY_GROUP,
    RAW_IMAGE,
    TRAINING_ARCHIVE,
    TRAINING_AUDIT,
    TRAINING_DATASET,
    TRAINING_GROUP,
    TRAINING_TENSORS,
)
from cygno_assets.settings import load_settings
from cygno_assets_tests.end_to_end.running import PROGRAM
from cygno_assets_tests.wire import REAL_IMAGES, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagster import AssetKey
    from playwright.sync_api import FloatRect, Locator

    from cygno_assets_tests.end_to_end.running import WebUI
    from cygno_assets_tests.ui.conftest import System

LIVE_GRAPH = "locations/cygno_assets/asset-groups/live/lineage"


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
    page.goto(f"{ui.url}/locations/cygno_assets/jobs/{LIVE_JOB}")
    page.get_by_role("button", name="Materialize all").click()
    choose(page, event)
    expect(page.get_by_text("1 partition", exact=True)).to_be_visible()
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("link", name="View", exact=True).click()

    expect(page).to_have_url(f"{ui.url}/runs/{ui.newest_run(event)}")
    run_ends(page, "Success")
    page.get_by_placeholder("Filter…").fill("already stored")
    expect(page.get_by_text("already stored: not downloaded")).to_be_visible()


def test_one_tensor_is_made_again_from_its_asset_page(ui: WebUI, page: Page) -> None:
    event = ui.events()[-1]
    page.goto(f"{ui.url}/assets/preprocessed_tensor")
    page.get_by_role("button", name=re.compile("Materialize…")).click()
    choose(page, event)
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("link", name="View", exact=True).click()

    run_ends(page, "Success")
    expect(page.get_by_text(f"partition: {event}")).to_be_visible()
    expect(page.get_by_text("raw_image", exact=True)).to_have_count(0)  # only what was asked for


def test_events_wait_while_the_sensor_is_off_and_are_made_when_it_is_on_again(
    system: System, ui: WebUI, page: Page
) -> None:
    assert ui.sensor_status() == "RUNNING"  # nobody has switched it on
    page.goto(f"{ui.url}/automation")
    row = page.locator("[data-index]").filter(has=page.get_by_text(DAQ_EVENTS, exact=True))
    switch = row.locator("label[class*=Switch]")
    expect(switch.locator("input")).to_be_checked()

    # The daemon undoes a click that comes while it ends a tick: click between two ticks.
    before = _last_tick(ui)
    wait_until("a tick has ended", lambda: _last_tick(ui) != before)
    switch.click()
    wait_until("the sensor is off", lambda: ui.sensor_status() == "STOPPED")
    expect(switch.locator("input")).not_to_be_checked()
    last = _last_tick(ui)

    events = system.announce(*(image.read_bytes() for image in REAL_IMAGES[:2]))
    page.goto(f"{ui.url}/assets/daq_announcements?view=checks")
    execute(page, ACCOUNTED, "Passed")  # it has read the inbox: they wait there
    expect(metadata(page, "waiting")).to_have_text("2")
    assert not set(events) & set(ui.events())
    assert _last_tick(ui) == last

    page.goto(f"{ui.url}/automation")
    switch.click()
    wait_until("the sensor is on", lambda: ui.sensor_status() == "RUNNING")
    expect(switch.locator("input")).to_be_checked()
    page.goto(f"{ui.url}/runs")
    for event in events:
        made = run_of(page, event).get_by_text("Success", exact=True)
        expect(made).to_be_visible(timeout=60_000)
    assert set(events) <= set(ui.events())


def test_a_run_is_terminated_while_the_system_goes_on(
    system: System, ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 450})
    system.may_answer.clear()
    [slow] = system.announce(REAL_IMAGES[2].read_bytes())
    page.goto(f"{ui.url}/runs")
    page.get_by_text("Hide navigation").click()
    row = run_of(page, slow)
    expect(row.get_by_text("Started", exact=True)).to_be_visible(timeout=60_000)
    row.locator("a[href^='/runs/']").first.click()
    expect(page.get_by_text(f"partition: {slow}")).to_be_visible()
    terminated = page.url

    page.get_by_role("button", name=re.compile("Terminate")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Terminate 1 run").click()
    expect(dialog).to_have_count(0)
    run_ends(page, "Canceled")
    expect(page.get_by_text("RUN_CANCELED", exact=True)).to_be_visible()

    # Another event is made meanwhile, and this one when somebody asks for it again.
    system.may_answer.set()
    [other] = system.announce(REAL_IMAGES[3].read_bytes())
    page.goto(f"{ui.url}/runs")
    made = run_of(page, other).get_by_text("Success", exact=True)
    expect(made).to_be_visible(timeout=60_000)
    expect(run_of(page, slow).get_by_text("Canceled", exact=True).first).to_be_visible()
    picture("run-terminated")
    page.goto(terminated)
    page.get_by_role("button", name=re.compile("Re-execute all")).click()
    expect(page).not_to_have_url(terminated)
    run_ends(page, "Success")
    assert ui.runs_of(slow) == ["SUCCESS", "CANCELED"]


def test_a_check_fails_and_passes_again(
    system: System, ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 700})
    event = ui.events()[0]
    page.goto(f"{ui.url}/assets/daq_announcements?view=checks")
    page.get_by_text("Hide navigation").click()
    execute(page, NONE_FAILED, "Passed")
    execute(page, ACCOUNTED, "Passed")

    system.tensor(event).unlink()
    execute(page, ACCOUNTED, "Failed")
    expect(metadata(page, "no_tensor")).to_have_text("1")
    expect(metadata(page, "which")).to_contain_text(event)
    picture("checks")

    # What the check's description says to do.
    subprocess.run(
        [PROGRAM, "reconcile", "--repair"],
        env=os.environ | {"CYGNO_HOME": str(system.home)},
        check=True,
        capture_output=True,
    )
    wait_until("it is stored again", system.tensor(event).exists)
    wait_until("no run is left", lambda: not ui.unfinished_runs())
    execute(page, ACCOUNTED, "Passed")
    expect(metadata(page, "no_tensor")).to_have_count(0)


def test_the_asset_graph_shows_the_road_of_an_event(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 560})
    page.goto(f"{ui.url}/{LIVE_GRAPH}")
    page.get_by_text("Hide navigation").click()
    page.reload()  # the graph is centred anew

    graph = page.locator("svg").filter(has=page.locator("foreignObject"))
    filled = ["100% filled", f"{len(set(ui.events()))} partitions"]
    nodes = {
        "daq_announcements": ["nats"],
        "raw_image": ["image", "File", *filled],
        "preprocessed_tensor": ["NumPy", "File", *filled],
        "event_catalog": ["Parquet", "File"],
        "event_tensors": ["Parquet", "NumPy", "File"],
    }
    left = 0.0
    for asset, shown in nodes.items():
        node = graph.locator("foreignObject").filter(has=page.get_by_text(asset, exact=True))
        for text in shown:
            expect(node.get_by_text(text, exact=True)).to_be_visible()
        assert place(node)["x"] > left  # from left to right
        left = place(node)["x"]
    expect(graph.locator("path[marker-end]")).to_have_count(5)  # the arrows, one into another group
    picture("asset-graph")


def test_the_lineage_of_everything_is_in_groups(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.goto(f"{ui.url}/asset-groups")
    page.get_by_text("Hide navigation").click()
    graph = page.locator("svg").filter(has=page.locator("foreignObject"))
    for group in (LIVE_GROUP, TRAINING_GROUP, QUALITY_GROUP):
        expect(graph.get_by_text(group, exact=True)).to_be_visible()
    page.keyboard.press("Alt+KeyE")  # expand all groups
    page.reload()  # centred anew, so that all of it is seen
    page.get_by_role("button", name="panel_show_right").click()  # no list beside it
    for _ in range(3):
        page.get_by_role("button", name="zoom_out").click()
    search = page.get_by_role("textbox", name="Search and filter assets")
    groups = [graph.get_by_text(name, exact=True) for name in (LIVE_GROUP, TRAINING_GROUP)]
    wait_until(
        "no group is cut off", lambda: all(place(g)["y"] > place(search)["y"] for g in groups)
    )
    specs = build_defs(load_settings()).resolve_all_asset_specs()
    expect(graph.locator("[class*=AssetNode_assetName]")).to_have_count(len(specs))
    roads = [
        (ANNOUNCEMENTS, RAW_IMAGE, PREPROCESSED_TENSOR),
        (TRAINING_ARCHIVE, GROUND_TRUTH, TRAINING_TENSORS, TRAINING_DATASET, TRAINING_AUDIT),
    ]
    for road in roads:
        nodes = [graph.get_by_text(shortened(asset)) for asset in road]
        for before, after in pairwise(nodes):
            assert place(before)["x"] < place(after)["x"]
    # Of what is made of others, at least one arrow each leads there.
    made = [spec for spec in specs if list(spec.deps)]
    assert graph.locator("path[marker-end]").count() >= len(made)
    picture("lineage")


def test_the_training_set_is_a_grid_of_recoil_type_and_energy(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 760})
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
    page.goto(f"{ui.url}/runs/b/{ui.backfills()[-1]['id']}")
    expect(page.get_by_text("100% completed").first).to_be_visible()
    for asset in ("ground_truth", "pixel_histogram"):
        expect(page.locator(f"a[href='/assets/{asset}']").first).to_be_visible()
    picture("backfill")


def test_a_part_of_the_grid_is_backfilled(
    ui: WebUI, page: Page, picture: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 720})
    cells = ("3keV|ER", "10keV|ER")
    before = {cell: ui.partition_made(PIXEL_HISTOGRAM, cell) for cell in (*cells, "6keV|NR")}
    page.goto(f"{ui.url}/assets/pixel_histogram")
    page.get_by_text("Hide navigation").click()
    page.get_by_role("button", name=re.compile("Materialize…")).click()
    # Ground truth and histogram come from one pass over the images.
    expect(page.get_by_role("dialog").get_by_role("link", name="ground_truth")).to_be_visible()
    page.get_by_role("button", name="Confirm").click()
    choose(page, "3keV", "10keV")
    choose(page, "ER")
    expect(page.get_by_text("2 partitions", exact=True)).to_be_visible()
    picture("backfill-part")
    page.get_by_role("button", name="Launch backfill").click()
    page.get_by_role("link", name="View", exact=True).click()

    expect(page).to_have_url(re.compile("/runs/b/"))
    backfill = page.url.rpartition("/")[2]
    page.goto(f"{ui.url}/runs?view=backfills")
    row = page.locator("[data-index]").filter(has=page.get_by_text(backfill, exact=True))
    expect(row.get_by_text("2 partitions", exact=True)).to_be_visible()
    expect(row.get_by_text("Success", exact=True)).to_be_visible(timeout=120_000)
    after = {cell: ui.partition_made(PIXEL_HISTOGRAM, cell) for cell in before}
    assert [cell for cell in before if after[cell] != before[cell]] == list(cells)
    # What is made of these cells follows by itself.
    wait_until("no run is left", lambda: not ui.unfinished_runs())


def test_the_audit_says_what_is_wrong_with_the_training_set(
    ui: WebUI, page: Page, picture: Callable[..., None]
) -> None:
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(f"{ui.url}/assets/training_audit")
    page.get_by_text("Hide navigation").click()
    alarms = page.locator("table").filter(has=page.get_by_text("severity", exact=True)).last
    expect(alarms.locator("tr")).to_have_count(1 + 8)
    energy = alarms.locator("tr").filter(has=page.get_by_text("energy_does_not_tell_the_type"))
    expect(energy.get_by_text("the energy alone tells the recoil type of 98.0%")).to_be_visible()

    row = page.locator("tr").filter(has=page.get_by_text("tracks_are_inside_the_crop", exact=True))
    row.get_by_text("[Show Markdown]").click()
    image = page.get_by_role("dialog").locator("img[src^='data:image/']")
    expect(image).to_be_visible()
    picture("audit-tracks", height=560)

    page.goto(f"{ui.url}/assets/training_audit?view=checks")
    page.get_by_text("tracks_are_inside_the_crop", exact=True).first.click()
    expect(page.get_by_text("60 of 612 images have light at the crop's edge").first).to_be_visible()
    picture("audit")


def test_the_dataset_says_how_it_is_loaded_and_divided(ui: WebUI, page: Page) -> None:
    page.goto(f"{ui.url}/assets/training_dataset")
    for label in ("splits_hash", "path", "tensors_path", "how_to_load"):
        expect(page.get_by_text(label, exact=True).first).to_be_visible()
    splits = page.locator("table").filter(has=page.get_by_text("validation", exact=True)).last
    expect(splits.locator("tr")).to_have_count(1 + 12)


def shortened(asset: AssetKey) -> re.Pattern[str]:
    """An asset's name where there is little room for it: not all of its middle is shown."""
    name = asset.to_user_string()
    return re.compile(f"^{name[:4]}.*{name[-4:]}$")


def place(shown: Locator) -> FloatRect:
    """Where something is, in pixels, when it is there."""
    expect(shown).to_be_visible()
    box = shown.bounding_box()
    assert box is not None
    return box


def choose(page: Page, *partitions: str) -> None:
    """Picks partitions in the first field of the dialog that has none yet."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Select a partition or create one").first.click()
    for partition in partitions:
        page.get_by_role("menu").get_by_text(partition, exact=True).first.click()
    page.keyboard.press("Escape")  # closes the menu
    expect(page.get_by_role("menu")).to_have_count(0)


def run_of(page: Page, event: str) -> Locator:
    """The line of an event's run on the page of all runs, which refreshes itself."""
    return page.locator("[data-index]").filter(has=page.get_by_text(f"partition: {event}"))


def run_ends(page: Page, status: str) -> None:
    """Waits until the run that is shown has ended so."""
    expect(page.get_by_text(status, exact=True).first).to_be_visible(timeout=60_000)


def execute(page: Page, check: str, result: str) -> None:
    """Executes a check on the page of its asset's checks, and waits for what it finds."""
    button = page.get_by_role("button", name=re.compile("Execute$"))
    expect(button).to_be_visible()  # the page has chosen one by itself; now a click counts
    page.get_by_title(check).click()  # the whole name: what is seen may be shortened
    expect(page).to_have_url(re.compile(f"checkDetail={check}"))
    latest = page.locator("a[href*='/runs/']")
    before = latest.first.get_attribute("href") if latest.count() else None
    button.click()
    if before is not None:
        expect(latest.first).not_to_have_attribute("href", before)
    expect(page.get_by_text(result, exact=True).last).to_be_visible(timeout=60_000)


def metadata(page: Page, label: str) -> Locator:
    """What the page says of this label."""
    row = page.locator("tr").filter(has=page.get_by_text(label, exact=True))
    return row.locator("td").last


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
