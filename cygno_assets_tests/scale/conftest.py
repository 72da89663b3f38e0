"""The servers that these tests run against, and an instance of Dagster on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from dagster import DagsterInstance

from cygno_assets_tests.scale.servers import PostgresServer, server_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One that stays up."""
    with server_folder() as folder:
        server = PostgresServer(folder)
        try:
            yield server.start()
        finally:
            server.stop()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """One to stop and start."""
    with server_folder() as folder:
        server = PostgresServer(folder)
        try:
            yield server.start()
        finally:
            server.stop()


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """Of an empty database."""
    return postgres.url(postgres.make_database())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Path:
    """A DAGSTER_HOME on it."""
    return dagster_home(tmp_path, monkeypatch, database_url)


@pytest.fixture
def instance(home: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.get() as instance:
        yield instance


def dagster_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, max_connections: int = 4
) -> Path:
    """A DAGSTER_HOME on a database, in the environment like its URL."""
    config = {
        "storage": {
            "custom": {
                "module": "cygno_assets.engine.pooled_postgres",
                "class": "PooledPostgresStorage",
                "config": {
                    "postgres_url": {"env": "TEST_POSTGRES_URL"},
                    "max_connections": max_connections,
                },
            }
        },
        "telemetry": {"enabled": False},
    }
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("TEST_POSTGRES_URL", url)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home
