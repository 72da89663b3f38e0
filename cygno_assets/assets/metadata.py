"""What the web UI shows of an asset: pictures and tables as metadata.

A picture is Markdown with the image inside; the web UI shows it by [Show Markdown].
"""

import base64
from typing import TYPE_CHECKING, Any

from dagster import (
    MarkdownMetadataValue,
    MetadataValue,
    TableColumn,
    TableMetadataValue,
    TableRecord,
    TableSchema,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cygno_assets.storage.tables import Column


def picture(media_type: str, data: bytes, what: str, caption: str = "") -> MarkdownMetadataValue:
    """An image as metadata.

    Args:
        media_type: `image/png` or `image/jpeg`.
        data: the file; it lands in Dagster's event log, so small.
        what: it shows, for whoever cannot see it.
        caption: a line below it.
    """
    text = f"![{what}](data:{media_type};base64,{base64.b64encode(data).decode()})"
    return MetadataValue.md(f"{text}\n\n{caption}" if caption else text)


def figure(png: bytes, what: str) -> MarkdownMetadataValue:
    """A figure as metadata, in a copy that is small enough."""
    from cygno_assets.physics.figures import small_copy

    return picture(*small_copy(png), what)


def schema(columns: "Sequence[Column]") -> TableSchema:
    """A table's columns, with their units."""
    return TableSchema(
        columns=[TableColumn(column.name, column.dtype, column.meaning) for column in columns]
    )


def records(columns: "Sequence[Column]", rows: "Sequence[Sequence[Any]]") -> TableMetadataValue:
    """A table as metadata."""
    names = [column.name for column in columns]
    return MetadataValue.table(
        records=[TableRecord(dict(zip(names, row, strict=True))) for row in rows],
        schema=schema(columns),
    )
