"""Dagster's daemon with a shorter sensor loop: `python -m …engine.daemon run -w workspace.yaml`.

The one place where a constant of Dagster's is changed. Its sensor loop comes round every 5 s, of
which an event waits half on average, and no setting shortens it. How often a sensor is evaluated
its own `minimum_interval_seconds` still decides. Started as `dagster-daemon`, all is the same but
for that wait.
"""

from __future__ import annotations

from dagster._daemon import sensor
from dagster._daemon.cli import main

SENSOR_LOOP_S = 1


def shorten_sensor_loop() -> None:
    """Has Dagster look every second which sensors are due."""
    sensor.MIN_INTERVAL_LOOP_TIME = SENSOR_LOOP_S


if __name__ == "__main__":
    shorten_sensor_loop()
    main()
