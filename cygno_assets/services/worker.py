"""`cygno-assets worker`: this machine executes runs that a daemon elsewhere launches.

Here belongs which processes that takes; what they do with a run is engine/celery_worker.py's.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cygno_assets.services.guardian import pause
from cygno_assets.services.process import Service, ServiceError
from cygno_assets.services.stack import locked_home
from cygno_assets.services.supervisor import Supervisor
from cygno_assets.settings import CHECKOUT, SettingsError, environment_name, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from cygno_assets.settings import Settings

_LOOK_EVERY_S = 1.0
_STOP_TIMEOUT_S = 60.0
"""That runs under way are waited for; what is cut off then is made again elsewhere."""
_ASIDE = 10
"""Niceness of backfills: a tenth of the time of an event beside it on a busy CPU."""
_NEEDED = ("dagster_config", "postgres_url", "broker_url", "inbox_url", "storage_url")


def run_worker(say: Callable[[str], None], *, live: int, background: int) -> None:
    """Executes runs until it is told to end.

    Args:
        say: told of each step, in a line.
        live: processes for events.
        background: processes for backfills and what else may wait.

    Raises:
        SettingsError: a setting is wrong, or one is missing that says where the others are.
        ServiceError: something runs in this home already, or the extra `scale` is not installed.
    """
    settings = load_settings()
    missing = [
        environment_name(field) for field in _NEEDED if getattr(settings, field) in {None, CHECKOUT}
    ]
    if missing:
        raise SettingsError(
            f"{', '.join(missing)}: not set. A worker must be told where the others are "
            "(docs/scaling.md)"
        )
    if find_spec("dagster_celery") is None:
        raise ServiceError("dagster-celery is missing: pip install 'cygno-assets[scale]'")
    with locked_home(settings):
        services = [
            _service(settings, queue, processes)
            for queue, processes in (("live", live), ("background", background))
            if processes
        ]
        supervisor = Supervisor(say)
        try:
            for service in services:
                service.start()
            say(f"worker     {live} processes for events, {background} for backfills")
            say(f"logs       {settings.home / 'logs'} – Ctrl-C ends")
            while True:
                supervisor.look(services)
                pause(_LOOK_EVERY_S)
        finally:
            for service in services:
                service.stop(_STOP_TIMEOUT_S)


def _service(settings: Settings, queue: str, processes: int) -> Service:
    return Service(
        f"{queue} worker",
        [
            *(("nice", "-n", str(_ASIDE)) if queue == "background" else ()),
            *(sys.executable, "-m", "cygno_assets.engine.celery_worker"),
            *("--queue", queue, "--processes", str(processes)),
        ],
        settings.home / "logs" / f"{queue}-worker.log",
        {"DAGSTER_HOME": str(settings.dagster_config), "CYGNO_HOME": str(settings.home)},
        works_by_children=True,
    )
