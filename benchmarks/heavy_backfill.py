"""The definitions with hundreds of heavy partitions beside them, to be backfilled."""

import time
from typing import Any

import numpy as np
from dagster import AssetsDefinition, Definitions, StaticPartitionsDefinition, asset

from cygno_assets.build import build_defs

PARTITIONS = 300
CPU_S = 2.0
"""Of each partition; 40 times a live event's."""


@asset(partitions_def=StaticPartitionsDefinition([f"{n:03}" for n in range(PARTITIONS)]))
def heavy() -> None:
    """Keeps a CPU and its memory busy."""
    generator = np.random.default_rng(1)
    until = time.process_time() + CPU_S
    while time.process_time() < until:
        np.sort(generator.random(300_000))


_heavy: list[AssetsDefinition | Any] = [heavy]
defs = Definitions.merge(build_defs(), Definitions(assets=_heavy))
