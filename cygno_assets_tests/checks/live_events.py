"""Live events as Dagster's event log has them, of simulated images: pools to take windows from."""

from __future__ import annotations

import io
import itertools
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from dagster import AssetMaterialization, MetadataValue
from PIL import Image

from cygno_assets.assets.live import image_metadata, tensor_metadata
from cygno_assets.daq.simulator.camera import NO_FAULT, CameraFault
from cygno_assets.daq.simulator.events import ParametricImages
from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE
from cygno_assets.physics.spec import PreprocessSpec
from cygno_assets.records.made import Made
from cygno_assets.records.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dagster import DagsterInstance

RATE_HZ = 300 / 3600
"""The school's."""
SPEC = PreprocessSpec()
_SIGNAL = 0.1


@dataclass(frozen=True)
class Event:
    """What the assets say of one event.

    Attributes:
        event_id: the partition.
        at: when it was announced, in seconds since 1970.
        image: metadata of its raw image.
        tensor: of its tensor.
    """

    event_id: str
    at: float
    image: Mapping[str, Any]
    tensor: Mapping[str, Any]

    def report(self, instance: DagsterInstance) -> None:
        """Tells Dagster of it, as its run would."""
        announced = {"announced": MetadataValue.timestamp(self.at)}
        for asset, metadata in (
            (RAW_IMAGE, announced | dict(self.image)),
            (PREPROCESSED_TENSOR, dict(self.tensor)),
        ):
            instance.report_runless_asset_event(
                AssetMaterialization(asset, partition=self.event_id, metadata=metadata)
            )

    def made(self, metadata: Mapping[str, Any]) -> Made:
        """As it would be read."""
        return Made(self.event_id, 0, "", self.at, {"announced": self.at, **metadata})


@lru_cache
def images(
    number: int, seed: int, fault: CameraFault = NO_FAULT
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What the assets say of simulated images; of their tensors beside it."""
    source = ParametricImages(seed, fault=fault)
    found = []
    for _ in range(number):
        image = Image.open(io.BytesIO(source.next_event(_SIGNAL).image_bytes))
        found.append((image_metadata(image), tensor_metadata(image, SPEC)))
    return found


_numbers = itertools.count()


def events(
    number: int,
    seed: int = 0,
    fault: CameraFault = NO_FAULT,
    *,
    rate_hz: float = RATE_HZ,
    after: Sequence[Event] = (),
) -> list[Event]:
    """Events at Poisson times, of the same images for the same seed.

    Args:
        number: how many.
        seed: of images and times.
        fault: of the camera.
        rate_hz: of arrivals.
        after: they come after these; without, the first one 100 days ago.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate_hz, number)
    begin = after[-1].at if after else time.time() - 8_640_000
    return [
        Event(f"cygno-{next(_numbers):032x}", float(at), image, tensor)
        for at, (image, tensor) in zip(
            begin + np.cumsum(gaps), images(number, seed, fault), strict=True
        )
    ]


def until(when: float, found: Sequence[Event]) -> list[Event]:
    """The same events, moved in time so that the last one is announced then."""
    return [replace(event, at=event.at + when - found[-1].at) for event in found]


def window(found: Sequence[Event], past: Sequence[Event] = ()) -> Window:
    """As it would be read."""
    return Window(
        [event.made(event.image) for event in found],
        [event.made(event.image) for event in past],
        [event.made(event.tensor) for event in found],
    )
