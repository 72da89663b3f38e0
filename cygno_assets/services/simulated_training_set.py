"""The demo's training set: written beside the running system, then offered by the DAQ's server."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from cygno_assets.daq.simulator.bucket import Bucket
from cygno_assets.services.process import Service

if TYPE_CHECKING:
    from pathlib import Path

    from cygno_assets.services.stack import DaqServers

_NAME = "training_set.zip"
_SEED = 0
"""Always the same, so that in a second demo in a home no cell has changed."""
_URL_LIFETIME = timedelta(days=7)  # the longest there is
_CHECK_S = 5
"""Seconds between looks for it; those of a real one are an hour."""


class SimulatedTrainingSet:
    """A process that writes the archive, which takes a while, and its way into the bucket.

    Args:
        daq: whose server offers it, and whose folder it is written in.
        log_file: of that process.
    """

    def __init__(self, daq: DaqServers, log_file: Path) -> None:
        self._file = daq.folder / _NAME
        self._bucket = Bucket(daq.bucket)
        self._offered = False
        self._service = Service(
            "training set",
            [
                *(sys.executable, "-m", "cygno_assets.cli", "simulate", "training-set"),
                *(str(self._file), "--seed", str(_SEED)),
            ],
            log_file,
        )
        self.settings: dict[str, object] = {
            "training_archive": self._bucket.presigned_url(_NAME, _URL_LIFETIME),
            "training_archive_ca_file": daq.bucket.ca_file,
            "training_archive_check_s": _CHECK_S,
        }

    def offer_when_written(self) -> None:
        """Puts the archive into the bucket once it is written.

        Raises:
            ServiceError: it could not be written.
        """
        self._service.check_alive(may_end=True)
        if self._service.ended_well and not self._offered:
            self._bucket.put(_NAME, self._file, "application/zip")
            self._file.unlink()
            self._offered = True

    def __enter__(self) -> Self:
        self._service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()
