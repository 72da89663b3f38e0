"""The real parts that tests run against: nats-servers and an S3 server, each test run its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cygno_assets.services.nats_server import NatsServer
from cygno_assets.services.s3_server import BucketAccess, S3Server
from cygno_assets_tests.wire import no_settings_from_outside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Tests see no setting of whoever runs them."""
    with no_settings_from_outside():
        yield


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test has a home of its own."""
    monkeypatch.setenv("CYGNO_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def s3_buckets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BucketSettings]]:
    """The DAQ's bucket and ours, on one real S3 server, each with credentials of its own."""
    folder = tmp_path_factory.mktemp("s3")
    accesses = [BucketAccess("cygno-daq"), BucketAccess("cygno-store")]
    server = S3Server(folder / "server", folder / "s3.log", accesses)
    try:
        server.start()
        yield {access.bucket: server.bucket(access) for access in accesses}
    finally:
        server.stop()


@pytest.fixture(scope="session")
def daq_bucket(s3_buckets: dict[str, BucketSettings]) -> BucketSettings:
    return s3_buckets["cygno-daq"]


@pytest.fixture(scope="session")
def store_bucket(s3_buckets: dict[str, BucketSettings]) -> BucketSettings:
    return s3_buckets["cygno-store"]


@pytest.fixture
def daq_nats_url(tmp_path: Path) -> Iterator[str]:
    """A core nats-server without JetStream, as the DAQ's."""
    server = NatsServer(tmp_path / "daq-nats", tmp_path / "daq-nats.log", name="DAQ's NATS server")
    try:
        yield server.start().url
    finally:
        server.stop()


@pytest.fixture
def inbox_url(tmp_path: Path) -> Iterator[str]:
    """A nats-server with JetStream, without any stream."""
    server = NatsServer(tmp_path / "inbox", tmp_path / "inbox.log", name="inbox", jetstream=True)
    try:
        yield server.start().url
    finally:
        server.stop()
