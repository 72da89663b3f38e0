"""The training side in this process: runs what the automation would run."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from dagster import (
    AssetCheckKey,
    AssetKey,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    JobDefinition,
    MultiPartitionKey,
)
from PIL import Image

from cygno_assets.build import build_defs
from cygno_assets.partitions import training_cells
from cygno_assets.settings import load_settings
from cygno_assets_tests.training.archives import write_archive

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CELLS = ("ground_truth", "pixel_histogram", "training_tensors")
TOTALS = ("ground_truth_table", "dataset_pixel_histogram")
AFTER = (
    *("suggested_window", "raw_image_figure", "histogram_figure", "recoils_figure"),
    *("training_splits", "training_dataset", "training_audit"),
)


@dataclass
class TrainingSide:
    """Runs what the automation would run."""

    archive: Path
    home: Path
    instance: DagsterInstance
    overrides: dict[str, object] = field(default_factory=dict)
    _built: Definitions = field(default_factory=Definitions)
    _built_for: dict[str, object] = field(default_factory=dict)

    def run(
        self, *assets: str, partition: str | None = None, config: dict[str, Any] | None = None
    ) -> ExecuteInProcessResult:
        return self._job().execute_in_process(
            asset_selection=[AssetKey(asset) for asset in assets],
            partition_key=partition,
            instance=self.instance,
            run_config={"ops": {asset: {"config": config} for asset in assets if config}},
            raise_on_error=False,
        )

    def _job(self) -> JobDefinition:
        overrides = {"training_archive": str(self.archive), **self.overrides}
        if overrides != self._built_for:
            self._built = build_defs(load_settings(overrides))
            Definitions.validate_loadable(self._built)
            self._built_for = overrides
        return self._built.resolve_implicit_global_asset_job_def()

    @property
    def cells(self) -> list[MultiPartitionKey]:
        return list(training_cells.get_partition_keys(dynamic_partitions_store=self.instance))

    def backfill(self) -> None:
        for key in self.cells:
            assert self.run(*CELLS, partition=key).success

    def all(self, members: Mapping[str, bytes]) -> None:
        write_archive(self.archive, members)
        assert self.run("training_archive").success
        assert self.run("unlabelled_paths").success
        self.backfill()
        assert self.run(*TOTALS, *AFTER).success

    def metadata(self, asset: str, partition: str | None = None) -> Mapping[str, Any]:
        record = self.instance.get_latest_data_version_record(
            AssetKey(asset), partition_key=partition
        )
        assert record is not None
        assert record.asset_materialization is not None
        return {name: item.value for name, item in record.asset_materialization.metadata.items()}

    def data_version(self, asset: str) -> str:
        record = self.instance.get_latest_data_version_record(AssetKey(asset))
        assert record is not None
        assert record.asset_materialization is not None
        return str((record.asset_materialization.tags or {})["dagster/data_version"])

    def decoded(self) -> dict[str, int]:
        """How many images the newest run of each cell decoded."""
        decoded = {str(key): self.metadata(CELLS[1], key)["decoded"] for key in self.cells}
        tensors = {str(key): self.metadata(CELLS[2], key)["decoded"] for key in self.cells}
        assert decoded == tensors
        return decoded

    def check(self, asset: str, name: str) -> tuple[bool, str]:
        key = AssetCheckKey(AssetKey(asset), name)
        [record] = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert record.event is not None
        assert record.event.dagster_event is not None
        evaluation = record.event.dagster_event.asset_check_evaluation_data
        return evaluation.passed, str(evaluation.description)

    def table(self) -> pd.DataFrame:
        return pd.read_parquet(self.home / "data" / "ground_truth_table.parquet")

    def json(self, name: str) -> Any:
        return json.loads((self.home / "data" / name).read_text())


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def shown_picture(markdown: str) -> Image.Image:
    data = base64.b64decode(markdown.partition("base64,")[2].partition(")")[0])
    return Image.open(io.BytesIO(data))
