"""`cygno-assets backfill training`: asks the running system for a backfill, and follows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cygno_assets.services.process import ServiceError
from cygno_assets.services.progress import LiveLine
from cygno_assets.services.web_ui import WebUI

if TYPE_CHECKING:
    from collections.abc import Callable

    from cygno_assets.settings import Settings

_LOOK_EVERY_S = 1.0

_LAUNCH = """mutation($params: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_COUNT = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
    __typename ... on AssetNode { partitionStats { numPartitions } } } }"""
_FOLLOW = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
    __typename ... on PythonError { message }
    ... on PartitionBackfill { status error { message }
    assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts {
    numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed } } } } } }"""


def run_training_backfill(settings: Settings, say: Callable[[str], None], *, wait: bool) -> int:
    """Backfills all recoil × energy cells of the training set.

    Args:
        settings: whose home the system runs in.
        say: told of each step, in a line.
        wait: until it has ended; otherwise returns when it is requested.

    Returns:
        0 if all cells were materialized, or if nobody waits; else 1.

    Raises:
        ServiceError: no system runs there, or there are no cells yet.
    """
    # For its keys alone; an import at the top would make every command load Dagster.
    from cygno_assets.assets.training import TRAINING_CELLS
    from cygno_assets.automation.training import ARCHIVE_SENSOR

    ui = WebUI(_address(settings))
    keys = [{"path": list(key.path)} for key in TRAINING_CELLS]
    counted = _asked(ui, _COUNT, "assetNodeOrError", "partitionStats", key=keys[0])
    if not counted["partitionStats"]["numPartitions"]:
        raise ServiceError(
            "the training set has no partitions yet, for its archive is not here; see the sensor "
            f"{ARCHIVE_SENSOR} at {ui.url}/automation"
        )
    params = {
        "assetSelection": keys,
        "allPartitions": True,
        "title": "cygno-assets backfill training",
    }
    launched = _asked(ui, _LAUNCH, "launchPartitionBackfill", "backfillId", params=params)
    backfill = str(launched["backfillId"])
    say(f"backfill   {ui.url}/runs/b/{backfill}")
    return _follow(ui, backfill, say) if wait else 0


def _follow(ui: WebUI, backfill: str, say: Callable[[str], None]) -> int:
    say("Ctrl-C leaves it running")
    with LiveLine() as line:
        while True:
            state = _asked(ui, _FOLLOW, "partitionBackfillOrError", "status", id=backfill)
            line.show(_progress(state))
            if state["status"].startswith(("COMPLETED", "FAILED", "CANCELED")):
                break
            time.sleep(_LOOK_EVERY_S)
    say(f"{_progress(state)}: {state['status'].lower().replace('_', ' ')}")
    if state["error"]:
        say(state["error"]["message"])
    return 0 if state["status"] == "COMPLETED_SUCCESS" else 1


def _asked(ui: WebUI, query: str, field: str, expected: str, **variables: object) -> dict[str, Any]:
    """A field of the web UI's answer.

    Raises:
        ServiceError: it does not answer, or not with what is expected.
    """
    try:
        answer: dict[str, Any] = ui.ask(query, **variables)[field]
    except OSError:
        raise ServiceError(f"the web UI at {ui.url} does not answer") from None
    if expected not in answer:
        raise ServiceError(
            f"the web UI answers: {answer.get('message') or answer.get('__typename') or answer}"
        )
    return answer


def _progress(state: dict[str, Any]) -> str:
    counts = [c for c in (state["assetBackfillData"] or {}).get("assetBackfillStatuses", []) if c]
    if not counts:
        return "requested"
    # The cells of the two assets are made together: one of them will do.
    first = counts[0]
    failed = first["numPartitionsFailed"]
    return f"{first['numPartitionsMaterialized']} of {first['numPartitionsTargeted']} cells" + (
        f", {failed} failed" if failed else ""
    )


def _address(settings: Settings) -> str:
    try:
        return settings.web_ui_url_file.read_text().strip()
    except FileNotFoundError:
        raise ServiceError(
            f"no system runs in {settings.home}: start one with `cygno-assets up` or `demo`"
        ) from None
