"""What the daemon remembers of the code server's answers; a real code server gives them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from dagster import DagsterInstance
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._serdes import serialize_value

from cygno_assets.engine import daemon
from cygno_assets.services.process import Service, free_port
from cygno_assets_tests.engine.system import DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def code_server(folder: Path, port: int) -> Iterator[None]:
    environ = {"ENGINE_TEST_NOTES": str(folder)}
    service = Service(
        "code-server",
        [
            *(sys.executable, "-m", "dagster", "code-server", "start", "-m", DEFINITIONS),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        folder / "code-server.log",
        environ,
    )
    try:
        service.start().wait_ready(lambda: service.listens_on(port), 60)
        yield
    finally:
        service.stop()


def test_a_run_counts_as_left_only_while_the_daemon_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage, or when all of us stood still, who has created it is about to go on."""
    left = daemon._Left()

    def look(second: float, *runs: str) -> list[str]:
        monkeypatch.setattr(daemon.time, "monotonic", lambda: 1000 + second)
        return left.for_long(runs)

    assert look(0, "a") == look(5, "a", "b") == look(10, "a", "b") == []
    assert look(15, "a", "b") == ["a"]
    assert look(31, "a", "b") == [], "it has not looked for longer than it waits"
    assert look(36, "b") == look(41, "b") == []
    assert look(46, "a", "b") == ["b"], "a was away meanwhile"


def plan(location: GrpcServerCodeLocation, instance: DagsterInstance, job: str, **how: Any) -> str:
    arguments: dict[str, Any] = {
        "run_config": {},
        "step_keys_to_execute": None,
        "known_state": None,
        **how,
    }
    remote_job = location.get_repository("__repository__").get_full_job(job)
    found = location.get_execution_plan(remote_job, instance=instance, **arguments)
    return serialize_value(found.execution_plan_snapshot)


def test_a_plan_is_asked_for_once_of_each_job_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = GrpcServerCodeLocation.get_execution_plan
    port = free_port()
    origin = GrpcServerCodeLocationOrigin("127.0.0.1", port)
    other = {"execution": {"config": {"retries": {"disabled": {}}}}}
    with DagsterInstance.ephemeral() as instance:
        with code_server(tmp_path, port):
            location = origin.create_location(instance)
            fresh = origin.create_location(instance)
            asked = {
                name: plan(location, instance, f"{name}_job") for name in ("quick", "exits_once")
            }
            monkeypatch.setattr(GrpcServerCodeLocation, "get_execution_plan", ask)
            daemon.remember_execution_plans()
            first = {name: plan(location, instance, f"{name}_job") for name in asked}
            assert first == asked, "as Dagster gives it"
            assert first["quick"] != first["exits_once"]
        # Nobody can be asked now: what comes is remembered.
        assert {name: plan(location, instance, f"{name}_job") for name in asked} == asked
        for location_, how in (
            (location, {"run_config": other}),
            (location, {"step_keys_to_execute": ["quick"]}),
            (fresh, {}),  # as after a reload
        ):
            with pytest.raises(DagsterUserCodeUnreachableError):
                plan(location_, instance, "quick_job", **how)
