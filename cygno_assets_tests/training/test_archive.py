"""The archive's refusals, on archives made for each, and its reading."""

from __future__ import annotations

import tracemalloc
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygno_assets.training.archive import Archive, ArchiveError, ArchiveLimits
from cygno_assets_tests.training.archives import (
    link,
    many_members,
    named,
    overlapping,
    with_directory_field,
    zipped,
)
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGE = REAL_IMAGES[0].read_bytes()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda: b"<html>moved</html>", "not a zip", id="html"),
        pytest.param(lambda: b"", "not a zip", id="empty"),
        pytest.param(lambda: zipped(("a.png", IMAGE))[:-30], "truncated", id="cut at its end"),
        pytest.param(lambda: zipped(("a.png", IMAGE))[:9000], "truncated", id="cut in half"),
        pytest.param(lambda: named("/etc/passwd"), "'/etc/passwd' has an absolute", id="absolute"),
        pytest.param(lambda: named("C:/a.png"), "has an absolute path", id="drive"),
        pytest.param(lambda: named("NR/../../a.png"), "has '..' in its path", id="dots"),
        pytest.param(lambda: named("NR\\6_keV\\a.png"), "has a backslash", id="backslash"),
        pytest.param(lambda: named("a\0.png"), "control character", id="NUL"),
        pytest.param(link, "is a symbolic link", id="link"),
        pytest.param(lambda: zipped(("a", b"1"), ("a", b"2")), "'a' is there twice", id="twice"),
        pytest.param(lambda: with_directory_field(8, 1), "is encrypted", id="encrypted"),
        pytest.param(
            lambda: zipped(("a.png", IMAGE), compression=zipfile.ZIP_BZIP2),
            "has compression method 12",
            id="compression",
        ),
        pytest.param(
            lambda: zipped(("a.png", bytes(10**6)), compression=zipfile.ZIP_DEFLATED),
            "claims to unfold",
            id="bomb",
        ),
        pytest.param(overlapping, "its members overlap", id="overlap"),
    ],
)
def test_what_is_no_archive_of_ours_is_refused_by_name(
    tmp_path: Path, make: Callable[[], bytes], why: str
) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(make())
    with pytest.raises(ArchiveError, match=r"set\.zip") as refused:
        Archive(path)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (ArchiveLimits(max_members=1), "2 members are more than the 1 allowed"),
        (ArchiveLimits(max_member_bytes=10), "more than the 10 allowed"),
        (ArchiveLimits(max_total_bytes=len(IMAGE)), f"more than the {len(IMAGE)} allowed"),
    ],
)
def test_limits_are_kept(tmp_path: Path, limits: ArchiveLimits, why: str) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(zipped(("a.png", IMAGE), ("b.png", IMAGE)))
    with pytest.raises(ArchiveError) as refused:
        Archive(path, limits)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(many_members(150_000, zip64=True), "150000 members are more", id="zip64"),
        pytest.param(many_members(60_000), "60000 members are more", id="claimed"),
        pytest.param(
            many_members(150_000, claimed=1),
            "bytes of directory are more than the 512000",
            id="large",
        ),
        pytest.param(
            many_members(10_000, claimed=1), "1001 members are more than the 1000", id="lying"
        ),
    ],
)
def test_a_directory_is_refused_before_it_is_read(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=why):
            Archive(path, ArchiveLimits(max_members=1000))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zip64", [False, True])
def test_the_directories_of_these_tests_are_such(tmp_path: Path, *, zip64: bool) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(many_members(5, zip64=zip64))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 5


def test_members_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    folder = zipfile.ZipInfo("NR/")
    path.write_bytes(zipped((folder, b""), ("NR/a.png", IMAGE), ("b.txt", b"hello")))
    with Archive(path) as archive:
        assert archive.members == ["NR/a.png", "b.txt"]
        assert archive.read("NR/a.png") == IMAGE
        assert archive.checksum("NR/a.png") == zlib.crc32(IMAGE)
        assert list(archive.verify()) == archive.members
        with pytest.raises(KeyError):
            archive.read("c.png")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_named(tmp_path: Path, compression: int) -> None:
    data = bytearray(zipped(("a.png", IMAGE), ("b.png", IMAGE), compression=compression))
    data[data.index(b"b.png") + 2000] ^= 0xFF
    path = tmp_path / "set.zip"
    path.write_bytes(data)
    with Archive(path) as archive:
        assert archive.read("a.png") == IMAGE
        with pytest.raises(ArchiveError, match=r"set\.zip: b\.png: damaged"):
            archive.read("b.png")
        with pytest.raises(ArchiveError, match=r"b\.png"):
            list(archive.verify())


GOOD = zipped(("NR/6_keV/a.png", b"123" * 50), ("ER/1_keV/b.png", b"45"), compression=8)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6))
@settings(max_examples=300, deadline=None)
def test_no_damage_raises_anything_but_the_named_error(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(GOOD)
    for place, value in damage:
        data[place] = value
    path = tmp_path_factory.mktemp("damaged") / "set.zip"
    path.write_bytes(data)
    try:
        with Archive(path) as archive:
            for member in archive.verify():
                assert member in archive.members
    except ArchiveError:
        assert data != GOOD
