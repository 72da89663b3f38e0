"""`cygno-assets show`: one event's whole story, from whatever still knows of it.

Here belong gathering and telling it. Inbox, Dagster and catalogue are asked each for itself: none
of them has to run, or to remember.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

from cygno_assets.daq.announcement import NotAnEventError, is_event_id, md5_in, parse_announcement
from cygno_assets.daq.download import content_md5, span
from cygno_assets.daq.inbox import Inbox, InboxUnavailableError
from cygno_assets.services.dagster_instance import dagster_instance
from cygno_assets.services.process import ServiceError
from cygno_assets.settings import SettingsError
from cygno_assets.storage import event_tables
from cygno_assets.storage.locations import data_root, read_if_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from dagster import DagsterInstance
    from upath import UPath

    from cygno_assets.settings import Settings

T = TypeVar("T")
_NEAR_SHOWN = 5
_VERSIONS = "dagster/"
_INPUT_VERSIONS = f"{_VERSIONS}input_data_version/"
_NO_VERSION = "INITIAL"  # Dagster's word for it


@dataclass
class Story:
    """What is known of one event; times in UTC.

    Attributes:
        event_id: which.
        announcements: in the inbox, the oldest first.
        runs: that Dagster knows, the oldest first.
        lineage: of each asset, what its newest materialization says.
        files: path, bytes, and whether the content is the one it should be.
        catalogue: its row; None if it has none.
        notes: what could not be asked, and why.
    """

    event_id: str
    announcements: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    lineage: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    catalogue: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def run_show(
    settings: Settings,
    name: str,
    say: Callable[[str], None],
    *,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Tells an event's story, and draws it.

    Args:
        settings: whose home and storage are looked at.
        name: of the event, or a beginning that no other has.
        say: told each line.
        picture: where to put the picture; None is `<event>.png` in the current folder.
        as_json: as one JSON object.

    Raises:
        ServiceError: there is no such event, or several begin so; or the picture cannot be written.
        ValueError: a file of the catalogue is damaged.
    """
    from pathlib import Path

    story = gather(settings, name)
    target = picture or Path(f"{story.event_id}.png")
    png = _picture(settings, story)
    if png is not None:
        try:
            target.write_bytes(png)
        except OSError as error:
            raise ServiceError(f"cannot write {target}: {error.strerror}") from None
    if as_json:
        drawn = None if png is None else str(target)
        say(json.dumps(asdict(story) | {"picture": drawn}, default=_as_text))
        return
    for line in _told(story):
        say(line)
    none = "none, for its image is not stored, or cannot be decoded"
    say(_line("picture", none if png is None else target))


def gather(settings: Settings, name: str) -> Story:
    """What is known of an event.

    Args:
        settings: whose home and storage are looked at.
        name: of the event, or a beginning that no other has.

    Raises:
        ServiceError: there is no such event, or several begin so.
        ValueError: a file of the catalogue is damaged.
    """
    root = data_root(settings)
    inbox = Inbox(settings.resolve_inbox_url)
    nothing_ran = not settings.dagster_state.is_dir()
    with nullcontext() if nothing_ran else dagster_instance(settings) as instance:
        story = Story(_resolved(name, root, inbox, instance))
        if instance is not None:
            _ask_dagster(story, instance)
    if nothing_ran:
        story.notes.append(f"Dagster has run nothing in {settings.home} yet")
    elif not story.runs:
        story.notes.append("Dagster knows of no run of it (any more)")
    _ask_inbox(story, inbox, settings)
    story.catalogue = event_tables.find_event(root, story.event_id)
    _look_at_files(story, root)
    return story


def _resolved(name: str, root: UPath, inbox: Inbox, instance: DagsterInstance | None) -> str:
    """The event of this name, or the only one that begins so.

    Raises:
        ServiceError: there is none, or there are several.
    """
    from cygno_assets.partitions import daq_event_partitions

    partitions = str(daq_event_partitions.name)
    if is_event_id(name):
        announced = _from(lambda: inbox.newest_announcement(name))
        held = announced is not None or event_tables.find_event(root, name) is not None
        if held or (instance is not None and instance.has_dynamic_partition(partitions, name)):
            return name
    known = event_tables.events_held(root)
    known |= set(_from(lambda: inbox.announced_until(inbox.state().last_sequence)[0]) or [])
    if instance is not None:
        known |= set(instance.get_dynamic_partitions(partitions))
    begin_so = sorted(event for event in known if event.startswith(name))
    if len(begin_so) == 1:
        return begin_so[0]
    near = begin_so or get_close_matches(name, known, n=_NEAR_SHOWN)
    shown = ", ".join(near[:_NEAR_SHOWN])
    if begin_so:
        raise ServiceError(f"{len(begin_so)} events begin with {name!r}: {shown}, …")
    raise ServiceError(f"no event {name!r} is known" + (f"; did you mean {shown}?" if near else ""))


def _from(ask: Callable[[], T]) -> T | None:
    """What the inbox answers; None if none runs."""
    try:
        return ask()
    except (InboxUnavailableError, SettingsError):
        return None


def _ask_inbox(story: Story, inbox: Inbox, settings: Settings) -> None:
    try:
        messages = inbox.announcements(story.event_id)
    except (InboxUnavailableError, SettingsError) as error:
        story.notes.append(f"without its announcements: {error}")
        return
    for message in messages:
        found: dict[str, Any] = {
            "stream_sequence": message.sequence,
            "announced": message.received,
        }
        try:
            announcement = parse_announcement(
                message.payload,
                timezone=ZoneInfo(settings.daq_timezone),
                names_without_md5=settings.names_without_md5,
            )
        except NotAnEventError as error:
            found["unreadable"] = f"{error}"
        else:
            expires = announcement.url_expires
            found |= {
                "acquired": announcement.acquired.astimezone(UTC),
                "source": announcement.source,
                "url_expires": expires,
                "url_expired": None if expires is None else expires <= datetime.now(UTC),
            }
        story.announcements.append(found)
    if not messages:
        story.notes.append("the inbox holds no announcement of it (any more)")


def _ask_dagster(story: Story, instance: DagsterInstance) -> None:
    from dagster import AssetRecordsFilter, DagsterRunStatus, RunsFilter

    from cygno_assets.names import PARTITION_TAG, PREPROCESSED_TENSOR, RAW_IMAGE
    from cygno_assets.records.history import attempt_of, failure_kind, reason_of

    records = instance.get_run_records(RunsFilter(tags={PARTITION_TAG: story.event_id}))
    for record in reversed(records):
        run, started, ended = record.dagster_run, record.start_time, record.end_time
        took = None if started is None or ended is None else round(ended - started, 3)
        story.runs.append(
            {
                "run_id": run.run_id,
                "status": run.status.value.lower(),
                "started": None if started is None else datetime.fromtimestamp(started, UTC),
                "took_s": took,
                "attempt": attempt_of(run),
            }
        )
        if run.status in {DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}:
            story.runs[-1] |= {"kind": failure_kind(run), "reason": reason_of(instance, run)}
    for key in (RAW_IMAGE, PREPROCESSED_TENSOR):
        page = instance.fetch_materializations(
            AssetRecordsFilter(key, asset_partitions=[story.event_id]), limit=1
        )
        for entry in page.records:
            made = entry.asset_materialization
            tags = (made.tags if made is not None else None) or {}
            story.lineage[key.to_user_string()] = {
                "materialized": datetime.fromtimestamp(entry.timestamp, UTC),
                "run_id": entry.run_id,
                "data_version": tags.get(f"{_VERSIONS}data_version"),
                "code_version": tags.get(f"{_VERSIONS}code_version"),
                "made_from": {
                    name.removeprefix(_INPUT_VERSIONS): _version(story, name, version)
                    for name, version in tags.items()
                    if name.startswith(_INPUT_VERSIONS)
                },
            }


def _version(story: Story, tag: str, version: str) -> str | None:
    """The version of what an asset was made from: of a partition Dagster keeps a hash of it.

    None where the input has no versions, as announcements have none.
    """
    now = story.lineage.get(tag.removeprefix(_INPUT_VERSIONS), {}).get("data_version") or ""
    if version == hashlib.sha256(now.encode()).hexdigest():
        return str(now)
    return None if version == _NO_VERSION else f"of another version (sha256 {version})"


def _look_at_files(story: Story, root: UPath) -> None:
    from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE
    from cygno_assets.storage.io_managers import RawImageIOManager, TensorIOManager

    for key, manager in (
        (RAW_IMAGE, RawImageIOManager(root)),
        (PREPROCESSED_TENSOR, TensorIOManager(root)),
    ):
        path = manager.path(key, story.event_id)
        data = read_if_there(path)
        found: dict[str, Any] = {
            "path": str(path),
            "present": data is not None,
            "size_bytes": None if data is None else len(data),
        }
        if key == RAW_IMAGE and data is not None:
            md5 = md5_in(story.event_id) or (story.catalogue or {}).get("md5")
            found["md5_right"] = None if md5 is None else content_md5(data) == md5
        elif data is not None:
            found["readable"] = manager.stored(key, story.event_id) is not None
        story.files[key.to_user_string()] = found


def _picture(settings: Settings, story: Story) -> bytes | None:
    """A PNG of image, tensor and histogram; None if there is no image to show."""
    import numpy as np

    from cygno_assets.names import PREPROCESSED_TENSOR, RAW_IMAGE
    from cygno_assets.physics.figures import event_figure
    from cygno_assets.physics.images import ImageError, decode_image
    from cygno_assets.storage.io_managers import RawImageIOManager, TensorIOManager

    root = data_root(settings)
    data = RawImageIOManager(root).stored(RAW_IMAGE, story.event_id)
    if data is None:
        return None
    try:
        image = decode_image(data, max_pixels=settings.image_max_pixels)
    except ImageError:
        return None
    return event_figure(
        np.asarray(image),
        TensorIOManager(root).stored(PREPROCESSED_TENSOR, story.event_id),
        settings.preprocess_spec,
        story.event_id,
    )


def _told(story: Story) -> Iterator[str]:
    """The story, line by line."""
    yield _line("event", story.event_id)
    for note in story.notes:
        yield _line("note", note)
    for one in story.announcements:
        yield _line("announced", f"{_as_text(one['announced'])}, sequence {one['stream_sequence']}")
        if "unreadable" in one:
            yield _line("", one["unreadable"])
            continue
        yield _line("", f"acquired {_as_text(one['acquired'])}, {one['source']}")
        if (expires := one["url_expires"]) is None:
            yield _line("", "its URL does not say when it expires")
        elif one["url_expired"]:
            ago = span(datetime.now(UTC) - expires)
            yield _line("", f"its URL expired {_as_text(expires)}, {ago} ago")
        else:
            yield _line("", f"its URL is valid until {_as_text(expires)}")
    for run in story.runs:
        took = "" if run["took_s"] is None else f", took {run['took_s']:g} s"
        started = "not started" if run["started"] is None else _as_text(run["started"])
        attempt = f", attempt {run['attempt']}" if run["attempt"] else ""
        yield _line("run", f"{run['run_id']}  {run['status']}  {started}{took}{attempt}")
        if "kind" in run:
            yield _line("", f"{run['kind']}: {run['reason']}")
    for asset, made in story.lineage.items():
        yield _line(
            "asset",
            f"{asset}  {_as_text(made['materialized'])}  version {made['data_version']}, code "
            f"{made['code_version']}",
        )
        for name, version in made["made_from"].items():
            yield _line("", f"from {name} {version or ''}".rstrip())
    for asset, file in story.files.items():
        state = f"{file['size_bytes']} bytes" if file["present"] else "NOT THERE"
        if "md5_right" in file:
            state += {True: ", md5 right", False: ", md5 WRONG", None: ""}[file["md5_right"]]
        elif not file.get("readable", True):
            state += ", DAMAGED"
        yield _line("file", f"{asset}  {state}  {file['path']}")
    if story.catalogue is None:
        yield _line("catalogue", "no row (yet)")
    else:
        for number, (name, value) in enumerate(story.catalogue.items()):
            if value is not None and name != "pixel_counts":
                yield _line("" if number else "catalogue", f"{name:26}{_as_text(value)}")


def _line(what: str, text: object) -> str:
    return f"{what:11}{text}"


def _as_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds")
    return "unknown" if value is None else str(value)
