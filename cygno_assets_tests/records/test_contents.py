"""What is found of stored images and tensors that are not what they were, on a real instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from cygno_assets.names import PARTITION_TAG
from cygno_assets.records.contents import damaged
from cygno_assets.storage.locations import data_root
from cygno_assets_tests.assets.detector import TENSOR, Detector
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings


@pytest.fixture
def detector(daq_bucket: BucketSettings, inbox_url: str, tmp_path: Path) -> Iterator[Detector]:
    with DagsterInstance.ephemeral() as instance:
        yield Detector(daq_bucket, inbox_url, tmp_path / "home", instance)


def found(detector: Detector) -> dict[str, str]:
    differences = damaged(detector.instance, data_root(detector.settings))
    assert all(one.mendable for one in differences)
    return {one.event_id: one.what for one in differences}


def test_bytes_that_changed_are_found_and_made_again(detector: Detector) -> None:
    first, second, third = (detector.announce(image.read_bytes()) for image in REAL_IMAGES[:3])
    for event in (first, second, third):
        assert detector.run(event).success
    assert found(detector) == {}

    detector.raw_file(first).write_bytes(detector.raw_file(first).read_bytes()[:-1])
    detector.tensor_file(second).write_bytes(detector.tensor_file(second).read_bytes()[:1000])
    tensor = np.load(detector.tensor_file(third))
    tensor[64, 64] += 1e-3
    np.save(detector.tensor_file(third), tensor)
    wrong = {first: "damaged image", second: "damaged tensor", third: "damaged tensor"}
    assert found(detector) == wrong

    for event in wrong:
        assert detector.run(event).success
    assert found(detector) == {}


def test_a_tensor_that_is_being_made_is_none(detector: Detector) -> None:
    event = detector.announce(REAL_IMAGES[0].read_bytes())
    assert detector.run(event).success
    detector.tensor_file(event).write_bytes(b"")
    create_run_for_test(
        detector.instance, status=DagsterRunStatus.STARTED, tags={PARTITION_TAG: event}
    )
    assert found(detector) == {}


def test_a_tensor_of_another_specification_is_compared_with_its_own_record(
    detector: Detector,
) -> None:
    event = detector.announce(REAL_IMAGES[0].read_bytes())
    assert detector.run(event).success
    before = detector.tensor_file(event).read_bytes()
    detector.overrides["window_low"] = 70.0
    assert detector.run(event, TENSOR).success
    assert found(detector) == {}
    detector.tensor_file(event).write_bytes(before)
    assert found(detector) == {event: "damaged tensor"}
