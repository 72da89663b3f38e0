"""One detector: announces images as the DAQ does, and runs what the sensor would run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult

from cygno_assets.build import build_defs
from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.names import LIVE_TAG
from cygno_assets.settings import Settings, load_settings
from cygno_assets_tests.wire import fill_inbox, message, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dagster._core.execution.plan.objects import StepFailureData

RAW, TENSOR = AssetKey("raw_image"), AssetKey("preprocessed_tensor")
TAKEN = "2024-11-27 14:27:36.570564"


@dataclass
class Detector:
    """Announces images as the DAQ does, and runs what the sensor would run."""

    bucket: BucketSettings
    inbox_url: str
    home: Path
    instance: DagsterInstance
    overrides: dict[str, object] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        given = {
            "inbox_url": self.inbox_url,
            "download_hosts": self.bucket.endpoint,
            "download_ca_file": self.bucket.ca_file,
        }
        return load_settings(given | self.overrides)

    def announce(self, data: bytes, filename: str | None = None) -> str:
        """Puts bytes under a name into the bucket and the inbox; returns the event id."""
        filename = filename or name_of(data)
        bucket = Bucket(self.bucket)
        bucket.put(filename, data)
        url = bucket.presigned_url(filename, timedelta(hours=1))
        fill_inbox(self.inbox_url, [message(filename, url, TAKEN)])
        return filename.rpartition(".")[0]

    def run(
        self, event_id: str, *assets: AssetKey, tags: Mapping[str, str] | None = None
    ) -> ExecuteInProcessResult:
        definitions = build_defs(self.settings)
        Definitions.validate_loadable(definitions)
        self.instance.add_dynamic_partitions("daq_event", [event_id])
        return definitions.resolve_job_def("live_event").execute_in_process(
            partition_key=event_id,
            instance=self.instance,
            asset_selection=list(assets) or None,
            tags={} if assets else {LIVE_TAG: "true", **(tags or {})},
            raise_on_error=False,
        )

    def raw_file(self, event_id: str) -> Path:
        return self.home / "data" / "raw_image" / f"{event_id}.jpg"

    def tensor_file(self, event_id: str) -> Path:
        return self.home / "data" / "preprocessed_tensor" / f"{event_id}.npy"

    def metadata(self, key: AssetKey, event_id: str) -> Mapping[str, Any]:
        record = self.instance.get_latest_data_version_record(key, partition_key=event_id)
        assert record is not None
        assert record.asset_materialization is not None
        return {name: item.value for name, item in record.asset_materialization.metadata.items()}

    def data_version(self, key: AssetKey, event_id: str) -> str:
        record = self.instance.get_latest_data_version_record(key, partition_key=event_id)
        assert record is not None
        assert record.asset_materialization is not None
        return str((record.asset_materialization.tags or {})["dagster/data_version"])


def reason(result: ExecuteInProcessResult) -> str:
    """Why a run failed, in the words a user reads."""
    data = _failure(result)
    if data.user_failure_data is not None:
        return str(data.user_failure_data.description)
    assert data.error is not None
    return (data.error.cause or data.error).message


def kind(result: ExecuteInProcessResult) -> str | None:
    """What sort of failure it was, in a program's word."""
    user = _failure(result).user_failure_data
    return None if user is None else str(user.metadata["kind"].value)


def _failure(result: ExecuteInProcessResult) -> StepFailureData:
    assert not result.success
    failures = [event for event in result.all_events if event.is_step_failure]
    return failures[0].step_failure_data
