"""What the web UI shows of an asset: pictures, tables, columns and places as metadata.

A picture is Markdown with the image inside; the web UI shows it by [Show Markdown].
"""

import base64
from typing import TYPE_CHECKING, Any

from dagster import (
    CodeReferencesMetadataValue,
    LocalFileCodeReference,
    MarkdownMetadataValue,
    MetadataValue,
    PathMetadataValue,
    TableColumn,
    TableColumnDep,
    TableColumnLineage,
    TableMetadataValue,
    TableRecord,
    TableSchema,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dagster import AssetKey, RawMetadataValue
    from upath import UPath

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


def stored_at(path: "UPath | Path") -> PathMetadataValue:
    """Where a file is stored: its path here, or its s3:// address, which has no credentials.

    As Dagster's UPathIOManager says it of the values that it stores.
    """
    return MetadataValue.path(str(path))


def code_of(function: "Callable[..., Any]") -> "dict[str, RawMetadataValue]":
    """Where code stands, for an asset that no function here makes; the others say it themselves."""
    code = function.__code__
    reference = LocalFileCodeReference(
        file_path=code.co_filename, line_number=code.co_firstlineno, label=function.__name__
    )
    return {"dagster/code_references": CodeReferencesMetadataValue(code_references=[reference])}


def table(
    columns: "Sequence[Column]",
    *,
    made_from: "Mapping[AssetKey, Sequence[Column]] | None" = None,
    derived: "Mapping[str, tuple[AssetKey, Sequence[str]]] | None" = None,
) -> "dict[str, RawMetadataValue]":
    """What is known of an asset that is a table before it is made: columns, and their lineage.

    Args:
        columns: its own.
        made_from: the tables that it is made from, with their columns. A column comes from the
            one of the same name, in the first table that has it.
        derived: of a column that comes from others, the table and the names of those.
    """
    sources = dict(derived or {})
    for asset_key, others in (made_from or {}).items():
        theirs = {column.name for column in others}
        for column in columns:
            if column.name in theirs:
                sources.setdefault(column.name, (asset_key, [column.name]))
    metadata: dict[str, RawMetadataValue] = {"dagster/column_schema": schema(columns)}
    if sources:
        metadata["dagster/column_lineage"] = TableColumnLineage(
            {
                column: [TableColumnDep(asset_key, name) for name in names]
                for column, (asset_key, names) in sources.items()
            }
        )
    return metadata


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
