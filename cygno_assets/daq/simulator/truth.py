"""What really was in each image: a table that stays on the DAQ's side.

Belongs here: the table's file, written by one DAQ and read by whoever compares.
Does not: anything that is sent.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cygno_assets.daq.simulator.events import SimulatedEvent

_CREATE = """
CREATE TABLE IF NOT EXISTS truth (
    time TEXT NOT NULL,
    original TEXT NOT NULL,
    filename TEXT NOT NULL,
    is_signal INTEGER,
    recoil_type TEXT,
    energy_kev REAL
)
"""


@dataclass(frozen=True, slots=True)
class TruthRow:
    """One announcement and its truth; None where a file's path does not tell.

    Args:
        time: As announced, in the DAQ's local time.
        original: Where the image comes from.
        filename: As announced.
        is_signal: Whether it is a nuclear recoil.
        recoil_type: "nuclear" or "electronic".
        energy_kev: Recoil energy in keV.
    """

    time: str
    original: str
    filename: str
    is_signal: bool | None
    recoil_type: str | None
    energy_kev: float | None


class TruthTable:
    """The truth table in an SQLite file, made if it is not there.

    Another process may read it while the DAQ writes (write-ahead log). The first four columns are
    the school's.

    Args:
        path: The file; its folder must exist.

    Raises:
        ValueError: The file's folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise ValueError(f"path = {str(path)!r}: its folder does not exist")
        # Autocommit, each row on its own; made in one thread and used in another, never in two.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_CREATE)

    def record(self, time: str, event: SimulatedEvent) -> None:
        """Adds a row: `event` is announced at `time`."""
        self._db.execute(
            "INSERT INTO truth VALUES (?, ?, ?, ?, ?, ?)",
            (
                time,
                event.original,
                event.filename,
                event.is_signal,
                event.recoil_type,
                event.energy_kev,
            ),
        )

    def rows(self) -> list[TruthRow]:
        """All rows in the order of their announcements."""
        rows = self._db.execute("SELECT * FROM truth ORDER BY rowid")
        return [
            TruthRow(time, original, filename, None if signal is None else bool(signal), kind, kev)
            for time, original, filename, signal, kind, kev in rows
        ]

    def count(self) -> int:
        """How many rows there are."""
        count: int = self._db.execute("SELECT count(*) FROM truth").fetchone()[0]
        return count

    def close(self) -> None:
        """Closes the file."""
        self._db.close()
