"""The freshness policies, by Dagster's own evaluation at one time and another."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance, MultiPartitionKey
from dagster._core.definitions.freshness_evaluator import FRESHNESS_EVALUATORS_BY_POLICY_TYPE
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import freeze_time

from cygno_assets.automation.freshness import policies
from cygno_assets.build import build_defs
from cygno_assets.names import (
    GROUND_TRUTH,
    GROUND_TRUTH_TABLE,
    PIPELINE_HEALTH,
    PREPROCESSED_TENSOR,
    RAW_IMAGE,
    TRAINING_ARCHIVE,
    UNLABELLED_PATHS,
)
from cygno_assets.settings import CHECKOUT, SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

MONDAY = datetime(2024, 11, 25, 4, 0, tzinfo=UTC)
"""A tick of the default cron."""
CELL = MultiPartitionKey({"recoil": "NR", "energy": "6keV"})


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def state(instance: DagsterInstance, key: AssetKey, when: datetime, **overrides: object) -> str:
    """What the daemon would say of an asset at that time."""
    graph = build_defs(load_settings(overrides)).resolve_asset_graph()
    node = graph.get(key)
    policy = node.freshness_policy_or_from_metadata
    assert policy is not None
    evaluate = FRESHNESS_EVALUATORS_BY_POLICY_TYPE[type(policy)]().evaluate_freshness
    with freeze_time(when):
        found = asyncio.run(evaluate(LoadingContextForTest(instance), node))  # type: ignore[arg-type]  # a local node has all that is asked for
    return str(found.value)


def made(instance: DagsterInstance, key: AssetKey, when: datetime, partition: str | None) -> None:
    with freeze_time(when):
        instance.report_runless_asset_event(AssetMaterialization(key, partition=partition))


@pytest.mark.parametrize("key", [RAW_IMAGE, PREPROCESSED_TENSOR], ids=str)
def test_a_silent_daq_makes_the_live_assets_overdue(
    instance: DagsterInstance, key: AssetKey
) -> None:
    assert state(instance, key, MONDAY) == "UNKNOWN"
    for seconds, event in enumerate(("cygno-b", "cygno-a")):  # whichever event is the newest
        made(instance, key, MONDAY + timedelta(seconds=seconds), event)
    assert state(instance, key, MONDAY + timedelta(minutes=20)) == "PASS"
    assert state(instance, key, MONDAY + timedelta(minutes=40)) == "WARN"
    assert state(instance, key, MONDAY + timedelta(minutes=70)) == "FAIL"
    assert state(instance, key, MONDAY + timedelta(minutes=3), live_fresh_s=120) == "FAIL"


@pytest.mark.parametrize(
    ("key", "partition"), [(GROUND_TRUTH, CELL), (GROUND_TRUTH_TABLE, None)], ids=str
)
def test_the_training_set_is_overdue_from_its_cron_on(
    instance: DagsterInstance, key: AssetKey, partition: str | None
) -> None:
    wednesday = MONDAY + timedelta(days=2)
    made(instance, key, wednesday, partition)
    assert state(instance, key, wednesday + timedelta(hours=1)) == "PASS"
    next_monday = MONDAY + timedelta(days=7)
    assert state(instance, key, next_monday - timedelta(minutes=1)) == "PASS"
    assert state(instance, key, next_monday + timedelta(minutes=1)) == "FAIL"
    assert (
        state(instance, key, wednesday + timedelta(days=1), training_backfill_cron="0 * * * *")
        == "FAIL"
    )
    made(instance, key, next_monday + timedelta(minutes=2), partition)
    assert state(instance, key, next_monday + timedelta(minutes=3)) == "PASS"
    assert state(instance, key, next_monday + timedelta(days=6)) == "PASS"


@pytest.mark.parametrize("key", [TRAINING_ARCHIVE, UNLABELLED_PATHS], ids=str)
def test_what_no_cron_makes_may_be_old(instance: DagsterInstance, key: AssetKey) -> None:
    made(instance, key, MONDAY, None)
    assert state(instance, key, MONDAY + timedelta(days=100)) == "PASS"
    assert state(instance, key, MONDAY + timedelta(days=200)) == "WARN"
    assert state(instance, key, MONDAY + timedelta(days=400)) == "FAIL"


def test_the_health_of_an_hour_that_was_missed_is_overdue(instance: DagsterInstance) -> None:
    made(instance, PIPELINE_HEALTH, MONDAY, None)
    assert state(instance, PIPELINE_HEALTH, MONDAY + timedelta(minutes=90)) == "PASS"
    assert state(instance, PIPELINE_HEALTH, MONDAY + timedelta(minutes=150)) == "WARN"
    assert state(instance, PIPELINE_HEALTH, MONDAY + timedelta(minutes=190)) == "FAIL"


def test_a_cron_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match="CYGNO_TRAINING_BACKFILL_CRON: 'weekly'"):
        policies(load_settings({"training_backfill_cron": "weekly"}))


def test_dagster_looks_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(CHECKOUT))
    with DagsterInstance.get() as ours:
        assert ours.freshness_enabled
        assert "FRESHNESS_DAEMON" in ours.get_required_daemon_types()
