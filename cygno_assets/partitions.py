"""The partition definitions: what one partition of an asset stands for."""

from __future__ import annotations

from datetime import date

from dagster import (
    DailyPartitionsDefinition,
    DynamicPartitionsDefinition,
    MultiPartitionsDefinition,
    StaticPartitionsDefinition,
)

from cygno_assets.physics.ground_truth import RECOIL_TYPES

daq_event_partitions = DynamicPartitionsDefinition(name="daq_event")
"""One partition for each event of the DAQ; its key is the file name without suffix,
`cygno-<md5>`. The sensor `daq_events` adds them."""

FIRST_EVENT_DAY = date(2024, 1, 1)
"""Before the first event of any stream this project was made for; earlier ones count to it."""

event_days = DailyPartitionsDefinition(start_date=FIRST_EVENT_DAY.isoformat(), end_offset=1)
"""One partition for each UTC day, today included; an event belongs to that of its acquisition."""

training_energies = DynamicPartitionsDefinition(name="training_energy")
"""The energies of the training set, `6keV`. The asset `training_archive` adds them; none is ever
taken away, so one that a new archive lacks becomes a column of empty cells."""

training_cells = MultiPartitionsDefinition(
    {"recoil": StaticPartitionsDefinition(sorted(RECOIL_TYPES)), "energy": training_energies}
)
"""The training set's grid of recoil type × energy. Dagster orders a key by the names of its
dimensions: `6keV|NR`."""
