"""The program's own words: help, settings, and the documents that must agree with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from cygno_assets.cli import cli
from cygno_assets.services.worker import run_worker
from cygno_assets.settings import (
    CHECKOUT,
    Settings,
    SettingsError,
    environment_name,
    settings_table,
)

if TYPE_CHECKING:
    from pathlib import Path

DOCS = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
COMMANDS = [
    *("demo", "up", "record", "inbox", "settings", "status", "show", "prune", "worker"),
    *("reconcile", "replay", "rejected", "rejected list", "rejected show", "rejected replay"),
    *("backfill", "backfill training"),
    *("simulate", "simulate daq", "simulate training-set"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_settings_lists_every_setting() -> None:
    listed = CliRunner().invoke(cli, ["settings"]).output
    for field in Settings.model_fields:
        assert f"{environment_name(field)} = " in listed


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--markdown"], ["record", "-h"]])
def test_no_secret_is_listed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "PASSWORD", "TOKEN", "URL"):
        monkeypatch.setenv(f"CYGNO_DAQ_NATS_{name}", "hunter2")
    assert "hunter2" not in CliRunner().invoke(cli, arguments).output


def test_the_documented_table_is_the_one_in_the_code() -> None:
    assert settings_table() in (CHECKOUT / "docs" / "settings.md").read_text(), (
        "put the output of `cygno-assets settings --markdown` into docs/settings.md"
    )


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_documents_name_only_settings_and_files_that_exist(document: Path) -> None:
    text = document.read_text()
    known = {environment_name(field) for field in Settings.model_fields}
    assert set(re.findall(r"CYGNO_[A-Z][A-Z0-9_]*", text)) - {"CYGNO_DAQ"} <= known
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_a_worker_must_be_told_where_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SettingsError, match=r"^CYGNO_DAGSTER_CONFIG, CYGNO_POSTGRES_URL, .*not set"
    ):
        run_worker(print, live=1, background=0)
    monkeypatch.setenv("CYGNO_DAGSTER_CONFIG", str(CHECKOUT / "deploy"))
    monkeypatch.setenv("CYGNO_POSTGRES_URL", "postgresql://u:p@h/d")
    with pytest.raises(SettingsError, match=r"^CYGNO_BROKER_URL, CYGNO_INBOX_URL, CYGNO_STORAGE"):
        run_worker(print, live=1, background=0)


def test_each_picture_is_shown_in_a_document_and_none_is_missing() -> None:
    shown = {
        (document.parent / target).resolve()
        for document in DOCS
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text())
    }
    assert shown == set((CHECKOUT / "docs" / "images").iterdir())
    assert max(picture.stat().st_size for picture in shown) <= 300_000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["simulate", "daq", "--nats", "nats://127.0.0.1:1"], "--nats and --s3-endpoint go"),
        (["simulate", "daq", "--rate", "-1"], "--rate"),
        (["demo", "--events", "0"], "--events"),
        (["demo", "--images", "/no/such/folder"], "--images"),
        (["demo", "--images", ".", "--hot-columns", "3"], "--images are no simulated camera's"),
        (["simulate", "daq", "--events", "3", "--stop-after", "2"], "--events and --stop-after"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_options_are_refused_by_name(arguments: list[str], why: str) -> None:
    import subprocess
    import sys

    result = subprocess.run(  # a process of its own, for these commands fork
        [sys.executable, "-m", "cygno_assets.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode != 0
    assert why in result.stderr
    assert "Traceback" not in result.stderr
