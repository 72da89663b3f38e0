"""Cursors of sensors that are JSON: reading what Dagster keeps of one.

What a cursor holds is said where its sensor is; what others read of it, in records/cursors.py.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def parsed(text: str | None, build: Callable[[dict[str, Any]], T]) -> T | None:
    """The cursor of a text; None before the sensor's first tick.

    Args:
        text: as Dagster keeps it.
        build: makes it of the JSON object.

    Raises:
        ValueError: it is no cursor of this sensor.
    """
    if not text:
        return None
    try:
        return build(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"the cursor {text[:80]!r} is none of this sensor; delete it to begin anew"
        ) from None
