"""Tables of rows: their columns with units, and tables as Parquet. No Dagster.

What is in which table is said where its rows are made.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: with its unit, where it has one.
        dtype: pandas'.
        meaning: in words.
    """

    name: str
    dtype: str
    meaning: str


def table_of(columns: Sequence[Column], rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """A table of these rows, with the columns' dtypes; of none, a table without rows."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=[column.name for column in columns])
    return table.astype({column.name: column.dtype for column in columns})


def row_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, values by column name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def table_to_parquet(table: pd.DataFrame) -> bytes:
    """As pandas writes it, compressed, with its `attrs`."""
    return bytes(table.to_parquet(index=False, compression="zstd"))


def table_from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """As pandas reads it; only these columns, if any are named.

    Raises:
        ValueError: the file is damaged.
    """
    import pandas as pd

    try:
        return pd.read_parquet(io.BytesIO(data), columns=None if columns is None else [*columns])
    except OSError as error:  # pyarrow's, where the file breaks off
        raise ValueError(f"damaged table: {error}") from None
