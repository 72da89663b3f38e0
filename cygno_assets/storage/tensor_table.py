"""Tables in which each row has a tensor: one Parquet file that pandas and `datasets` both open.

Here belongs the file format. float32, because with Parquet's dictionary encoding it takes no more
room than 8 bits would, and nobody has to know how to scale it back (docs/training-a-model.md has
the numbers).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import IO

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

TENSOR_COLUMN = "tensor"
ROWS_AT_ONCE = 100
"""Of a row group: 6.5 MB of tensors of side 128, so that neither end needs much memory."""
# Field and schema metadata by which Hugging Face's `datasets` knows a fixed shape; to everybody
# else the column is a list of lists.
_HF_ARRAY = "datasets.features.features.Array2DExtensionType"
_HF_VALUES = {"int32": "int32", "int64": "int64", "double": "float64", "bool": "bool"}
_ATTRS = b"PANDAS_ATTRS"  # where pandas keeps a table's attrs in Parquet
_SUM = b"sha256"  # of the schema: Parquet has sums of its pages, and none of its footer


@dataclass(frozen=True, eq=False)
class TensorTable:
    """Rows, and a tensor for each.

    Attributes:
        rows: what is known of each tensor; `attrs`, as plain values, of all of them.
        tensors: float32 of shape (rows, side, side).

    Raises:
        ValueError: not as many tensors as rows, or not float32 and square.
    """

    rows: pd.DataFrame
    tensors: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = self.tensors.shape
        if self.tensors.dtype != np.float32 or len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"tensors are {self.tensors.dtype} of shape {shape}")
        if shape[0] != len(self.rows):
            raise ValueError(f"{shape[0]} tensors and {len(self.rows)} rows")


def write_tensor_table(table: TensorTable, file: Path | IO[bytes]) -> None:
    """Writes the file, some rows at a time: the tensors may be a memory map."""
    write_tensor_tables(
        (
            TensorTable(table.rows.iloc[first : first + ROWS_AT_ONCE], tensors)
            for first in range(0, max(len(table.rows), 1), ROWS_AT_ONCE)
            for tensors in [table.tensors[first : first + ROWS_AT_ONCE]]
        ),
        file,
    )


def write_tensor_tables(tables: Iterable[TensorTable], file: Path | IO[bytes]) -> None:
    """Writes one file of several tables, one after the other: one is in memory at a time.

    Args:
        tables: at least one, of the same columns, side and `attrs`, each a row group: ROWS_AT_ONCE
            rows are a good size. The first one's dtypes are the file's.
        file: to write.

    Raises:
        ValueError: a table has other columns, another side or other `attrs` than the first.
    """
    import pyarrow.parquet as pq

    parts = iter(tables)
    first = next(parts)
    schema, expected = _schema(first.rows, first.tensors.shape[1]), _alike(first)
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for number, part in enumerate(chain([first], parts), 1):
            for what, found in _alike(part).items():
                if found != expected[what]:
                    raise ValueError(
                        f"tables of one file must be alike: {what} of the first is "
                        f"{expected[what]}, of number {number} {found}"
                    )
            writer.write_table(_arrow(part.rows, part.tensors, schema))


def _alike(table: TensorTable) -> dict[str, object]:
    """What all tables of one file have in common."""
    return {
        "columns": list(table.rows.columns),
        "side": table.tensors.shape[1],
        "attrs": dict(table.rows.attrs),
    }


def read_tensor_table(file: Path | IO[bytes]) -> TensorTable:
    """Reads what `write_tensor_table` wrote.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    with _opened(file) as parquet:
        return TensorTable(
            _rows(parquet), _tensors(parquet.read([TENSOR_COLUMN]).column(0), _side(parquet))
        )


def read_tensor_tables(file: Path | IO[bytes]) -> Iterator[TensorTable]:
    """Reads what `write_tensor_tables` wrote, a row group at a time; at least one.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    with _opened(file) as parquet:
        attrs, side = json.loads(parquet.schema_arrow.metadata[_ATTRS]), _side(parquet)
        for group in range(parquet.num_row_groups):
            columns = parquet.read_row_group(group)
            rows = columns.drop_columns([TENSOR_COLUMN]).to_pandas()
            rows.attrs = attrs
            yield TensorTable(rows, _tensors(columns.column(TENSOR_COLUMN), side))


def read_rows(file: Path | IO[bytes]) -> pd.DataFrame:
    """The table without its tensors, which are not read.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    with _opened(file) as parquet:
        return _rows(parquet)


def _rows(parquet: pq.ParquetFile) -> pd.DataFrame:
    columns = [name for name in parquet.schema_arrow.names if name != TENSOR_COLUMN]
    rows: pd.DataFrame = parquet.read(columns).to_pandas()
    rows.attrs = json.loads(parquet.schema_arrow.metadata[_ATTRS])
    return rows


def _tensors(column: pa.ChunkedArray, side: int) -> NDArray[np.float32]:
    import pyarrow as pa

    # Where `datasets` is imported, pyarrow knows its type and wraps the lists in it.
    lists = [getattr(chunk, "storage", chunk) for chunk in column.chunks]
    # Numbers are put together and not lists, which count theirs in 32 bits: 131,000 tensors.
    numbers = pa.chunked_array([each.flatten().flatten() for each in lists], pa.float32())
    values = numbers.to_numpy()
    tensors: NDArray[np.float32] = values.reshape(-1, side, side)
    return tensors


@contextmanager
def _opened(file: Path | IO[bytes]) -> Iterator[pq.ParquetFile]:
    """The file, to be read in the block; every page is checked against its checksum.

    Raises:
        ValueError: the file, or what is read of it, is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Buffered: of a bucket, a request for each row group and not for each of its columns.
        with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True) as parquet:
            if TENSOR_COLUMN not in parquet.schema_arrow.names or _ATTRS not in (
                parquet.schema_arrow.metadata or {}
            ):
                raise ValueError("a Parquet file, but no table of tensors")
            found = parquet.schema_arrow
            if found.metadata.get(_SUM, _sum_of(found)) != _sum_of(found):
                raise ValueError("damaged table: its metadata are not as they were written")
            yield parquet
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # the latter of damaged pages
        raise ValueError(f"damaged table: {error}") from None
    except (LookupError, TypeError, AttributeError) as error:  # of the footer, which has no sum
        raise ValueError(f"damaged table: {error!r} in its metadata") from None


def _side(parquet: pq.ParquetFile) -> int:
    features = json.loads(parquet.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    return int(features[TENSOR_COLUMN]["shape"][0])


def _schema(rows: pd.DataFrame, side: int) -> pa.Schema:
    import pyarrow as pa

    plain = pa.Schema.from_pandas(rows.iloc[:0], preserve_index=False)
    fields = [pa.field(field.name, _storable(field.type)) for field in plain]
    features: dict[str, Mapping[str, Any]] = {
        field.name: {"dtype": _hf_value(field.type), "_type": "Value"} for field in fields
    }
    features[TENSOR_COLUMN] = {"shape": [side, side], "dtype": "float32", "_type": "Array2D"}
    tensor = pa.field(
        TENSOR_COLUMN,
        pa.list_(pa.list_(pa.float32())),
        metadata={
            "ARROW:extension:name": _HF_ARRAY,
            "ARROW:extension:metadata": json.dumps([[side, side], "float32"]),
        },
    )
    metadata = {
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
        _ATTRS: json.dumps(rows.attrs).encode(),
    }
    schema = pa.schema([*fields, tensor], metadata=metadata)
    return schema.with_metadata({**metadata, _SUM: _sum_of(schema)})


def _sum_of(schema: pa.Schema) -> bytes:
    """sha256, hexadecimal, of its columns and metadata, itself not among them."""
    # The tensors' type is another where `datasets` is imported; it is in the metadata.
    columns = [(field.name, field.name != TENSOR_COLUMN and str(field.type)) for field in schema]
    metadata = sorted(item for item in schema.metadata.items() if item[0] != _SUM)
    return hashlib.sha256(repr((columns, metadata)).encode()).hexdigest().encode()


def _hf_value(kind: pa.DataType) -> str:
    """What `datasets` calls it; it knows Arrow's times by Arrow's own name."""
    name = str(kind)
    return name if name.startswith("timestamp") else _HF_VALUES.get(name, "string")


def _storable(kind: pa.DataType) -> pa.DataType:
    """Pandas' strings may be large ones, which `datasets` takes for another type; null: no rows."""
    import pyarrow as pa

    large = pa.types.is_large_string(kind) or pa.types.is_null(kind)
    return pa.string() if large else kind


def _arrow(rows: pd.DataFrame, tensors: NDArray[np.float32], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    count, side, _ = tensors.shape
    starts = np.arange(0, tensors.size + 1, side, dtype=np.int32)
    values = pa.array(np.ascontiguousarray(tensors).reshape(-1))
    lines = pa.ListArray.from_arrays(starts, values)
    squares = pa.ListArray.from_arrays(starts[: count + 1], lines)
    columns = [pa.array(rows[name], schema.field(name).type) for name in rows.columns]
    return pa.Table.from_arrays([*columns, squares], schema=schema)
