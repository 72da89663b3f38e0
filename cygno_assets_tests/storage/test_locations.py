"""Files are whole or not there: on a local disk, after kill -9, and on a real S3 server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest
from upath import UPath

from cygno_assets.settings import load_settings
from cygno_assets.storage.errors import StoreRefusedError
from cygno_assets.storage.locations import (
    data_root,
    file_names,
    read_if_there,
    read_whole,
    write_whole,
)
from cygno_assets_tests.storage.conftest import s3_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cygno_assets.daq.simulator.bucket import BucketSettings


# --- wherever they are kept


@pytest.mark.parametrize("data", [b"", b"\0\xff\r\n", os.urandom(1_000_000)], ids=len)
def test_what_is_written_is_read(root: UPath, data: bytes) -> None:
    path = root / "raw_image" / "event.jpg"

    write_whole(path, data)

    assert read_whole(path) == data
    assert read_if_there(path) == data
    assert [entry.name for entry in path.parent.iterdir()] == ["event.jpg"]


@pytest.mark.parametrize("then", [b"longer than before", b"short", b"before"])
def test_writing_again_replaces(root: UPath, then: bytes) -> None:
    path = root / "event.jpg"

    write_whole(path, b"before")
    write_whole(path, then)

    assert read_whole(path) == then


def test_what_is_not_there(root: UPath) -> None:
    assert read_if_there(root / "nowhere" / "event.jpg") is None
    with pytest.raises(FileNotFoundError):
        read_whole(root / "nowhere" / "event.jpg")


def test_the_files_of_a_folder_by_name_without_those_half_written(root: UPath) -> None:
    assert file_names(root / "nowhere") == {}
    write_whole(root / "raw_image" / "event.jpg", b"image")
    write_whole(root / "raw_image" / ".event.partial", b"im")
    assert file_names(root / "raw_image") == {"event": "event.jpg"}


# --- on a local disk


@pytest.mark.parametrize("name", ["plain", "with space", "ünïcode", "100%", "a#b?c"])
def test_the_data_are_in_the_home_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    home = tmp_path / name

    write_whole(data_root(load_settings({"home": home})) / "event.jpg", b"image")

    assert (home / "data" / "event.jpg").read_bytes() == b"image"
    assert list(tmp_path.iterdir()) == [home]


def test_the_data_are_where_the_url_says(tmp_path: Path) -> None:
    root = data_root(load_settings({"storage_url": f"file://{tmp_path}/elsewhere/"}))

    write_whole(root / "event.jpg", b"image")

    assert (tmp_path / "elsewhere" / "event.jpg").read_bytes() == b"image"


def test_others_may_read_the_file(tmp_path: Path) -> None:
    write_whole(UPath(tmp_path / "event.jpg"), b"image")

    assert (tmp_path / "event.jpg").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = UPath(tmp_path / "event.jpg")
    write_whole(path, b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    # A fault put in: a test has no disk that it could fill.
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after")

    assert read_whole(path) == b"before"
    assert os.listdir(tmp_path) == ["event.jpg"]  # noqa: PTH208 – hidden files too


def test_a_folder_in_the_way_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "event.jpg" / "in the way").mkdir(parents=True)

    with pytest.raises(OSError, match=r"event\.jpg"):
        write_whole(UPath(tmp_path / "event.jpg"), b"image")

    assert [entry.name for entry in tmp_path.iterdir()] == ["event.jpg"]


WRITER = """
import sys
from upath import UPath
from cygno_assets.storage.locations import write_whole
while True:
    for letter in b"ab":
        write_whole(UPath(sys.argv[1]), bytes([letter]) * 4_000_000)
        print("written", flush=True)
"""
WHOLE = {letter * 4_000_000 for letter in (b"a", b"b")}


@pytest.mark.parametrize("reads", [1, 4, 9])
def test_kill_9_in_the_middle_of_a_write_leaves_a_whole_file(tmp_path: Path, reads: int) -> None:
    path = tmp_path / "event.jpg"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        # How long the reads take decides where in a write the signal arrives.
        seen = [path.read_bytes() in WHOLE for _ in range(reads)]
        writer.send_signal(signal.SIGKILL)

    assert writer.returncode == -signal.SIGKILL
    assert seen == [True] * reads
    assert path.read_bytes() in WHOLE
    # What an interrupted write leaves behind is no image to anyone.
    assert list(tmp_path.glob("*.jpg")) == [path]
    write_whole(UPath(path), b"next")
    assert path.read_bytes() == b"next"


# --- on S3


def test_wrong_credentials_say_so_and_show_no_secret(store_bucket: BucketSettings) -> None:
    root = data_root(s3_settings(store_bucket, storage_s3_secret_access_key="hunter2"))
    calls: list[Callable[[], object]] = [
        lambda: write_whole(root / "event.jpg", b"image"),
        lambda: read_whole(root / "event.jpg"),
        lambda: read_if_there(root / "event.jpg"),
    ]

    for call in calls:
        with pytest.raises(StoreRefusedError, match="access denied") as caught:
            call()
        shown = "".join(traceback.format_exception(caught.value))
        for secret in ("hunter2", store_bucket.access_key_id, "AWS4-HMAC", "StringToSign"):
            assert secret not in shown
    assert "hunter2" not in repr(root)


def test_the_credentials_of_another_bucket_open_nothing(
    store_bucket: BucketSettings, daq_bucket: BucketSettings
) -> None:
    settings = s3_settings(
        store_bucket,
        storage_s3_access_key_id=daq_bucket.access_key_id,
        storage_s3_secret_access_key=daq_bucket.secret_access_key,
    )

    with pytest.raises(StoreRefusedError, match="access denied") as caught:
        write_whole(data_root(settings) / "event.jpg", b"image")
    assert daq_bucket.secret_access_key not in "".join(traceback.format_exception(caught.value))
