"""What the running system hands on to its processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from cygno_assets.services.process import ServiceError
from cygno_assets.services.stack import _as_text, home_is_locked, locked_home
from cygno_assets.settings import load_settings


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (3, "3"), (Path("/x"), "/x"), (SecretStr("hunter2"), "hunter2")],
)
def test_settings_go_by_the_environment_as_they_are(value: object, text: str) -> None:
    assert _as_text(value) == text


def test_a_home_is_locked_by_one_and_only_while_it_runs() -> None:
    settings = load_settings()
    assert not home_is_locked(settings)  # there is none yet
    with locked_home(settings):
        assert home_is_locked(settings)
        with (
            pytest.raises(ServiceError, match="runs in"),
            locked_home(settings),
        ):
            pass
        assert home_is_locked(settings)
    assert not home_is_locked(settings)
    with locked_home(settings):  # asking has locked nothing
        assert home_is_locked(settings)
