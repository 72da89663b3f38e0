"""Where Dagster keeps its state: in CYGNO_HOME, however it was started.

dagster.yaml names this class, because Dagster itself would keep databases beside dagster.yaml or,
under `dagster dev`, in a temporary folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef  # no public name; see the contract test

if TYPE_CHECKING:
    from collections.abc import Mapping


class CygnoInstance(DagsterInstance):
    """Dagster's own instance with `$CYGNO_HOME/dagster` as the folder of everything it stores."""

    @staticmethod
    def config_schema() -> Mapping[str, Any]:
        """No fields of dagster.yaml beyond Dagster's own."""
        return {}

    @staticmethod
    def config_defaults(base_dir: str) -> Mapping[str, Any]:  # noqa: ARG004 – the folder replaced
        """Dagster's own defaults, in our folder.

        Raises:
            SettingsError: a CYGNO_* setting is wrong.
        """
        from cygno_assets.settings import load_settings

        state = load_settings().dagster_state
        state.mkdir(parents=True, exist_ok=True)
        return InstanceRef.config_defaults(str(state))


def state_folder() -> str:
    """The folder of everything Dagster stores, for what dagster.yaml names.

    Raises:
        SettingsError: a CYGNO_* setting is wrong.
    """
    from cygno_assets.settings import load_settings

    return str(load_settings().dagster_state)
