"""`cygno-assets prune`: bounding Dagster's history, or saying what that would take out."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from cygno_assets.services.dagster_instance import dagster_instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from cygno_assets.settings import Settings


def run_prune(
    settings: Settings, say: Callable[[str], None], *, dry_run: bool, as_json: bool
) -> None:
    """Prunes as the schedule does; beside a running system or without.

    Args:
        settings: what is kept.
        say: told of each step, in a line.
        dry_run: only say what would go.
        as_json: in the end, the counts for programs.

    Raises:
        ServiceError: nothing has run there yet.
    """
    from cygno_assets.records.pruning import keep_by, plan, prune
    from cygno_assets.storage.locations import data_root

    root = data_root(settings)
    with dagster_instance(settings) as instance:
        planned = plan(instance, root, keep_by(settings, time.time()))
        if not dry_run:
            prune(instance, root, planned, (lambda _: None) if as_json else say)
    if as_json:
        say(json.dumps(planned.counts()))
    else:
        say(("would take out " if dry_run else "took out ") + str(planned))
