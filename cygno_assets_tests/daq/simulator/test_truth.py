import dataclasses
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cygno_assets.daq.simulator.events import SimulatedEvent
from cygno_assets.daq.simulator.truth import TruthRow, TruthTable

NUCLEAR = SimulatedEvent(b"image", "cygno-1.jpg", "NR/6_keV/a.png", "nuclear", 6.0)
ELECTRONIC = SimulatedEvent(b"image", "cygno-2.jpg", "ER/2.5_keV/b.png", "electronic", 2.5)
UNKNOWN = SimulatedEvent(b"image", "cygno-3.jpg", "c.jpg", None, None)
TIME = "2024-11-27 14:27:36.570564"


def test_rows_come_back_as_they_were_recorded(tmp_path: Path) -> None:
    table = TruthTable(tmp_path / "truth.db")
    for event in (NUCLEAR, UNKNOWN, ELECTRONIC, NUCLEAR):
        table.record(TIME, event)

    nuclear = TruthRow(TIME, "NR/6_keV/a.png", "cygno-1.jpg", True, "nuclear", 6.0)
    assert table.rows() == [
        nuclear,
        TruthRow(TIME, "c.jpg", "cygno-3.jpg", None, None, None),
        TruthRow(TIME, "ER/2.5_keV/b.png", "cygno-2.jpg", False, "electronic", 2.5),
        nuclear,
    ]
    assert table.count() == 4
    table.close()


def test_the_first_columns_are_the_schools(tmp_path: Path) -> None:
    TruthTable(tmp_path / "truth.db").close()

    with sqlite3.connect(tmp_path / "truth.db") as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(truth)")]
    assert columns[:4] == ["time", "original", "filename", "is_signal"]
    assert columns == [field.name for field in dataclasses.fields(TruthRow)]


def test_a_second_daq_adds_to_the_table(tmp_path: Path) -> None:
    for _ in range(2):
        table = TruthTable(tmp_path / "truth.db")
        table.record(TIME, NUCLEAR)
        table.close()

    assert TruthTable(tmp_path / "truth.db").count() == 2


def test_another_process_reads_while_a_row_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "truth.db"
    table = TruthTable(path)
    table.record(TIME, NUCLEAR)
    with sqlite3.connect(path) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("INSERT INTO truth SELECT * FROM truth")  # not yet committed
        program = (
            "import sys, pathlib\n"
            "from cygno_assets.daq.simulator.truth import TruthTable\n"
            "print(TruthTable(pathlib.Path(sys.argv[1])).count())"
        )
        found = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert found.stdout == "1\n"
    assert table.count() == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing/truth\.db': its folder does not exist"):
        TruthTable(tmp_path / "missing" / "truth.db")
