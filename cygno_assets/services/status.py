"""`cygno-assets status`: whether the running system is well, at a glance.

Here belongs which processes run, and how all of it is said; what the inbox, the records and the
disk tell is records/health.py's. It only looks: nothing is started, stopped or changed.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from cygno_assets.services.dagster_instance import dagster_instance
from cygno_assets.services.process import accepts_connections
from cygno_assets.services.stack import RECORDERS, home_is_locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagster import DagsterInstance

    from cygno_assets.daq.recorder import RecorderCounts
    from cygno_assets.records.health import Health, Rate
    from cygno_assets.settings import Settings

WELL, WRONG, NOTHING_RUNS = 0, 1, 2
"""Exit statuses."""

_TIMEOUT_S = 1.0
_WORKER = "multiprocessing.spawn"
_STAGE_NAMES = {"acquired_to_materialized": "in all"}


@dataclass(frozen=True)
class Processes:
    """The system's processes beside those that the inbox tells of.

    Attributes:
        web_ui: whether it answers.
        daemon: whether it runs.
        code_server: whether it listens.
        workers: processes that execute runs; 0 where each run has its own.
    """

    web_ui: bool
    daemon: bool
    code_server: bool
    workers: int


def run_status(settings: Settings, say: Callable[[str], None], *, as_json: bool) -> int:
    """Says how the system in this home is.

    Returns:
        0 if all is well, 1 if something is wrong, 2 if nothing runs there.
    """
    if not home_is_locked(settings):
        nothing = f"nothing runs in {settings.home}: `cygno-assets up` or `demo` starts it"
        say(json.dumps(_document(settings, [nothing])) if as_json else nothing)
        return NOTHING_RUNS
    from cygno_assets.daq.inbox import Inbox
    from cygno_assets.records.health import measure

    with dagster_instance(settings) as instance:
        health = measure(instance, Inbox(settings.resolve_inbox_url), settings)
        processes = _processes(settings, instance)
    wrong = _wrong(health, processes, settings)
    if as_json:
        say(json.dumps(_document(settings, wrong, health, processes)))
    else:
        for line in _lines(settings, wrong, health, processes):
            say(line)
    return WRONG if wrong else WELL


def _processes(settings: Settings, instance: DagsterInstance) -> Processes | None:
    """None where the system was not started by `up` or `demo`, but piece by piece."""
    try:
        url = settings.web_ui_url_file.read_text().strip()
    except FileNotFoundError:
        return None
    workspace = settings.dagster_state / "workspace.yaml"
    daemon = _daemon(str(workspace))
    port = re.search(r"port: (\d+)", workspace.read_text())
    return Processes(
        web_ui=_answers(url),
        daemon=daemon is not None,
        code_server=port is not None and accepts_connections(int(port[1])),
        workers=_workers_elsewhere(instance)
        if settings.postgres_url
        else 0
        if daemon is None
        else _workers(daemon),
    )


def _answers(url: str) -> bool:
    """Whether a web UI answers; one that is stopped or busy for ever still accepts connections."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=_TIMEOUT_S
    )
    try:
        connection.request("GET", "/server_info")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _daemon(workspace: str) -> psutil.Process | None:
    """The Dagster daemon of this workspace; not its children, which have other arguments."""
    for process in psutil.process_iter(["cmdline", "status"]):
        arguments = process.info["cmdline"] or []
        if workspace in arguments and any("daemon" in argument for argument in arguments):
            return None if process.info["status"] == psutil.STATUS_ZOMBIE else process
    return None


def _workers(daemon: psutil.Process) -> int:
    count = 0
    try:
        for child in daemon.children():
            count += any(_WORKER in argument for argument in child.cmdline())
    except psutil.Error:
        pass  # one has ended meanwhile
    return count


def _workers_elsewhere(instance: DagsterInstance) -> int:
    """Of all machines, as the database knows them by the names of their connections."""
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]  # of every SQL storage
        found = connection.exec_driver_sql(
            "SELECT count(DISTINCT application_name) FROM pg_stat_activity "
            "WHERE application_name LIKE 'worker %%'"
        )
        return int(found.scalar() or 0)


def _wrong(health: Health, processes: Processes | None, settings: Settings) -> list[str]:
    wrong = health.wrong(settings)
    if processes is None:
        return wrong
    if health.recorders:  # if there is none at all, that is said already
        answering = {recorder.name for recorder in health.recorders}
        wrong += [f"{name} does not answer" for name in RECORDERS if name not in answering]
    for name, is_up in _servers_up(processes).items():
        if not is_up:
            wrong.append(f"the {name.replace('_', ' ').replace('ui', 'UI')} is down")
    if settings.postgres_url and not processes.workers:
        wrong.append("no machine executes runs: start `cygno-assets worker` on one")
    return wrong


def _servers_up(processes: Processes) -> dict[str, bool]:
    return {name: value for name, value in asdict(processes).items() if name != "workers"}


def _document(
    settings: Settings,
    wrong: list[str],
    health: Health | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """What docs/operating.md promises of `--json`."""
    document: dict[str, Any] = {
        "home": str(settings.home),
        "running": health is not None,
        "well": not wrong,
        "wrong": wrong,
    }
    if health is None:
        return document
    answering = {recorder.name for recorder in health.recorders}
    expected = RECORDERS if processes is not None else ()
    return document | {
        "measured": health.measured,
        "servers": {
            "inbox": health.inbox_answers,
            "recorders": {name: name in answering for name in sorted({*expected, *answering})},
            "daq_connected": health.daq_connected,
            **({} if processes is None else _servers_up(processes)),
        },
        "recorders": {
            recorder.name: {name: n for name, n in asdict(recorder).items() if name != "name"}
            for recorder in health.recorders
        },
        "events": {
            "announced": health.announced and asdict(health.announced),
            "materialized": asdict(health.materialized),
        },
        "backlog": {"events": health.backlog.events, **asdict(health.backlog)},
        "latency": {stage: asdict(latency) for stage, latency in health.latencies.items()},
        "failed": dict(health.failed),
        "rejected": health.rejected,
        "workers": {
            "processes": None if processes is None else processes.workers,
            "busy": health.executing,
        },
        "disk_bytes": asdict(health.disk),
    }


def _lines(
    settings: Settings, wrong: list[str], health: Health, processes: Processes | None
) -> list[str]:
    servers = _document(settings, wrong, health, processes)["servers"]
    recorders = servers.pop("recorders")
    daq = servers.pop("daq_connected")
    backlog = health.backlog
    waits = [
        f"{'?' if backlog.waiting is None else backlog.waiting} in the inbox",
        f"{backlog.unfinished} in runs",
        f"{backlog.retrying} to be made again",
    ]
    oldest = []
    if backlog.oldest_s is not None:
        oldest.append(f"the oldest has waited {_span(backlog.oldest_s)}")
    if backlog.url_expires_in_s is not None:
        oldest.append(f"its URL expires in {_span(backlog.url_expires_in_s)}")
    up = [f"{name.replace('_', ' ').replace('ui', 'UI')} {_up(servers[name])}" for name in servers]
    up[1:1] = [*(f"{name} {_up(recorders[name])}" for name in recorders)] or ["no recorder"]
    up.append("DAQ connected" if daq else "DAQ NOT CONNECTED")
    kinds = ", ".join(f"{count} {kind}" for kind, count in health.failed.items()) or "none"
    latencies = ", ".join(
        f"{_stage(stage)} {latency.p50_s:.1f}/{latency.p95_s:.1f}"
        for stage, latency in health.latencies.items()
    )
    number = max((latency.events for latency in health.latencies.values()), default=0)
    disk = [f"{part} {_gb(size)}" for part, size in asdict(health.disk).items() if size is not None]
    workers = "one for each run" if processes is None else f"{processes.workers}"
    return [
        f"home       {settings.home}",
        f"servers    {', '.join(up)}",
        *(f"{recorder.name:10} {_counts(recorder)}" for recorder in health.recorders),
        f"announced  {_rate(health.announced)}",
        f"tensors    {_rate(health.materialized)}",
        f"backlog    {backlog.events}: {', '.join(waits)}"
        + "".join(f"; {part}" for part in oldest),
        f"latency    p50/p95 in s of {number} events: {latencies}" if number else "latency    –",
        f"failed     in the last day: {kinds}; messages rejected: {health.rejected}",
        f"workers    {workers}; {health.executing} runs under way",
        f"disk       {', '.join(disk)}",
        *(f"WRONG      {line}" for line in wrong),
        *([] if wrong else ["all is well"]),
    ]


def _counts(recorder: RecorderCounts) -> str:
    started = datetime.fromtimestamp(recorder.started, UTC)
    return (
        f"received {recorder.received}, stored {recorder.stored}, "
        f"duplicate {recorder.duplicate}, rejected {recorder.rejected}, "
        f"dropped {recorder.dropped}; reconnects: DAQ {recorder.daq_reconnects}, "
        f"inbox {recorder.inbox_reconnects}; since {started:%Y-%m-%d %H:%M} UTC"
    )


def _up(is_up: object) -> str:
    return "up" if is_up else "DOWN"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "?"
    return f"{rate.last_minute} in the last minute, {rate.last_hour} in the last hour"


def _stage(stage: str) -> str:
    return _STAGE_NAMES.get(stage, stage.replace("_to_", " → "))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if abs(seconds) < 120 else f"{seconds / 60:.0f} min"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
