"""Starting `cygno-assets` as a user does, and seeing what of it is left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from cygno_assets.services import web_ui
from cygno_assets.services.guardian import prepare_child
from cygno_assets_tests.wire import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster import AssetKey

PROGRAM = Path(sys.executable).parent / "cygno-assets"
NO_TRAINING_SET = "/no/training-set.zip"
"""Where tests look for a training set unless they say where: not on the school's server."""
NO_IMAGES = "images.invalid"
"""Where `up` may fetch images from unless tests say where: nowhere."""


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process, of whatever parent, that was started for this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CYGNO_HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass
class Program:
    """A running `cygno-assets …`; whatever the test does, nothing of it is left in the end."""

    arguments: list[str]
    home: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self._output = self.home / f"{self.arguments[0]}.out"
        us = os.getpid()
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [PROGRAM, *self.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {
                    "CYGNO_HOME": str(self.home),
                    "CYGNO_TRAINING_ARCHIVE": NO_TRAINING_SET,
                    "CYGNO_DOWNLOAD_HOSTS": NO_IMAGES,
                }
                | dict(self.environ),
                preexec_fn=lambda: _prepare(us),  # noqa: PLW1509 – tests have one thread
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
                for process in processes_of(self.home):
                    process.kill()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def says(self, pattern: str, timeout_s: float = 120) -> str:
        """Waits for a line; returns its first group."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.output)
            if match is None and self.process.poll() is not None:
                raise AssertionError(f"ended without saying {pattern!r}:\n{self.output}")
            return match

        wait_until(f"{pattern!r} in {self.output}", found, timeout_s)
        match = found()
        assert match is not None
        return match[1] if match.groups() else match[0]

    def ends(self, timeout_s: float = 240) -> int:
        """Waits for its end; returns its exit status."""
        return self.process.wait(timeout_s)

    def interrupt(self) -> int:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.ends(60)

    def nothing_left(self) -> None:
        """Fails if a process of it is still there after a while, its orphans included."""
        wait_until("all its processes are gone", lambda: not processes_of(self.home), 30)


def _prepare(parent: int) -> None:
    """It dies with the tests, and starts as what a shell puts into the background does."""
    prepare_child(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class WebUI(web_ui.WebUI):
    """The web UI, asked as the browser asks it."""

    def partition_counts(self, asset: str) -> dict[str, int]:
        """How many partitions of an asset are materialized, failed, and in all."""
        node = self.ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
            partitionStats { numMaterialized numFailed numPartitions } } } }""",
            key={"path": [asset]},
        )["assetNodeOrError"]
        return dict(node["partitionStats"])

    def events(self) -> list[str]:
        """The events that have a tensor."""
        node = self.ask(
            """{ assetNodeOrError(assetKey: {path: ["preprocessed_tensor"]}) { ... on AssetNode {
            assetMaterializations { partition } } } }"""
        )["assetNodeOrError"]
        return [entry["partition"] for entry in node["assetMaterializations"]]

    def unfinished_runs(self) -> list[str]:
        """Ids of the runs that have not ended."""
        return [
            run["runId"]
            for run in self._runs(statuses=["QUEUED", "NOT_STARTED", "STARTING", "STARTED"])
        ]

    def runs_of(self, event: str) -> list[str]:
        """Status of each run of an event, the newest first."""
        tags = [{"key": "dagster/partition", "value": event}]
        return [run["status"] for run in self._runs(tags=tags)]

    def check_verdicts(self, asset: str, check: str) -> list[tuple[str, str]]:
        """Status and description of each execution of a check, the newest first."""
        found = self.ask(
            """query($key: AssetKeyInput!, $check: String!) { assetCheckExecutions(assetKey: $key,
            checkName: $check, limit: 20) { status evaluation { description } } }""",
            key={"path": [asset]},
            check=check,
        )["assetCheckExecutions"]
        return [(one["status"], (one["evaluation"] or {}).get("description", "")) for one in found]

    def checks_in(self, run_id: str) -> list[str]:
        """The checks that a run evaluated."""
        query = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
            ... on AssetCheckEvaluationEvent { evaluation { checkName } } } } } }"""
        events = self.ask(query, id=run_id)["logsForRun"]["events"]
        return [event["evaluation"]["checkName"] for event in events if event]

    def newest_run(self, event: str) -> str:
        """Id of the newest run of an event."""
        tags = [{"key": "dagster/partition", "value": event}]
        return str(self._runs(tags=tags)[0]["runId"])

    def terminate(self, run_id: str) -> None:
        """As the UI's button."""
        answer = self.ask(
            """mutation($id: String!) { terminateRun(runId: $id) {
            __typename ... on TerminateRunFailure { message } } }""",
            id=run_id,
        )["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def _runs(self, **filters: object) -> list[dict[str, str]]:
        query = """query($filter: RunsFilter) { runsOrError(filter: $filter) {
            ... on Runs { results { runId status } } } }"""
        return list(self.ask(query, filter=filters)["runsOrError"]["results"])

    def sensor_status(self) -> str:
        """RUNNING or STOPPED."""
        selector = {
            "repositoryLocationName": "cygno_assets",
            "repositoryName": "__repository__",
            "sensorName": "daq_events",
        }
        query = """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
            ... on Sensor { sensorState { status } } } }"""
        return str(self.ask(query, selector=selector)["sensorOrError"]["sensorState"]["status"])

    def run_job(self, name: str) -> str:
        """Launches a job as the UI's launchpad does; returns how it ended."""
        result = self.ask(
            """mutation($params: ExecutionParams!) { launchPipelineExecution(
            executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message } } }""",
            params={
                "mode": "default",
                "selector": {
                    "repositoryLocationName": "cygno_assets",
                    "repositoryName": "__repository__",
                    "pipelineName": name,
                },
                "runConfigData": "{}",
            },
        )["launchPipelineExecution"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return self._run_ends(result["run"]["runId"])

    def delete_run(self, run_id: str) -> None:
        """As the UI's menu."""
        answer = self.ask(
            """mutation($id: String!) { deletePipelineRun(runId: $id) { __typename } }""",
            id=run_id,
        )["deletePipelineRun"]
        assert answer["__typename"] == "DeletePipelineRunSuccess", answer

    def _run_ends(self, run_id: str) -> str:
        def status() -> str:
            query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
            return str(self.ask(query, id=run_id)["runOrError"]["status"])

        wait_until("the run ends", lambda: status() in {"SUCCESS", "FAILURE", "CANCELED"}, 180)
        return status()

    def staleness(self, asset: str, partition: str) -> tuple[str, list[str]]:
        """What the UI says of one partition: FRESH, STALE or MISSING, and why."""
        node = self.ask(
            """query($key: AssetKeyInput!, $partition: String!) {
            assetNodeOrError(assetKey: $key) { ... on AssetNode {
            staleStatus(partition: $partition)
            staleCauses(partition: $partition) { category reason } } } }""",
            key={"path": [asset]},
            partition=partition,
        )["assetNodeOrError"]
        return node["staleStatus"], [cause["category"] for cause in node["staleCauses"]]

    def materialize(self, assets: list[str], partition: str) -> str:
        """Materializes one partition as the UI's dialog does; returns how the run ended."""
        result = self.ask(
            """mutation($params: ExecutionParams!) { launchPipelineExecution(
            executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message } } }""",
            params={
                "mode": "default",
                "selector": {
                    "repositoryLocationName": "cygno_assets",
                    "repositoryName": "__repository__",
                    "pipelineName": "__ASSET_JOB",
                    "assetSelection": [{"path": [asset]} for asset in assets],
                    "assetCheckSelection": [],
                },
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
                "runConfigData": "{}",
            },
        )["launchPipelineExecution"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return self._run_ends(result["run"]["runId"])

    def backfill(self, assets: list[str], partitions: list[str]) -> str:
        """Materializes partitions as the UI's dialog does; returns the backfill's id."""
        result = self.ask(
            """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(
            backfillParams: $params) { __typename ... on LaunchBackfillSuccess { backfillId }
            ... on PythonError { message } } }""",
            params={
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": partitions,
                "fromFailure": False,
            },
        )["launchPartitionBackfill"]
        assert result["__typename"] == "LaunchBackfillSuccess", result
        return str(result["backfillId"])

    def backfill_ends(self, backfill: str, timeout_s: float = 180) -> str:
        """Waits for a backfill; returns its status."""

        def status() -> str:
            return str(
                self.ask(
                    """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
                    ... on PartitionBackfill { status } } }""",
                    id=backfill,
                )["partitionBackfillOrError"]["status"]
            )

        wait_until(
            "the backfill ends",
            lambda: status().startswith(("COMPLETED", "FAILED", "CANCELED")),
            timeout_s,
        )
        return status()

    def backfills(self) -> list[dict[str, Any]]:
        """Id, title, status and number of partitions of each backfill, the newest first."""
        answer = self.ask(
            """{ partitionBackfillsOrError { ... on PartitionBackfills { results {
            id title status numPartitions } } } }"""
        )
        return list(answer["partitionBackfillsOrError"]["results"])

    def materializations(self, asset: str) -> list[dict[str, Any]]:
        """The integers in the metadata of each materialization, the newest first, and when."""
        node = self.ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
            assetMaterializations { timestamp partition metadataEntries { label
            ... on IntMetadataEntry { intValue } } } } } }""",
            key={"path": [asset]},
        )["assetNodeOrError"]
        return [
            {
                "timestamp": float(made["timestamp"]) / 1000,
                "partition": made["partition"],
                **{e["label"]: e["intValue"] for e in made["metadataEntries"] if "intValue" in e},
            }
            for made in node["assetMaterializations"]
        ]

    def partition_made(self, asset: AssetKey, partition: str) -> str:
        """When a partition was last made, in the web UI's own words."""
        node = self.ask(
            """query($key: AssetKeyInput!, $partition: String!) {
            assetNodeOrError(assetKey: $key) { ... on AssetNode {
            latestMaterializationByPartition(partitions: [$partition]) { timestamp } } } }""",
            key={"path": list(asset.path)},
            partition=partition,
        )["assetNodeOrError"]
        return str(node["latestMaterializationByPartition"][0]["timestamp"])

    def failed_runs(self) -> list[dict[str, str]]:
        """The runs that failed."""
        return self._runs(statuses=["FAILURE", "CANCELED"])

    def metadata(self, asset: str, partition: str) -> dict[str, Any]:
        """The metadata of a partition's latest materialization, as far as they are scalars."""
        node = self.ask(
            """query($key: AssetKeyInput!, $partition: String!) {
            assetNodeOrError(assetKey: $key) { ... on AssetNode {
            latestMaterializationByPartition(partitions: [$partition]) { metadataEntries {
            label ... on TextMetadataEntry { text } ... on FloatMetadataEntry { floatValue }
            ... on TimestampMetadataEntry { timestamp } ... on PathMetadataEntry { path }
            } } } } }""",
            key={"path": [asset]},
            partition=partition,
        )["assetNodeOrError"]["latestMaterializationByPartition"][0]
        return {
            entry["label"]: next((v for k, v in entry.items() if k != "label"), None)
            for entry in node["metadataEntries"]
        }

    def failures(self, partition: str) -> list[str]:
        """Why runs of a partition failed, as the run page says it."""
        runs = self.ask(
            """query($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) {
            ... on Runs { results { status eventConnection { events {
            ... on ExecutionStepFailureEvent { failureMetadata { description } error { message }
            } } } } } } }""",
            tags=[{"key": "dagster/partition", "value": partition}],
        )["runsOrError"]["results"]
        return [
            (event.get("failureMetadata") or {}).get("description") or event["error"]["message"]
            for run in runs
            for event in run["eventConnection"]["events"]
            if event.get("error")
        ]
