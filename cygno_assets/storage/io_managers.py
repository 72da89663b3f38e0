"""How assets' values are stored and loaded: raw images as they came, tensors as .npy.

Only the formats stand here; the place is locations.py's, and `<root>/<asset>/<partition>` is
Dagster's own UPathIOManager's.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from dagster import AssetKey, InputContext, OutputContext, UPathIOManager

from cygno_assets.storage.locations import read_if_there, read_whole, write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from upath import UPath


class RawImageIOManager(UPathIOManager):
    """Images byte for byte as the DAQ delivered them.

    `raw_image` calls `keep` and `stored` itself, for it must save the bytes before anything is
    done with them, and must not fetch what is there.
    """

    extension = ".jpg"

    def path(self, asset_key: AssetKey, event_id: str) -> UPath:
        """Where the image of an event is kept."""
        return self._base_path.joinpath(*asset_key.path, event_id + self.extension)

    def keep(self, asset_key: AssetKey, event_id: str, data: bytes) -> None:
        """Stores an image whole."""
        write_whole(self.path(asset_key, event_id), data)

    def stored(self, asset_key: AssetKey, event_id: str) -> bytes | None:
        """The image of an event as stored, None if there is none."""
        return read_if_there(self.path(asset_key, event_id))

    def dump_to_path(self, context: OutputContext, obj: bytes, path: UPath) -> None:  # noqa: ARG002 – Dagster's signature
        """Stores an image whole."""
        write_whole(path, obj)

    def load_from_path(self, context: InputContext, path: UPath) -> bytes:  # noqa: ARG002 – Dagster's signature
        """Reads an image file.

        Raises:
            FileNotFoundError: it is not stored.
        """
        return read_whole(path)


class TensorIOManager(UPathIOManager):
    """float32 arrays as .npy, which any program reads; never pickled, neither way."""

    extension = ".npy"

    def dump_to_path(self, context: OutputContext, obj: NDArray[np.float32], path: UPath) -> None:  # noqa: ARG002 – Dagster's signature
        """Stores a tensor whole."""
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, obj, allow_pickle=False)
        write_whole(path, buffer.getvalue())

    def load_from_path(self, context: InputContext, path: UPath) -> Any:  # noqa: ARG002 – Dagster's signature
        """Reads a tensor.

        Raises:
            FileNotFoundError: it is not stored.
        """
        import numpy as np

        return np.load(io.BytesIO(read_whole(path)), allow_pickle=False)
