"""A run launcher whose processes stay: the definitions are loaded once, and run after run.

Here belongs what Dagster asks of a launcher. The processes are pool.py, what they do is worker.py.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import psutil
from dagster import DagsterRunStatus, Field, IntSource, Noneable, RunsFilter
from dagster._core.launcher import (
    CheckRunHealthResult,
    DefaultRunLauncher,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from .pool import Died, Finished, Limits, Pool
from .run_ends import end_run, health_without_process
from .urgency import is_background, priority_of
from .worker import NOT_HERE, serve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster import DagsterRun
    from dagster._core.origin import RepositoryPythonOrigin
    from dagster._core.workspace.context import BaseWorkspaceRequestContext

_log = logging.getLogger(__name__)
_STOPPING = frozenset(
    {DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED, DagsterRunStatus.FAILURE}
)


_FRESH_S = 0.5
"""How long the code server's word is taken. Less than the queue's interval, so between a reload
and the launch of a run that was queued after it, it is always asked again."""


_END_AGAIN_S = 1.0
_BACKGROUND_NICENESS = 10
"""A tenth of the time of a process beside it on a busy CPU. Not less: it may hold the database."""


@dataclass
class _Location:
    """The pools of a code location, for one state of its code.

    Attributes:
        server_id: of the code server that had this state.
        asked: when it said so.
        origin: of the definitions.
        pools: by what the CPU's scheduler puts them behind; made when they are first needed.
    """

    server_id: str
    asked: float
    origin: RepositoryPythonOrigin
    pools: dict[int, Pool] = field(default_factory=dict)


class WarmRunLauncher(RunLauncher, ConfigurableClass):
    """Executes runs in persistent processes, one run at a time each, by the in-process executor.

    Backfills, and what has a negative priority, have processes of their own, which the operating
    system puts behind the others: however long such a run takes, no other waits for it.

    The processes belong to the Dagster daemon, which launches queued runs, and end with it. Runs
    that need something else (an executor that starts processes of its own, or a code location
    whose code this Python cannot load) are handed to Dagster's default launcher.

    Args:
        workers: how many processes; None for one per CPU.
        background_workers: how many more, for the background; None for one per CPU.
        runs_per_worker: runs after which a process is replaced.
        memory_limit_mb: resident memory above which a process is replaced, and killed if it is
            amid a run; 0 for no limit.
        stop_grace_seconds: between a run's being asked to stop and its process being killed.
        shutdown_seconds: that runs under way are waited for when the daemon ends.
        inst_data: Dagster's.
    """

    def __init__(
        self,
        workers: int | None = None,
        background_workers: int | None = None,
        runs_per_worker: int = 1000,
        memory_limit_mb: int = 2048,
        stop_grace_seconds: int = 5,
        shutdown_seconds: int = 60,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__()
        self._inst_data = inst_data
        cpus = multiprocessing.cpu_count()
        self._sizes = {0: workers or cpus, _BACKGROUND_NICENESS: background_workers or cpus}
        self._limits = Limits(
            tasks=runs_per_worker,
            memory_bytes=memory_limit_mb * 1_000_000,
            grace_s=float(stop_grace_seconds),
        )
        self._shutdown_s = shutdown_seconds
        self._lock = threading.Lock()
        self._locations: dict[str, _Location] = {}
        self._retired: list[Pool] = []
        self._workspaces: dict[str, BaseWorkspaceRequestContext] = {}
        self._default = DefaultRunLauncher()
        self._recovered = False
        self._closing = threading.Event()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Dagster's."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The fields of dagster.yaml."""
        return {
            "workers": Field(Noneable(IntSource), is_required=False),
            "background_workers": Field(Noneable(IntSource), is_required=False),
            "runs_per_worker": Field(IntSource, is_required=False, default_value=1000),
            "memory_limit_mb": Field(IntSource, is_required=False, default_value=2048),
            "stop_grace_seconds": Field(IntSource, is_required=False, default_value=5),
            "shutdown_seconds": Field(IntSource, is_required=False, default_value=60),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As dagster.yaml has it."""
        return cls(inst_data=inst_data, **config_value)

    def register_instance(self, instance: Any) -> None:
        """Dagster's; the default launcher needs the instance too."""
        super().register_instance(instance)
        self._default.register_instance(instance)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Gives a run to the pool of its code location; returns at once.

        Raises:
            Exception: whatever Dagster raises if the code location is not there.
        """
        run, workspace = context.dagster_run, context.workspace
        with self._lock:
            recover, self._recovered = not self._recovered, True
        if recover:
            self._recover(workspace)
        location = self._location(run, workspace)
        if location is None or workspace is None:
            self._default.launch_run(context)
            return
        self._workspaces[run.run_id] = workspace
        niceness = _BACKGROUND_NICENESS if is_background(run) else 0
        self._pool(location, niceness).submit(run.run_id, priority_of(run))

    def terminate(self, run_id: str) -> bool:
        """Asks a run to stop, from whatever process.

        What executes it notices; one that only waits is taken back.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if _is_taken_by_default(run):
            return bool(self._default.terminate(run_id))
        self._instance.report_run_canceling(run)
        for pool in self._pools():
            if pool.withdraw(run_id):
                self._instance.report_run_canceled(run)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether a run is in good hands; asked by the daemon, whose processes these are."""
        for pool in self._pools():
            if pool.holds(run.run_id):
                pid = pool.pid_of(run.run_id)
                return CheckRunHealthResult(WorkerStatus.RUNNING, f"warm worker (pid: {pid})")
        if _is_taken_by_default(run):
            # It knows no more; a run's process that ends early is told of by its code server.
            return CheckRunHealthResult(WorkerStatus.RUNNING, "a process of Dagster's own launcher")
        return health_without_process(self._instance, run)

    def dispose(self) -> None:
        """Lets runs under way finish, then ends the processes."""
        self._closing.set()
        pools = self._pools()
        for pool in pools:
            pool.withdraw_all()
            pool.close()
        for pool in pools:
            if not pool.join(self._shutdown_s):
                pool.kill()
        self._default.dispose()

    def _recover(self, workspace: BaseWorkspaceRequestContext | None) -> None:
        """Takes over what an earlier daemon was given and did not start, or did not stop."""
        left = RunsFilter(
            statuses=[DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING],
            # Before there was this process: it has handed over nothing of that.
            updated_before=datetime.fromtimestamp(psutil.Process().create_time(), UTC),
        )
        for run in self._instance.get_runs(left):
            if _is_taken_by_default(run):
                continue  # not ours
            if run.status == DagsterRunStatus.CANCELING:
                self._instance.report_run_canceled(run, "Canceled: its daemon was gone.")
            else:
                self.launch_run(LaunchRunContext(dagster_run=run, workspace=workspace))

    def _pools(self) -> list[Pool]:
        with self._lock:
            current = (pool for known in self._locations.values() for pool in known.pools.values())
            return [*current, *self._retired]

    def _location(
        self, run: DagsterRun, workspace: BaseWorkspaceRequestContext | None
    ) -> _Location | None:
        """Where a run's code is as it is now; None if another launcher must take it."""
        from dagster._core.remote_representation.code_location import GrpcServerCodeLocation

        origin = run.remote_job_origin
        code = run.job_code_origin
        if workspace is None or origin is None or code is None or code.repository_origin is None:
            return None
        name = origin.repository_origin.code_location_origin.location_name
        location = workspace.get_code_location(name)
        if not isinstance(location, GrpcServerCodeLocation):
            return None
        with self._lock:
            known = self._locations.get(name)
            if known is not None and time.monotonic() < known.asked + _FRESH_S:
                return known
        asked = time.monotonic()
        server_id = location.client.get_server_id()
        with self._lock:
            known = self._locations.get(name)
            if known is not None and known.server_id == server_id:
                known.asked = asked
                return known
            made = _Location(server_id, asked, code.repository_origin)
            self._locations[name] = made
            old = known.pools if known is not None else {}
            self._retired += old.values()
        for niceness, pool in old.items():
            for run_id, priority in pool.withdraw_all():
                self._pool(made, niceness).submit(run_id, priority)
            pool.close()
        return made

    def _pool(self, location: _Location, niceness: int) -> Pool:
        with self._lock:
            if niceness not in location.pools:
                location.pools[niceness] = Pool(
                    serve,
                    (self._instance.get_ref(), location.origin),
                    self._sizes[niceness],
                    self._limits,
                    niceness=niceness,
                    ended=self._ended,
                    wants_stop=self._wants_stop,
                )
            return location.pools[niceness]

    def _wants_stop(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.status in _STOPPING

    def _ended(self, run_id: str, outcome: Finished | Died) -> None:
        workspace = self._workspaces.pop(run_id, None)
        run = self._end_when_it_can_be_stored(run_id, outcome)
        if run is not None and outcome == Finished(NOT_HERE):
            self._default.launch_run(LaunchRunContext(dagster_run=run, workspace=workspace))

    def _end_when_it_can_be_stored(
        self, run_id: str, outcome: Finished | Died
    ) -> DagsterRun | None:
        """Ends a run that nobody executes any more, however long the database is away.

        Nothing can be executed meanwhile; and of a run that has not started Dagster would not ask.

        Returns:
            The run, if it goes on.
        """
        told = False
        while True:
            try:
                return self._end_unless_it_goes_on(run_id, outcome)
            except Exception:
                if not told:
                    _log.exception("run %s cannot be ended; trying on", run_id)
                told = True
                if self._closing.wait(_END_AGAIN_S):
                    raise

    def _end_unless_it_goes_on(self, run_id: str, outcome: Finished | Died) -> DagsterRun | None:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return None
        if isinstance(outcome, Died):
            reason = outcome.reason
        elif outcome.value != NOT_HERE and run.status == DagsterRunStatus.STARTING:
            reason = "its process could not begin it"
        else:
            return run  # of one that has started, Dagster asks who executes it
        if run.status == DagsterRunStatus.CANCELING:
            self._instance.report_run_canceled(run, f"Canceled: {reason}.")
        else:
            end_run(self._instance, run, f"The run did not end: {reason}.")
        return None


def _is_taken_by_default(run: DagsterRun) -> bool:
    """Whether Dagster's default launcher has it: it notes the code server in a tag."""
    return GRPC_INFO_TAG in run.tags
