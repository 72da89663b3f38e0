"""Checks of live events: none is lost, and what failed or was rejected is said.

What their images are like is live_window.py's.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    MetadataValue,
    ResourceParam,
    multi_asset_check,
)

from cygno_assets.daq.inbox import Inbox
from cygno_assets.names import ACCOUNTED, ANNOUNCEMENTS
from cygno_assets.records.losses import NOTICED
from cygno_assets.records.reconciliation import reconcile
from cygno_assets.storage.locations import data_root

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dagster import RawMetadataValue

    from cygno_assets.records.reconciliation import Reconciliation
    from cygno_assets.settings import Settings

NONE_FAILED = "no_event_failed_or_was_rejected"
RECONCILIATION_CHECKS = tuple(
    AssetCheckKey(ANNOUNCEMENTS, name) for name in (ACCOUNTED, NONE_FAILED)
)
_SHOWN = 100


def build_live_checks(settings: "Settings") -> list[AssetChecksDefinition]:
    """The checks of live events, for these settings."""

    @multi_asset_check(
        name="reconciliation",
        can_subset=True,  # or the web UI offers nobody to execute them
        specs=[
            AssetCheckSpec(
                ACCOUNTED,
                asset=ANNOUNCEMENTS,
                description="What the inbox holds, what ran, what is materialized and what is "
                "stored agree. `cygno-assets reconcile --repair` mends what does not. For a day "
                "also if messages left the inbox before they were read, which nobody can mend.",
            ),
            AssetCheckSpec(
                NONE_FAILED,
                asset=ANNOUNCEMENTS,
                description="No event has failed for good, and no message was rejected. "
                "`cygno-assets replay` and `cygno-assets rejected` say which and try again.",
            ),
        ],
    )
    def reconciliation(
        context: AssetCheckExecutionContext, inbox: ResourceParam[Inbox]
    ) -> Iterator[AssetCheckResult]:
        selected = context.selected_asset_check_keys
        for result in _judged(reconcile(context.instance, inbox, data_root(settings))):
            if AssetCheckKey(ANNOUNCEMENTS, str(result.check_name)) in selected:
                yield result

    return [reconciliation]


def _judged(found: "Reconciliation") -> Iterator[AssetCheckResult]:
    """Both checks."""
    wrong = [one for one in found.differences if one.mendable]
    counts: dict[str, RawMetadataValue] = {
        "announced": found.announced,
        "waiting": found.waiting,
        "running": found.running,
        "materialized": found.materialized,
    }
    lost = found.losses
    said = [f"{len(wrong)} of {found.announced} events of which not everything agrees"]
    said += [str(lost)] if lost.recent else []
    yield AssetCheckResult(
        asset_key=ANNOUNCEMENTS,
        check_name=ACCOUNTED,
        passed=not wrong and not lost.recent,
        severity=AssetCheckSeverity.ERROR,
        description="; ".join(said),
        metadata={
            **counts,
            **{
                what.replace(" ", "_"): count
                for what, count in found.counts().items()
                if not what.startswith("failed")
            },
            **{name: count for name, count in lost.counts.items() if count},
            **({} if lost.noticed is None else {NOTICED: MetadataValue.timestamp(lost.noticed)}),
            "which": _lines(f"{one.event_id}: {one.what}: {one.detail}" for one in wrong),
        },
    )
    failures = found.failures()
    # What failed long ago is counted, but does not fail the check for ever.
    failed = [one for one in found.differences if one.what == "failed"]
    yield AssetCheckResult(
        asset_key=ANNOUNCEMENTS,
        check_name=NONE_FAILED,
        passed=not failed and not found.rejected,
        severity=AssetCheckSeverity.WARN,
        description=f"{len(failed)} events failed, {found.rejected} messages were rejected",
        metadata={
            "failed": len(failed),
            "failed_long_ago": found.counts().get("failed long ago", 0),
            "rejected": found.rejected,
            **{f"failed_{kind}": count for kind, count in failures.items()},
            "which": _lines(f"{one.event_id}: {one.detail}" for one in failed),
        },
    )


def _lines(texts: "Iterable[str]") -> str:
    return "\n".join(sorted(texts)[:_SHOWN]) or "none"
