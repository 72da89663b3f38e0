"""Asking the running system for a backfill, and following it; of the training set, or of events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cygno_assets.services.process import ServiceError
from cygno_assets.services.progress import LiveLine
from cygno_assets.services.web_ui import WebUI

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    from cygno_assets.automation.training import ARCHIVE_SENSOR
    from cygno_assets.names import TRAINING_CELLS

    ui = WebUI(_address(settings))
    keys = [{"path": list(key.path)} for key in TRAINING_CELLS]
    counted = _asked(ui, _COUNT, "assetNodeOrError", "partitionStats", key=keys[0])
    if not counted["partitionStats"]["numPartitions"]:
        raise ServiceError(
            "the training set has no partitions yet, for its archive is not here; see the sensor "
            f"{ARCHIVE_SENSOR} at {ui.url}/automation"
        )
    return _run(ui, keys, None, "cygno-assets backfill training", say, noun="cells", wait=wait)


def run_events_backfill(
    settings: Settings, events: Sequence[str], title: str, say: Callable[[str], None], *, wait: bool
) -> int:
    """Makes these events again, as *Materialize* in the web UI does.

    Args:
        settings: whose home the system runs in.
        events: at least one; those that are no partitions yet must have been made such.
        title: of the backfill.
        say: told of each step, in a line.
        wait: until it has ended; otherwise returns when it is requested.

    Returns:
        0 if all were materialized, or if nobody waits; else 1.

    Raises:
        ServiceError: no system runs there.
    """
    from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE

    keys = [{"path": list(key.path)} for key in (RAW_IMAGE, PREPROCESSED_TENSOR)]
    ui = WebUI(_address(settings))
    return _run(ui, keys, events, title, say, noun="events", wait=wait)


def _run(
    ui: WebUI,
    keys: list[dict[str, list[str]]],
    partitions: Sequence[str] | None,
    title: str,
    say: Callable[[str], None],
    *,
    noun: str,
    wait: bool,
) -> int:
    which = {"allPartitions": True} if partitions is None else {"partitionNames": list(partitions)}
    params = {"assetSelection": keys, "title": title, **which}
    launched = _asked(ui, _LAUNCH, "launchPartitionBackfill", "backfillId", params=params)
    backfill = str(launched["backfillId"])
    say(f"backfill   {ui.url}/runs/b/{backfill}")
    return _follow(ui, backfill, say, noun) if wait else 0


def _follow(ui: WebUI, backfill: str, say: Callable[[str], None], noun: str) -> int:
    say("Ctrl-C leaves it running")
    with LiveLine() as line:
        while True:
            state = _asked(ui, _FOLLOW, "partitionBackfillOrError", "status", id=backfill)
            line.show(_progress(state, noun))
            if state["status"].startswith(("COMPLETED", "FAILED", "CANCELED")):
                break
            time.sleep(_LOOK_EVERY_S)
    say(f"{_progress(state, noun)}: {state['status'].lower().replace('_', ' ')}")
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


def _progress(state: dict[str, Any], noun: str) -> str:
    counts = [c for c in (state["assetBackfillData"] or {}).get("assetBackfillStatuses", []) if c]
    if not counts:
        return "requested"
    # The assets are made together: the one that is least far will do.
    first = min(counts, key=lambda count: count["numPartitionsMaterialized"])
    failed = first["numPartitionsFailed"]
    return f"{first['numPartitionsMaterialized']} of {first['numPartitionsTargeted']} {noun}" + (
        f", {failed} failed" if failed else ""
    )


def _address(settings: Settings) -> str:
    try:
        return settings.web_ui_url_file.read_text().strip()
    except FileNotFoundError:
        raise ServiceError(
            f"no system runs in {settings.home}: start one with `cygno-assets up` or `demo`"
        ) from None
