"""Dagster's instance of a home, for commands that look at it from outside."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cygno_assets.services.process import ServiceError
from cygno_assets.settings import environment_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagster import DagsterInstance

    from cygno_assets.settings import Settings


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[DagsterInstance]:
    """Opens it.

    Raises:
        ServiceError: nothing has run there yet.
    """
    from dagster import DagsterInstance

    if not settings.dagster_state.is_dir():
        raise ServiceError(f"nothing has run in {settings.home} yet")
    os.environ["DAGSTER_HOME"] = str(settings.dagster_config)
    os.environ[environment_name("home")] = str(settings.home)
    with DagsterInstance.get() as instance:
        yield instance
