"""The newest events together, as the checks of live data judge them, and those before.

Here belongs which events are in a window and their numbers as arrays; what is said of them is
checks/live_window.py's. No image is opened: all of it stands in the metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.records.made import newest_made

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from dagster import DagsterInstance
    from numpy.typing import NDArray

    from cygno_assets.records.made import Made

MOST_EVENTS = 2000
"""In a window; at 5 events/s it is 7 minutes long then."""
MOST_PAST_EVENTS = 2000
"""Before it; at the school's 300 events/h they are 7 h."""
PAST_S = 86_400.0
"""How far the past goes back before the window, at the most, in s."""


@dataclass(frozen=True)
class Window:
    """The newest events, and those before.

    Attributes:
        events: materializations of `raw_image`, in the order of their announcements.
        past: likewise, of the events before; the recent past that the window is compared with.
        tensors: materializations of `preprocessed_tensor` of the window's events, in their order.
    """

    events: Sequence[Made] = field(default_factory=list)
    past: Sequence[Made] = field(default_factory=list)
    tensors: Sequence[Made] = field(default_factory=list)

    @property
    def newest(self) -> float | None:
        """When its newest event was announced, in seconds since 1970; None if there is none."""
        return announced(self.events[-1]) if self.events else None


def read_window(instance: DagsterInstance, window_s: float) -> Window:
    """Reads the window that ends with the newest event, however long ago that is.

    So a DAQ that falls silent turns no check green. Events whose announcement was not known when
    they were made are older than what the inbox keeps, and in no window.

    Args:
        instance: Dagster's.
        window_s: length of the window, in s.
    """
    images = [
        made
        for made in newest_made(instance, RAW_IMAGE, MOST_EVENTS + MOST_PAST_EVENTS)
        if announced(made) > 0 and "pixel_counts" in made.metadata
    ]
    if not images:
        return Window()
    images.sort(key=announced)
    newest = announced(images[-1])
    in_time = [made for made in images if announced(made) > newest - window_s]
    events = in_time[-MOST_EVENTS:]
    before = images[: len(images) - len(events)]
    past = [made for made in before if announced(made) > announced(events[0]) - PAST_S]
    places = {made.event_id: place for place, made in enumerate(events)}
    tensors = newest_made(instance, PREPROCESSED_TENSOR, len(events), events=places)
    tensors.sort(key=lambda made: places[made.event_id])
    return Window(events, past, tensors)


def announced(made: Made) -> float:
    """When an event was announced, in seconds since 1970: by our clock, else by the DAQ's; or 0."""
    return float(made.metadata.get("announced") or made.metadata.get("acquired") or 0.0)


def acquired(made: Made) -> float:
    """When an event was acquired, in seconds since 1970: by the DAQ's clock, else by ours; or 0."""
    return float(made.metadata.get("acquired") or made.metadata.get("announced") or 0.0)


def numbers(made: Sequence[Made], label: str) -> NDArray[np.float64]:
    """float64 of shape (events,): one number of each, by its label; those that lack it left out."""
    import numpy as np

    return np.array([one.metadata[label] for one in made if label in one.metadata], np.float64)


def summed_counts(made: Sequence[Made]) -> NDArray[np.int64]:
    """int64 of shape (256,): how often each pixel value occurs in all their images."""
    import numpy as np

    from cygno_assets.physics.histogram import BINS, counts_from_text

    return sum(
        (counts_from_text(str(one.metadata["pixel_counts"])) for one in made),
        start=np.zeros(BINS, np.int64),
    )
