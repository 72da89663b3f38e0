"""Where what dagster.yaml names keeps its files: a folder, or a function that tells it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import Field, StringSource

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG: Mapping[str, Any] = {
    "base_dir": Field(StringSource, is_required=False),
    "base_dir_from": Field(
        StringSource,
        is_required=False,
        description="`module:function`, called without arguments, instead of base_dir: for a "
        "folder that is not known when dagster.yaml is written.",
    ),
}


def folder_of(config: Mapping[str, Any]) -> Path:
    """The folder that the configuration names, made if it is not there.

    Raises:
        ValueError: it names none, or two.
    """
    given = {key for key in CONFIG if config.get(key)}
    if len(given) != 1:
        raise ValueError("give either base_dir or base_dir_from (`module:function`)")
    if "base_dir" in given:
        folder = Path(config["base_dir"])
    else:
        module, _, function = str(config["base_dir_from"]).partition(":")
        folder = Path(getattr(importlib.import_module(module), function)())
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()
