"""Paths by URL, and writes that are whole or not there. What is written is not known here."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cygno_assets.storage.errors import named_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upath import UPath

    from cygno_assets.settings import Settings


_HALF_WRITTEN = ".partial"


def data_root(settings: Settings) -> UPath:
    """The folder or bucket prefix that everything is kept under."""
    from upath import UPath

    folder = data_folder(settings)
    return s3_path(settings, settings.data_url) if folder is None else UPath(folder)


def s3_path(settings: Settings, url: str) -> UPath:
    """A place in a bucket, `s3://bucket/key`, with what these settings open buckets by.

    It goes through obstore's fsspec, which is several times as fast as s3fs.
    """
    import obstore.fsspec
    from upath import UPath

    obstore.fsspec.register("s3")
    config: dict[str, Any] = {"region": settings.storage_s3_region}
    client: dict[str, Any] = {"timeout": "30s", "connect_timeout": "5s"}
    if settings.storage_s3_endpoint is not None:
        config |= {
            "endpoint": settings.storage_s3_endpoint,
            "virtual_hosted_style_request": False,
        }
        client["allow_http"] = settings.storage_s3_endpoint.startswith("http://")
    if settings.storage_s3_secret_access_key is not None:
        config |= {
            "access_key_id": settings.storage_s3_access_key_id,
            "secret_access_key": settings.storage_s3_secret_access_key.get_secret_value(),
        }
    if settings.storage_s3_ca_file is not None:
        client["root_certificate"] = settings.storage_s3_ca_file.read_text()
    # Retries inside a request are short; Dagster retries the rest.
    retries = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}
    return UPath(url, config=config, client_options=client, retry_config=retries)


def data_folder(settings: Settings) -> Path | None:
    """That folder, if it is on this machine; None if it is not."""
    url = settings.data_url
    if url.startswith("s3://"):
        return None
    return Path(url2pathname(urlsplit(url).path))  # UPath alone leaves %20 as it is


def local_path(path: UPath) -> Path | None:
    """The same path, if it is on this machine; None if it is not."""
    return Path(path.path) if path.protocol in {"", "file", "local"} else None


def file_names(folder: UPath) -> dict[str, str]:
    """The whole files of a folder: names by what stands before the suffix; of no folder, none.

    Raises:
        StoreError: the store does not say.
    """
    try:
        with _named_errors_of_stores(folder):
            # Those that begin with a dot are half written.
            return {path.stem: path.name for path in folder.iterdir() if path.name[0] != "."}
    except (FileNotFoundError, NotADirectoryError):  # the second is said of S3
        return {}


def sweep_half_written(root: UPath, older_than_s: float) -> int:
    """Deletes what a writer that was killed has left; returns how many files.

    Args:
        root: of all files.
        older_than_s: younger ones may still be written.
    """
    folder = local_path(root)
    if folder is None:
        return 0  # on S3 nothing is there before it is whole
    before = time.time() - older_than_s
    swept = 0
    for path in folder.rglob(f".*{_HALF_WRITTEN}"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()
                swept += 1
    return swept


def write_whole(path: UPath, data: bytes) -> None:
    """Writes a file so that whoever reads it sees all of it, or what was there before.

    Raises:
        OSError: it cannot be written, on this machine.
        StoreError: the store does not take it.
    """
    if local_path(path) is None:
        with _named_errors_of_stores(path):
            path.fs.pipe_file(path.path, data)
        return
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def whole_file(path: UPath) -> Iterator[Path]:
    """A file of this machine to write to, that becomes `path` when the block ends well.

    Whoever reads `path` sees all of it, or what was there before. Locally by way of a temporary
    name, flushed to the disk before it is renamed, so that a power cut cannot leave an empty file
    under the right name; on S3 a put is whole by itself.
    """
    target = local_path(path)
    folder = None if target is None else target.parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # A dot first, so that no glob for images or tensors finds it.
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_HALF_WRITTEN)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        if target is not None:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        else:
            with _named_errors_of_stores(path):
                path.fs.put_file(name, path.path)
    finally:
        temporary.unlink(missing_ok=True)


def read_whole(path: UPath) -> bytes:
    """A file's bytes, in one request.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store does not deliver.
    """
    with _named_errors_of_stores(path):
        return bytes(path.fs.cat_file(path.path))


def read_if_there(path: UPath) -> bytes | None:
    """A file's bytes; None if there is no such file.

    Raises:
        StoreError: the store does not deliver.
    """
    try:
        return read_whole(path)
    except FileNotFoundError:
        return None


def _named_errors_of_stores(path: UPath) -> AbstractContextManager[None]:
    """Of this machine's files the errors are as they are."""
    return named_errors(path, FileNotFoundError) if local_path(path) is None else nullcontext()
