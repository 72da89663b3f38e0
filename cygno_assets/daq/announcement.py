"""What the DAQ announces: from the message on the wire to a checked `Announcement`.

Here belong the wire format and its checks; not where messages come from (recorder.py, inbox.py)
nor what becomes of the image, and whether its host is one to ask (download.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from cygno_assets.hosts import Endpoint, without_secrets

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

MAX_MESSAGE_BYTES = 65_536
MAX_EVENT_ID_LENGTH = 100
MAX_URL_LENGTH = 8_192
"""Presigned URLs have some 400 characters; servers refuse such long ones anyway."""

_EVENT_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_EVENT_ID_LENGTH}}}")
_SUFFIX = re.compile(r"[A-Za-z0-9]{1,10}")
_MD5_ENDING = re.compile(r"(?:.*-)?([0-9a-f]{32})")
_SHOWN = 60
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)
"""A DAQ whose clock or time zone is wrong by hours is still a DAQ."""


class NotAnEventError(ValueError):
    """This message cannot be an event. The text names the field and its value, never a URL's."""


@dataclass(frozen=True)
class Announcement:
    """One image as the DAQ announced it.

    Attributes:
        event_id: the file name without suffix, `cygno-<md5>`: the identifier that participants
            share, made of letters, digits, `_` and `-` only, so that it is safe as a NATS
            subject, a partition key and a path.
        filename: as announced.
        url: presigned; it opens the image for an hour, so it never goes into logs, metadata,
            errors or the database.
        acquired: when the DAQ took the image, with time zone.
        time: the same, as announced.
        md5: of the file's bytes, from the name; None if the name carries none.
    """

    event_id: str
    filename: str
    url: str = field(repr=False)
    acquired: datetime
    time: str
    md5: str | None

    @property
    def message_id(self) -> str:
        """Removes repeats: a re-announcement has a new time, a repeat has not.

        The URL is left out, for its signature differs each time.
        """
        return f"{self.filename} {self.time}"

    @property
    def source(self) -> str:
        """Host and path of the URL: where the image came from, without the signature."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    @property
    def url_expires(self) -> datetime | None:
        """When the presigned URL ceases to open the image; None if it does not say so."""
        query = parse_qs(urlsplit(self.url).query)
        signed = _signed_at(query.get("X-Amz-Date"))
        lasts = _digits(query.get("X-Amz-Expires"))
        if signed is None:  # the signatures before version 4 count from 1970
            signed, lasts = _FIRST_TIME, _digits(query.get("Expires"))
        if lasts is None:
            return None
        try:
            return signed + timedelta(seconds=lasts)
        except OverflowError:
            return None


def parse_announcement(
    payload: bytes, *, timezone: ZoneInfo, names_without_md5: bool = False
) -> Announcement:
    """Reads one message of the DAQ.

    Args:
        payload: UTF-8 JSON object with the strings `url`, `time` and `filename`; further fields
            are ignored.
        timezone: of the DAQ's clock; `time` is local, `str(datetime.now())`.
        names_without_md5: accept names that do not end in the md5 of their content.

    Raises:
        NotAnEventError: names the field and the value that cannot be.
    """
    fields = _read_object(payload)
    filename = _string(fields, "filename")
    time = _string(fields, "time")
    url = _string(fields, "url")
    event_id, md5 = _check_filename(filename, names_without_md5=names_without_md5)
    acquired = _read_time(time, timezone)
    _check_url(url)
    return Announcement(event_id, filename, url, acquired, time, md5)


def is_event_id(text: str) -> bool:
    """Whether the text is safe as a NATS subject, a partition key and a path at once."""
    return _EVENT_ID.fullmatch(text) is not None


def md5_in(event_id: str) -> str | None:
    """The md5 of the image's bytes that an event id ends in, None if it carries none."""
    match = _MD5_ENDING.fullmatch(event_id)
    return match[1] if match else None


def _read_object(payload: bytes) -> dict[str, Any]:
    if not payload:
        raise NotAnEventError("message is empty")
    if len(payload) > MAX_MESSAGE_BYTES:
        raise NotAnEventError(
            f"message of {len(payload)} bytes is longer than {MAX_MESSAGE_BYTES} bytes"
        )
    if payload.startswith(_BYTE_ORDER_MARK):
        raise NotAnEventError("message begins with a byte order mark, which is not JSON")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotAnEventError(f"message is not UTF-8: {error.reason} at {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_number)
    except NotAnEventError:
        raise
    # A RecursionError is what thousands of nested brackets raise.
    except (ValueError, RecursionError) as error:
        raise NotAnEventError(f"message is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise NotAnEventError(f"message is not a JSON object but a {_json_type(value)}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a field that is there twice, some readers take the first and some the last."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise NotAnEventError(f"field {_shown(name)} is there twice")
        fields[name] = value
    return fields


def _no_number(constant: str) -> None:
    raise NotAnEventError(f"message holds {constant}, which is not JSON")


def _string(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise NotAnEventError(f"field {name!r} is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise NotAnEventError(f"field {name!r} is not a string but a {_json_type(value)}")
    return value


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _check_filename(filename: str, *, names_without_md5: bool) -> tuple[str, str | None]:
    def wrong(why: str) -> NotAnEventError:
        return NotAnEventError(f"field 'filename' {why}: {_shown(filename)}")

    event_id, dot, suffix = filename.rpartition(".")
    if not dot or not _SUFFIX.fullmatch(suffix):
        raise wrong("has no suffix such as .jpg")
    if len(event_id) > MAX_EVENT_ID_LENGTH:
        raise wrong(f"is longer than {MAX_EVENT_ID_LENGTH} characters ({len(event_id)})")
    if not is_event_id(event_id):
        raise wrong("may hold only letters, digits, '_' and '-' before its suffix")
    md5 = md5_in(event_id)
    if md5 is None and not names_without_md5:
        raise wrong("does not end in the md5 of the file (32 lower-case hexadecimal digits)")
    return event_id, md5


def _read_time(time: str, timezone: ZoneInfo) -> datetime:
    wrong = NotAnEventError(
        f"field 'time' is not a time such as 2024-11-27 14:27:36.570564: {_shown(time)}"
    )
    if not (time.isascii() and time.isprintable()):
        raise wrong  # Python takes any character between date and time; it becomes a header
    try:
        acquired = datetime.fromisoformat(time)
        if acquired.tzinfo is None:
            acquired = acquired.replace(tzinfo=timezone)
        acquired.astimezone(UTC)  # fails on the first and last days of the calendar
    except (ValueError, OverflowError):
        raise wrong from None
    if acquired < _FIRST_TIME:
        raise NotAnEventError(f"field 'time' is before 1970: {_shown(time)}")
    if acquired > datetime.now(UTC) + _AHEAD:
        raise NotAnEventError(f"field 'time' is more than a day in the future: {_shown(time)}")
    return acquired


def _signed_at(values: list[str] | None) -> datetime | None:
    try:
        [value] = values or []
        return datetime.strptime(value, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def _digits(values: list[str] | None) -> int | None:
    """The number that a parameter is; None if it is none, or there twice."""
    if values is None or len(values) != 1 or not re.fullmatch(r"[0-9]{1,12}", values[0]):
        return None
    return int(values[0])


def _check_url(url: str) -> None:
    # A URL opens the image, so messages say what is wrong with it but never quote it whole.
    if len(url) > MAX_URL_LENGTH:
        raise NotAnEventError(f"field 'url' is longer than {MAX_URL_LENGTH} characters")
    try:
        Endpoint.of(url)
    except ValueError as error:
        raise NotAnEventError(f"field 'url' {error}") from None


def _shown(value: str) -> str:
    if "://" in value:  # a URL in the wrong field; it may be presigned, or hold a password
        return "a URL"
    value = without_secrets(value)  # such as one without its scheme
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
