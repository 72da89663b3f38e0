"""What `deploy/` says: no setting, command or part of dagster.yaml that is not ours."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
import yaml

from cygno_assets.cli import cli
from cygno_assets.services.nats_server import MAX_PAYLOAD_BYTES
from cygno_assets.settings import CHECKOUT, load_settings

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = CHECKOUT / "deploy"
OTHERWISE = {"storage", "run_launcher", "run_coordinator", "run_monitoring"}
"""Blocks in which deploy/dagster.yaml differs."""


def loaded(path: Path) -> dict[str, object]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def shape(value: object) -> object:
    """The keys of a block, and those below; without numbers."""
    if isinstance(value, dict):
        return {key: shape(below) for key, below in value.items()}
    if isinstance(value, list):
        return [shape(below) for below in value]
    return "a number" if isinstance(value, int) else value


def test_dagster_yaml_differs_from_the_one_of_a_single_machine_where_it_says_so() -> None:
    single, many = loaded(CHECKOUT / "dagster.yaml"), loaded(DEPLOY / "dagster.yaml")
    assert single.keys() == many.keys()
    assert {key for key in single if single[key] != many[key]} == OTHERWISE
    assert shape(single["run_coordinator"]) == shape(many["run_coordinator"])


def test_the_settings_of_all_machines_are_settings() -> None:
    lines = (DEPLOY / "cygno.env.example").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings["CYGNO_DAGSTER_CONFIG"] = str(DEPLOY)
    assert load_settings(environ=settings).storage_url == "s3://cygno/data"


def commands() -> list[str]:
    """What compose file and systemd units run of ours."""
    services = loaded(DEPLOY / "docker-compose.yml")["services"]
    assert isinstance(services, dict)
    composed = [service["command"] for service in services.values() if "build" in service]
    units = [path.read_text() for path in sorted((DEPLOY / "systemd").glob("*.service"))]
    started = [
        re.search(r"^ExecStart=\S+/cygno-assets (.*)$", unit, re.MULTILINE) for unit in units
    ]
    return composed + [found[1] for found in started if found]


def test_each_command_is_one_of_ours() -> None:
    assert sorted(commands()) == ["up", "up", "worker", "worker"]


@pytest.mark.parametrize("command", commands())
def test_each_command_takes_its_arguments(command: str) -> None:
    name, *arguments = shlex.split(command)
    with cli.commands[name].make_context(name, arguments):
        pass


def test_environment_in_the_compose_file_is_settings() -> None:
    services = loaded(DEPLOY / "docker-compose.yml")["services"]
    assert isinstance(services, dict)
    for service in services.values():
        given = service.get("environment", {})
        ours = {name: str(value) for name, value in given.items() if name.startswith("CYGNO_")}
        load_settings(environ={**ours, "CYGNO_DAGSTER_CONFIG": str(DEPLOY)})


def test_the_inbox_takes_messages_as_large_as_ours() -> None:
    text = (DEPLOY / "inbox.conf").read_text()
    assert f"max_payload: {MAX_PAYLOAD_BYTES}\n" in text
    assert "sync_interval: always" in text
