"""What the running system hands on to its processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from cygno_assets.services.stack import _as_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (3, "3"), (Path("/x"), "/x"), (SecretStr("hunter2"), "hunter2")],
)
def test_settings_go_by_the_environment_as_they_are(value: object, text: str) -> None:
    assert _as_text(value) == text
