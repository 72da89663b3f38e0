"""The archive in a bucket of a real S3 server: kept, used where it is, and read by ranges."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygno_assets.settings import load_settings
from cygno_assets.storage.errors import ObjectChangedError
from cygno_assets.storage.locations import data_root, write_whole
from cygno_assets.storage.objects import StoredObject
from cygno_assets.training.archive import (
    Archive,
    ArchiveChangedError,
    ArchiveError,
    ArchiveLimits,
)
from cygno_assets.training.fetch import (
    FetchedArchive,
    FetchError,
    ServerUnavailableError,
    fetch_archive,
)
from cygno_assets.training.kept import check_object, keep, object_version
from cygno_assets_tests.storage.conftest import s3_settings
from cygno_assets_tests.training.archives import overlapping, simulated_png, zipped
from cygno_assets_tests.wire import REAL_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Buffer
    from upath import UPath

    from cygno_assets.daq.simulator.bucket import BucketSettings

IMAGE = REAL_IMAGES[0].read_bytes()
MANY = zipped(*((f"NR/6_keV/{n:03}.png", simulated_png(n % 20)) for n in range(60)))


@pytest.fixture
def folder(store_bucket: BucketSettings, tmp_path: Path) -> UPath:
    """A place of this test's own in the bucket."""
    return data_root(s3_settings(store_bucket)) / tmp_path.name


def stored(folder: UPath, data: bytes, name: str = "set.zip") -> StoredObject:
    write_whole(folder / name, data)
    return StoredObject.at(folder / name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that were asked of the server, each a request that went there."""
    ranges: list[tuple[int, int]] = []
    read = StoredObject.read

    def noted(self: StoredObject, start: int, end: int) -> Buffer:
        ranges.append((start, end))
        return read(self, start, end)

    monkeypatch.setattr(StoredObject, "read", noted)
    return ranges


# --- reading by ranges


def test_a_member_is_one_request_and_the_rest_is_not_fetched(
    folder: UPath, asked: list[tuple[int, int]]
) -> None:
    of = stored(folder, MANY)
    with Archive(of) as archive:
        wanted = list(archive.members)[10:14]
        assert len(asked) == 1  # the directory
        assert asked[0] == (of.size_bytes - 128 * 1024, of.size_bytes)
        for member in wanted:
            assert archive.read(member) == zipfile.ZipFile(io.BytesIO(MANY)).read(member)
    assert len(asked) == 1 + len(wanted)
    fetched = sum(end - start for start, end in asked[1:])
    assert fetched == sum(len(simulated_png(n)) + 30 + len(wanted[0]) for n in range(10, 14))


def test_a_directory_larger_than_the_end_that_is_fetched_takes_one_request_more(
    folder: UPath, asked: list[tuple[int, int]]
) -> None:
    names = [f"NR/6_keV/{'x' * 150}{n:06}.png" for n in range(1500)]
    data = zipped(*((name, name.encode()) for name in names))
    with Archive(stored(folder, data)) as archive:
        assert archive.members == names
        assert len(asked) == 2
        assert archive.read(names[700]) == names[700].encode()
    assert len(asked) == 3


def test_threads_read_side_by_side(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    read, together = StoredObject.read, Barrier(4, timeout=60)

    with Archive(stored(folder, MANY)) as archive:
        members = list(archive.members)[:20] * 2

        def all_at_once(self: StoredObject, start: int, end: int) -> Buffer:
            together.wait()  # breaks unless four are under way
            return read(self, start, end)

        monkeypatch.setattr(StoredObject, "read", all_at_once)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(archive.read, members))
        assert archive.at_once >= 4
    local = zipfile.ZipFile(io.BytesIO(MANY))
    assert found == [local.read(member) for member in members]


NAMES = st.text("abcä/. _-0", min_size=1, max_size=12)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Zips as programs write them: streamed or not, with zip64, comments and extra fields."""
    file = io.BytesIO()
    file.write(draw(st.binary(max_size=40)))  # as of a self-extracting one
    streamed = draw(st.booleans())

    class Pipe(io.RawIOBase):  # cannot be sought in: zipfile writes data descriptors
        def writable(self) -> bool:
            return True

        def write(self, data: Buffer) -> int:
            return file.write(data)

    names = draw(st.lists(NAMES, unique=True, max_size=6))
    with zipfile.ZipFile(Pipe() if streamed else file, "w") as archive:  # type: ignore[arg-type]  # a RawIOBase will do
        archive.comment = draw(st.binary(max_size=30))
        for name in names:
            info = zipfile.ZipInfo(name)
            info.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            extra = draw(st.binary(max_size=20))
            info.extra = struct.pack("<HH", 0x6375, len(extra)) + extra if extra else b""
            with archive.open(info, "w", force_zip64=draw(st.booleans())) as member:
                member.write(draw(st.binary(max_size=300)))
    return file.getvalue()


def outcome(place: Path | StoredObject) -> object:
    """What reading everything comes to."""
    try:
        with Archive(place) as archive:
            members: dict[str, object] = {}
            for member in archive.members:
                try:
                    members[member] = archive.read(member)
                except ArchiveError as error:
                    members[member] = str(error)
            return members
    except ArchiveError as error:
        return str(error)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=archives(), damage=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3))
def test_by_ranges_it_is_what_it_is_as_a_file(
    folder: UPath, tmp_path: Path, data: bytes, damage: list[tuple[int, int]]
) -> None:
    damaged = bytearray(data)
    for place, value in damage:
        damaged[place % len(data)] = value
    path = tmp_path / "set.zip"
    path.write_bytes(damaged)
    assert outcome(stored(folder, bytes(damaged))) == outcome(path)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=archives(), tail=st.integers(1, 64))
def test_nor_does_it_matter_how_much_of_its_end_is_fetched(
    folder: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, tail: int
) -> None:
    monkeypatch.setattr("cygno_assets.storage.objects._TAIL_BYTES", tail)
    path = tmp_path / "set.zip"
    path.write_bytes(data)
    assert outcome(stored(folder, data)) == outcome(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "set.zip: not a zip"),
        (b"<html>moved</html>", "set.zip: not a zip"),
        (MANY[:-1000], "set.zip: truncated"),
        (overlapping(), "set.zip: its members overlap"),
    ],
    ids=["empty", "html", "truncated", "overlapping"],
)
def test_what_is_no_archive_of_ours_is_refused_by_name(
    folder: UPath, data: bytes, why: str
) -> None:
    of = stored(folder, data)
    with pytest.raises(ArchiveError) as refused:
        Archive(of)
    assert str(refused.value).startswith(why)


def test_a_gap_between_members_is_not_fetched(folder: UPath, asked: list[tuple[int, int]]) -> None:
    data = zipped(("a.png", IMAGE), ("gap", bytes(2_000_000)), ("b.png", IMAGE))
    # Its entry in the directory is taken out, so that nothing says what is there.
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    end = data.index(b"PK\x05\x06")
    size = data.index(b"PK\x01\x02", entry + 1) - entry
    fields = bytearray(data[end:])
    struct.pack_into("<HHI", fields, 8, 2, 2, struct.unpack_from("<I", fields, 12)[0] - size)
    with Archive(stored(folder, data[:entry] + data[entry + size : end] + fields)) as archive:
        assert archive.read("a.png") == IMAGE
    assert sum(end - start for start, end in asked) < 500_000


def test_another_object_is_noticed_whenever_it_comes(folder: UPath) -> None:
    of = stored(folder, MANY)
    with Archive(of) as archive:
        member = archive.members[0]
        archive.read(member)
        stored(folder, MANY[:-1])
        for ask in (lambda: archive.read(member), lambda: Archive(of)):
            with pytest.raises(ArchiveChangedError, match="not as it was when it was checked"):
                ask()
        stored(folder, MANY)  # the same bytes are the same version
        assert archive.read(member) == simulated_png(0)
        of.path.unlink()
        with pytest.raises(ArchiveChangedError, match=r"set\.zip: gone, or another object"):
            archive.read(member)


# --- checked where it is


def test_it_is_checked_where_it_is_and_not_kept_here(
    folder: UPath, tmp_path: Path, asked: list[tuple[int, int]]
) -> None:
    of = stored(folder, MANY)
    home = tmp_path / "training"
    (home / "checking").mkdir(parents=True)
    (home / "checking" / "half").write_bytes(b"of one that was killed")
    seen: list[tuple[int, int | None]] = []
    found, checked = check_object(of.path, home, progress=lambda *now: seen.append(now))
    assert (found, checked.size_bytes) == (of, len(MANY))
    assert seen[-1] == (len(MANY), len(MANY))
    assert [path.name for path in home.iterdir()] == ["lock"]
    assert sum(end - start for start, end in asked) == len(MANY)
    assert check_object(of.path, home, sha256=checked.sha256.upper())[1] == checked
    assert object_version(of.path) == f"{of.path} {of.etag}"


@pytest.mark.parametrize(
    ("data", "options", "why"),
    [
        (b"<html>", {}, "set.zip: not a zip"),
        (MANY[:-1000], {}, "set.zip: truncated"),
        (MANY.replace(simulated_png(3)[500:600], bytes(100)), {}, "NR/6_keV/003.png: damaged"),
        (MANY, {"sha256": 64 * "0"}, "set.zip: sha256 is "),
        (MANY, {"limits": ArchiveLimits(max_members=3)}, "60 members are more than the 3"),
    ],
    ids=["html", "truncated", "damaged", "sha256", "limits"],
)
def test_what_is_refused_here_is_refused_there(
    folder: UPath, tmp_path: Path, data: bytes, options: dict[str, object], why: str
) -> None:
    of = stored(folder, data)
    with pytest.raises(ArchiveError) as refused:
        check_object(of.path, tmp_path, **options)  # type: ignore[arg-type]  # of several kinds
    assert why in str(refused.value)
    assert not (tmp_path / "checking").exists()


def test_too_large_or_missing_is_said(folder: UPath, tmp_path: Path) -> None:
    of = stored(folder, MANY)
    with pytest.raises(FetchError, match="larger than 1000 bytes"):
        check_object(of.path, tmp_path, max_bytes=1000)
    with pytest.raises(FetchError, match=r"missing\.zip: there is no such object"):
        object_version(folder / "missing.zip")


def test_one_that_is_replaced_while_it_is_read_is_not_taken(folder: UPath, tmp_path: Path) -> None:
    of = stored(folder, MANY + bytes(20_000_000))

    def replace(*_: object) -> None:
        write_whole(of.path, MANY)

    with pytest.raises(ServerUnavailableError, match="replaced while it was read"):
        check_object(of.path, tmp_path, progress=replace)


def test_no_error_shows_what_opens_the_bucket(
    store_bucket: BucketSettings, tmp_path: Path, folder: UPath
) -> None:
    fetched = fetched_archive(tmp_path / "set.zip", MANY)
    stored(folder, MANY)
    given_ = s3_settings(store_bucket)
    wrong = {
        "key": {"storage_s3_secret_access_key": "hunter2" * 5},
        "user": {"storage_s3_access_key_id": "hunter2", "storage_s3_secret_access_key": "hunter2"},
        "bucket": {"storage_url": "s3://no-such-bucket/x"},
        "server": {"storage_s3_endpoint": "https://127.0.0.1:1"},
        "authority": {"storage_s3_ca_file": None},
    }
    for what, changed in wrong.items():
        settings_ = load_settings(given_.model_dump(exclude_defaults=True) | changed)
        there = data_root(settings_) / tmp_path.name
        kind = ServerUnavailableError if what in {"server", "authority"} else FetchError
        calls: list[Callable[[], object]] = [
            lambda there=there: object_version(there / "set.zip"),  # type: ignore[misc]  # mypy cannot type the default
            lambda there=there: check_object(there / "set.zip", tmp_path / "x"),  # type: ignore[misc]
            lambda there=there: keep(fetched, there, None),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(kind) as caught:
                call()
            assert (type(caught.value) is ServerUnavailableError) == (kind is not FetchError)
            for secret in ("hunter2", store_bucket.access_key_id, store_bucket.secret_access_key):
                assert secret not in str(caught.value)
            assert caught.value.__cause__ is None


# --- kept


def fetched_archive(path: Path, data: bytes) -> FetchedArchive:
    path.write_bytes(data)
    return fetch_archive(str(path), path.parent)


def copies(folder: UPath) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_copy_is_kept_under_its_digest_once(folder: UPath, tmp_path: Path) -> None:
    first = fetched_archive(tmp_path / "set.zip", MANY)
    kept = keep(first, folder, None)
    assert kept.path.name == f"training_set-{first.sha256}.zip"
    assert kept == StoredObject.at(kept.path)
    assert kept.path.read_bytes() == MANY
    written = kept.path.stat().st_mtime
    first.path.unlink()  # who would upload it again, would fail
    assert keep(first, folder, None) == kept
    assert kept.path.stat().st_mtime == written


def test_a_copy_that_is_cut_is_replaced(folder: UPath, tmp_path: Path) -> None:
    fetched = fetched_archive(tmp_path / "set.zip", MANY)
    kept = keep(fetched, folder, None)
    write_whole(kept.path, MANY[:100])
    assert keep(fetched, folder, None) == kept
    assert kept.path.read_bytes() == MANY


def test_the_one_before_is_kept_and_no_other(folder: UPath, tmp_path: Path) -> None:
    archives_ = [zipped((f"{n}.png", IMAGE)) for n in range(4)]
    before: str | None = None
    names = []
    for data in archives_:
        kept = keep(fetched_archive(tmp_path / "set.zip", data), folder, before)
        before = str(kept.path)
        names.append(kept.path.name)
        assert copies(folder) == set(names[-2:])


def test_what_is_under_the_name_is_what_the_name_says(folder: UPath, tmp_path: Path) -> None:
    fetched = fetched_archive(tmp_path / "set.zip", bytes(12_000_000) + MANY)
    fetched.path.write_bytes(MANY)
    with pytest.raises(ArchiveChangedError, match=r"set\.zip: another file"):
        keep(fetched, folder, None)
    assert not (folder / f"training_set-{fetched.sha256}.zip").exists()


def test_a_version_is_read_or_none(folder: UPath) -> None:
    of = stored(folder, bytes(range(256)) * 100_000)
    assert Counter(b"".join(of.pieces())) == Counter(bytes(range(256)) * 100_000)
    assert bytes(of.read(1000, 1010)) == bytes(range(1000 % 256, 1000 % 256 + 10))
    stored(folder, b"short")
    with pytest.raises(ObjectChangedError):
        of.read(1000, 1010)
