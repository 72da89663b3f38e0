"""The partition definitions: what one partition of an asset stands for."""

from __future__ import annotations

from dagster import DynamicPartitionsDefinition

daq_event_partitions = DynamicPartitionsDefinition(name="daq_event")
"""One partition for each event of the DAQ; its key is the file name without suffix,
`cygno-<md5>`. The sensor `daq_events` adds them."""
