"""A run launcher whose runs are executed by Celery workers, on as many machines as there are.

Here belongs what Dagster asks of a launcher, and how the broker is spoken to; what a worker does
with a run is celery_worker.py's.

Of dagster-celery's own launcher remains how Celery is set up. A run's message holds its
id alone, and the storage knows by whom a run is held (run_holds.py): so one whose worker was
killed is found at once, one that is delivered twice is executed once, and no result backend is
needed. And a run that shall stop shows Canceling until it has.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from dagster import DagsterRunStatus, Field, IntSource, RunsFilter, StringSource
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher

from .code_digest import code_digest
from .pooled_postgres import holds_of
from .run_ends import health_without_process
from .urgency import is_background

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from dagster import DagsterRun
    from dagster._core.launcher import LaunchRunContext, ResumeRunContext
    from dagster._serdes import ConfigurableClassData

LIVE_QUEUE, BACKGROUND_QUEUE = "cygno.live", "cygno.background"
"""Backfills, and what has a negative priority, wait in a queue of their own for processes of their
own: however long such a run takes, no event waits for it."""
TASK = "cygno.execute_run"
_LOOK_EVERY_S = 10.0
_CONFIRM_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class HeldRunLauncher(CeleryRunLauncher):
    """Sends runs to Celery workers, which execute them by the in-process executor.

    Args:
        broker: URL of the broker; with its password. That of one at `amqps://` has its certificate
            checked, and its name in it, by the authorities that this machine trusts.
        definitions: module of the definitions, which workers load before their first run.
        resend_seconds: after which a run is sent once more that waits although the broker has
            nothing for its workers.
        runs_per_worker: runs after which a worker's process is replaced.
        memory_limit_mb: resident memory after which it is, when its run has ended.
        stop_grace_seconds: between a run's being asked to stop and its process being killed.
        inst_data: Dagster's.
    """

    def __init__(
        self,
        broker: str,
        definitions: str,
        resend_seconds: int = 30,
        runs_per_worker: int = 1000,
        memory_limit_mb: int = 2048,
        stop_grace_seconds: int = 5,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        self.definitions = definitions
        self.stop_grace_s = float(stop_grace_seconds)
        self._code: str | None = None
        self._resend_s = float(resend_seconds)
        self._sent: dict[str, float] = {}
        self._sending = threading.Lock()  # of what is in `_sent`
        self._over = threading.Event()
        self._first = threading.Lock()  # free until the first launch
        super().__init__(
            default_queue=LIVE_QUEUE,
            broker=broker,
            config_source={
                # A message is taken from the broker when its run has ended, so that another
                # worker gets it if this one dies.
                "task_acks_late": True,
                "task_reject_on_worker_lost": True,
                "worker_lost_wait": 0.5,
                "worker_prefetch_multiplier": 1,
                "task_ignore_result": True,
                # No pickle, whoever sends it; these are the defaults, and not to be others.
                "accept_content": ["json"],
                "task_serializer": "json",
                "broker_connection_retry_on_startup": True,
                "broker_connection_max_retries": None,
                # What the broker has not confirmed to have on disk is sent again.
                "broker_transport_options": {"confirm_publish": True},
                # Else the name is not checked; None is the one in the URL.
                "broker_use_ssl": {"server_hostname": None, "cert_reqs": ssl.CERT_REQUIRED}
                if broker.startswith("amqps:")
                else None,
                # As long as there is no broker, no run can be launched: it is waited for.
                "task_publish_retry_policy": {
                    "max_retries": 300,
                    "interval_start": 0.2,
                    "interval_step": 0.2,
                    "interval_max": 1.0,
                },
                "worker_max_tasks_per_child": runs_per_worker,
                "worker_max_memory_per_child": memory_limit_mb * 1000,
                "worker_cancel_long_running_tasks_on_connection_loss": False,
                # Else a worker takes fewer runs at a time after the broker was away.
                "worker_enable_prefetch_count_reduction": False,
                "worker_hijack_root_logger": False,
                # Whoever reaches the broker could stop workers by it.
                "worker_enable_remote_control": False,
            },
            inst_data=inst_data,
        )

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The fields of dagster.yaml."""
        return {
            "broker": Field(StringSource),
            "definitions": Field(StringSource),
            "resend_seconds": Field(IntSource, is_required=False, default_value=30),
            "runs_per_worker": Field(IntSource, is_required=False, default_value=1000),
            "memory_limit_mb": Field(IntSource, is_required=False, default_value=2048),
            "stop_grace_seconds": Field(IntSource, is_required=False, default_value=5),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As dagster.yaml has it."""
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Sends a run's id to the broker.

        Raises:
            kombu.exceptions.OperationalError: the broker does not answer for minutes.
        """
        if self._first.acquire(blocking=False):  # not before: only one process launches
            threading.Thread(target=self._look_for_lost, name="lost runs", daemon=True).start()
        self._send(context.dagster_run)

    def _send(self, run: DagsterRun) -> None:
        if self._code is None:
            self._code = code_digest(self.definitions)
        with self._sending:
            self._sent[run.run_id] = time.monotonic()
        self.celery.send_task(
            TASK,
            args=(run.run_id, self._code),
            queue=_queue_of(run),
            confirm_timeout=_CONFIRM_TIMEOUT_S,
        )

    def _look_for_lost(self) -> None:
        """Sends again what has been waiting for long, until this process ends.

        A daemon that is killed between noting that it launches a run and sending it leaves a run
        without a message; and so does a broker that has lost its disk.
        """
        while not self._over.wait(_LOOK_EVERY_S):
            try:
                self._send_lost()
            except Exception:  # noqa: BLE001 – of broker or storage, which may be away
                _log.warning("runs that wait cannot be looked through", exc_info=True)

    def _send_lost(self) -> None:
        waiting = self._instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTING]))
        # What another process has launched is known here from now on.
        now = time.monotonic()
        with self._sending:
            self._sent = {run.run_id: self._sent.get(run.run_id, now) for run in waiting}
            late = [run for run in waiting if now - self._sent[run.run_id] > self._resend_s]
        for queue in {_queue_of(run) for run in late}:
            # As long as the broker has messages, the workers are merely behind.
            if not self._messages_in(queue):
                for run in late:
                    if _queue_of(run) == queue and not holds_of(self._instance).is_held(run.run_id):
                        self._send(run)

    def _messages_in(self, queue: str) -> int:
        with self.celery.connection_for_write() as connection:
            try:
                declared = connection.default_channel.queue_declare(queue, passive=True)
            except connection.channel_errors:  # there is no such queue yet
                return 0
            return int(declared.message_count)

    def dispose(self) -> None:
        """Ends the looking."""
        self._over.set()
        super().dispose()

    def terminate(self, run_id: str) -> bool:
        """Asks a run to stop, from whatever process; the worker that has it notices."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return True

    @property
    def supports_resume_run(self) -> bool:
        """No: a run whose worker is gone fails, and is retried as a new one."""
        return False

    def resume_run(self, context: ResumeRunContext) -> None:
        """Never called.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether a process holds a run that has started."""
        if holds_of(self._instance).is_held(run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return health_without_process(self._instance, run)

    def get_run_worker_debug_info(
        self,
        run: DagsterRun,  # noqa: ARG002 – Dagster's signature
        include_container_logs: bool | None = True,  # noqa: ARG002 – as above
    ) -> str | None:
        """Nothing that the run's log does not tell."""
        return None


def _queue_of(run: DagsterRun) -> str:
    return BACKGROUND_QUEUE if is_background(run) else LIVE_QUEUE
