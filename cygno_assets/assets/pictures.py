"""Pictures in metadata: Markdown with the image inside. The web UI shows it by [Show Markdown]."""

import base64

from dagster import MarkdownMetadataValue, MetadataValue


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
