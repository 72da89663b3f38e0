"""The training side, on a home and an instance of this test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from dagster import DagsterInstance

from cygno_assets_tests.assets.training_side import TrainingSide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def side(tmp_path: Path) -> Iterator[TrainingSide]:
    with DagsterInstance.ephemeral() as instance:
        yield TrainingSide(tmp_path / "set.zip", tmp_path / "home", instance)
