"""What runs print, kept in files. Dagster's own starts two processes a step to echo it as well."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import (
    IO_TYPE_EXTENSION,
    LocalComputeLogManager,
)
from dagster._utils import ensure_file, touch_file

from .folder import CONFIG, folder_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from dagster._serdes import ConfigurableClassData


class QuietComputeLogManager(LocalComputeLogManager):
    """Dagster's local files, without the echo, and without files for steps that print nothing."""

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The fields of dagster.yaml."""
        return CONFIG

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As dagster.yaml has it."""
        return cls(str(folder_of(config_value) / "printed"), inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        """Writes what is printed meanwhile to the files of this key."""
        paths = [
            self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[io_type])
            for io_type in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        ]
        for path in paths:
            ensure_file(path)
        with redirect_to_file(sys.stdout, paths[0]), redirect_to_file(sys.stderr, paths[1]):
            yield CapturedLogContext(log_key)
        touch_file(self.complete_artifact_path(log_key))
        for path in paths:
            if os.stat(path).st_size == 0:  # noqa: PTH116 – Dagster's paths are strings
                os.unlink(path)  # noqa: PTH108 – as above
