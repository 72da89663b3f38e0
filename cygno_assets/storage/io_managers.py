"""How assets' values are stored and loaded: the formats.

Raw images as they came, tensors as .npy, tables as Parquet, small values as JSON, figures as PNG.
Only these stand here; the place is locations.py's, and `<root>/<asset>/<partition>` is
Dagster's own UPathIOManager's.
"""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from dagster import AssetKey, InputContext, OutputContext, UPathIOManager

from cygno_assets.storage.locations import read_if_there, read_whole, write_whole
from cygno_assets.storage.objects import opened
from cygno_assets.storage.tables import table_from_parquet, table_to_parquet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from upath import UPath

    from cygno_assets.storage.tensor_table import TensorTable


class FileIOManager(UPathIOManager):
    """One file for each value, written whole; what its bytes mean, a subclass says."""

    @abstractmethod
    def to_bytes(self, value: Any) -> bytes:
        """The content of the value's file."""

    @abstractmethod
    def from_bytes(self, data: bytes) -> Any:
        """The value of a file's content.

        Raises:
            ValueError: the file is damaged.
        """

    def path(self, asset_key: AssetKey, partition_key: str | None = None) -> UPath:
        """Where a partition, or an asset without any, is kept; of two at `<first>/<second>`."""
        below = [] if partition_key is None else partition_key.split("|")
        path = self._base_path.joinpath(*asset_key.path, *below)
        return path.with_name(path.name + (self.extension or ""))

    def stored(self, asset_key: AssetKey, partition_key: str | None = None) -> Any:
        """The value of a partition, or of an asset without any; None if none or damaged."""
        data = read_if_there(self.path(asset_key, partition_key))
        try:
            return None if data is None else self.from_bytes(data)
        except ValueError:
            return None

    def load_input(self, context: InputContext) -> Any:
        """A value, or values by partition; of no partitions an empty dict, where Dagster has None.

        Raises:
            FileNotFoundError: one is not stored.
            ValueError: a file is damaged.
        """
        loaded = super().load_input(context)
        return {} if loaded is None else loaded

    def dump_to_path(self, context: OutputContext, obj: Any, path: UPath) -> None:  # noqa: ARG002 – Dagster's signature
        """Stores a value whole."""
        write_whole(path, self.to_bytes(obj))

    def load_from_path(self, context: InputContext, path: UPath) -> Any:  # noqa: ARG002 – Dagster's signature
        """Reads a value.

        Raises:
            FileNotFoundError: it is not stored.
            ValueError: the file is damaged.
        """
        return self.from_bytes(read_whole(path))


class RawImageIOManager(FileIOManager):
    """Images byte for byte as the DAQ delivered them.

    `raw_image` calls `keep` and `stored` itself, for it must save the bytes before anything is
    done with them, and must not fetch what is there.
    """

    extension = ".jpg"

    def keep(self, asset_key: AssetKey, event_id: str, data: bytes) -> None:
        """Stores an image whole."""
        write_whole(self.path(asset_key, event_id), data)

    def to_bytes(self, value: bytes) -> bytes:
        """As it is."""
        return value

    def from_bytes(self, data: bytes) -> bytes:
        """As it is."""
        return data


class TensorIOManager(FileIOManager):
    """float32 arrays as .npy, which any program reads; never pickled, neither way."""

    extension = ".npy"

    def to_bytes(self, value: NDArray[np.float32]) -> bytes:
        """As `numpy.save` writes it."""
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return buffer.getvalue()

    def from_bytes(self, data: bytes) -> Any:
        """As `numpy.load` reads it.

        Raises:
            ValueError: the file is damaged, or pickled.
        """
        import numpy as np

        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except EOFError as error:  # numpy's, of an empty file
            raise ValueError(f"damaged array: {error}") from None


class TableIOManager(FileIOManager):
    """pandas tables as Parquet; a table's `attrs` are kept in the file."""

    extension = ".parquet"

    def to_bytes(self, value: pd.DataFrame) -> bytes:
        """As pandas writes it, compressed."""
        return table_to_parquet(value)

    def from_bytes(self, data: bytes) -> Any:
        """As pandas reads it.

        Raises:
            ValueError: the file is damaged.
        """
        return table_from_parquet(data)


class TensorTableIOManager(FileIOManager):
    """Tables with a tensor in each row, as Parquet."""

    extension = ".parquet"

    def to_bytes(self, value: TensorTable) -> bytes:
        """As `write_tensor_table` writes it."""
        from cygno_assets.storage.tensor_table import write_tensor_table

        buffer = io.BytesIO()
        write_tensor_table(value, buffer)
        return buffer.getvalue()

    def from_bytes(self, data: bytes) -> Any:
        """As `read_tensor_table` reads it.

        Raises:
            ValueError: the file is damaged.
        """
        from cygno_assets.storage.tensor_table import read_tensor_table

        return read_tensor_table(io.BytesIO(data))

    def parts(self, asset_key: AssetKey, partition_key: str) -> Iterator[TensorTable]:
        """A stored table, some rows at a time.

        Raises:
            FileNotFoundError: it is not stored.
            ValueError: the file is damaged.
        """
        from cygno_assets.storage.tensor_table import read_tensor_tables

        yield from read_tensor_tables(opened(self.path(asset_key, partition_key)))


class JsonIOManager(FileIOManager):
    """Small values as JSON, for any program to read."""

    extension = ".json"

    def to_bytes(self, value: Any) -> bytes:
        """As JSON."""
        return json.dumps(value).encode()

    def from_bytes(self, data: bytes) -> Any:
        """From JSON.

        Raises:
            ValueError: the file is damaged.
        """
        return json.loads(data)


class FigureIOManager(FileIOManager):
    """Pictures, PNG already."""

    extension = ".png"

    def to_bytes(self, value: bytes) -> bytes:
        """As it is."""
        return value

    def from_bytes(self, data: bytes) -> bytes:
        """As it is."""
        return data
