"""What `make` says where something is missing, with a Python that stands in for an old one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cygno_assets.settings import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("ensurepip", "Python's venv is missing: sudo apt-get install python3-venv"),
        ("version_info", "Python 3.11 or newer is missing: sudo apt-get install python3"),
    ],
)
def test_a_missing_prerequisite_is_named_with_its_command(
    tmp_path: Path, lacks: str, says: str
) -> None:
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    old_python = tmp_path / "old-python"
    old_python.write_text(
        f'#!/bin/sh\ncase "$*" in *{lacks}*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    old_python.chmod(0o755)
    result = subprocess.run(
        ["make", "demo", f"PYTHON={old_python}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert says in result.stdout
