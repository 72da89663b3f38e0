"""How old each asset may become: the freshness policies, which the web UI shows as its health.

Here belongs how often an asset is to be made; who makes it is in the other modules beside this.
Dagster looks at an asset as a whole: of one with partitions, its newest materialization counts.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

from dagster import AssetsDefinition, AssetSpec, FreshnessPolicy, map_asset_specs

from cygno_assets.names import (
    EVENT_CATALOG,
    EVENT_TENSORS,
    PIPELINE_HEALTH,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
    TRAINING_ARCHIVE,
    TRAINING_ASSETS,
    UNLABELLED_PATHS,
)
from cygno_assets.settings import SettingsError, environment_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dagster import AssetKey

    from cygno_assets.settings import Settings

_ARCHIVE_OLD = timedelta(days=180)
_ARCHIVE_OVERDUE = timedelta(days=365)
"""Nobody makes it again while it is the same; but a camera's noise and gain do not stay for years,
and a set that was simulated so long ago may no longer be like the live images."""

_BEFORE_TICK = timedelta(minutes=1)
"""The least that Dagster takes: what was made longer before a tick of the cron is due at it."""


def policies(settings: "Settings") -> "Mapping[AssetKey, FreshnessPolicy]":
    """The policy of every asset that this project makes, for these settings.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    live = timedelta(seconds=settings.live_fresh_s)
    live_policy = FreshnessPolicy.time_window(fail_window=live, warn_window=live / 2)
    archive = FreshnessPolicy.time_window(fail_window=_ARCHIVE_OVERDUE, warn_window=_ARCHIVE_OLD)
    return {
        RAW_IMAGE: live_policy,
        PREPROCESSED_TENSOR: live_policy,
        EVENT_CATALOG: FreshnessPolicy.time_window(
            fail_window=live + timedelta(seconds=2 * settings.catalog_every_s), warn_window=live
        ),
        # Made each night of the day before; two nights missed are too many.
        EVENT_TENSORS: FreshnessPolicy.time_window(
            fail_window=timedelta(hours=49), warn_window=timedelta(hours=25)
        ),
        **dict.fromkeys(TRAINING_ASSETS, _on_cron(settings)),
        TRAINING_ARCHIVE: archive,
        UNLABELLED_PATHS: archive,  # made when it is another one, and not by the cron
        PIPELINE_HEALTH: FreshnessPolicy.time_window(
            fail_window=timedelta(hours=3), warn_window=timedelta(hours=2)
        ),
    }


def with_freshness(
    assets: "Sequence[AssetSpec | AssetsDefinition]", settings: "Settings"
) -> "list[AssetSpec | AssetsDefinition]":
    """These assets, each with its policy; one that is not made here has none.

    Raises:
        SettingsError: the cron setting is no cron line.
    """
    chosen = policies(settings)
    return list(
        map_asset_specs(
            lambda spec: spec.replace_attributes(freshness_policy=chosen.get(spec.key)), assets
        )
    )


def _on_cron(settings: "Settings") -> FreshnessPolicy:
    """Overdue from a tick of the cron until its backfill is through."""
    try:
        return FreshnessPolicy.cron(
            deadline_cron=settings.training_backfill_cron, lower_bound_delta=_BEFORE_TICK
        )
    except Exception as error:  # noqa: BLE001 – Dagster's CheckError, which has no public name
        raise SettingsError(
            f"{environment_name('training_backfill_cron')}: "
            f"{settings.training_backfill_cron!r} is no cron line such as '0 4 * * 1' ({error})"
        ) from None
