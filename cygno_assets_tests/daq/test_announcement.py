"""The DAQ's messages: what it sends is understood, whatever else arrives is refused by name."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygno_assets.daq.announcement import (
    MAX_MESSAGE_BYTES,
    Announcement,
    NotAnEventError,
    parse_announcement,
)

MD5 = "13760faab087a72f66db310d167afb97"
SIGNATURE = "d1f2c0ffee"
URL = (
    f"https://minio.example:9000/cygno-daq/cygno-{MD5}.jpg"
    f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=3600&X-Amz-Signature={SIGNATURE}"
)
FIELDS = {"url": URL, "time": "2024-11-27 14:27:36.570564", "filename": f"cygno-{MD5}.jpg"}
ROME = ZoneInfo("Europe/Rome")


def parse(
    fields: object = None, *, names_without_md5: bool = False, **changed: object
) -> Announcement:
    payload = json.dumps(FIELDS | changed if fields is None else fields).encode()
    return parse_announcement(payload, timezone=ROME, names_without_md5=names_without_md5)


def refusal(payload: bytes, timezone: ZoneInfo = ROME) -> str:
    with pytest.raises(NotAnEventError) as caught:
        parse_announcement(payload, timezone=timezone)
    return str(caught.value)


def test_the_schools_message() -> None:
    payload = (
        b'{"url": "https://minio.example:9000/cygno-daq/cygno-13760faab087a72f66db310d167afb97.jpg'
        b'?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=3600&X-Amz-Signature=d1f2c0ffee", '
        b'"time": "2024-11-27 14:27:36.570564", '
        b'"filename": "cygno-13760faab087a72f66db310d167afb97.jpg"}'
    )

    assert parse_announcement(payload, timezone=ROME) == Announcement(
        event_id=f"cygno-{MD5}",
        filename=f"cygno-{MD5}.jpg",
        url=URL,
        acquired=datetime(2024, 11, 27, 13, 27, 36, 570564, UTC),
        time="2024-11-27 14:27:36.570564",
        md5=MD5,
    )


@pytest.mark.parametrize(
    ("time", "acquired"),
    [
        pytest.param("2024-11-27 14:27:36", "2024-11-27T13:27:36+00:00", id="whole second"),
        pytest.param("2024-07-01 14:27:36.5", "2024-07-01T12:27:36.500000+00:00", id="summer"),
        pytest.param("2024-07-01T14:27:36+05:00", "2024-07-01T09:27:36+00:00", id="own offset"),
        pytest.param("2024-07-01T14:27:36Z", "2024-07-01T14:27:36+00:00", id="UTC by name"),
        pytest.param(
            "2024-10-27 02:30:00", "2024-10-27T00:30:00+00:00", id="the hour that repeats"
        ),
        pytest.param("2024-03-31 02:30:00", "2024-03-31T01:30:00+00:00", id="the hour left out"),
    ],
)
def test_times_are_the_daqs_unless_they_name_an_offset(time: str, acquired: str) -> None:
    assert parse(time=time).acquired.astimezone(UTC).isoformat() == acquired


def test_further_fields_are_ignored() -> None:
    assert parse(FIELDS | {"run": 7, "is_signal": None}) == parse()


@pytest.mark.parametrize("suffix", ["jpg", "png", "JPG", "jpeg", "h5"])
def test_the_event_id_is_the_name_without_suffix(suffix: str) -> None:
    announced = parse(filename=f"cygno-{MD5}.{suffix}")

    assert (announced.event_id, announced.md5) == (f"cygno-{MD5}", MD5)


def test_a_repeat_has_the_same_message_id_and_a_re_announcement_has_not() -> None:
    again = URL.replace(SIGNATURE, "another")

    assert parse(url=again).message_id == parse().message_id
    assert parse(time="2024-11-27 14:27:37").message_id != parse().message_id
    assert parse(filename=f"{MD5}.jpg").message_id != parse().message_id


def test_neither_source_nor_repr_opens_the_image() -> None:
    announced = parse()

    assert announced.source == f"https://minio.example:9000/cygno-daq/cygno-{MD5}.jpg"
    assert "X-Amz" not in repr(announced)


@pytest.mark.parametrize(
    ("query", "expires"),
    [
        ("X-Amz-Date=20241127T132736Z&X-Amz-Expires=3600", "2024-11-27T14:27:36+00:00"),
        ("X-Amz-Expires=60&X-Amz-Date=20241127T132736Z&Expires=1", "2024-11-27T13:28:36+00:00"),
        ("AWSAccessKeyId=A&Expires=1732717656&Signature=1", "2024-11-27T14:27:36+00:00"),
        ("", None),
        ("X-Amz-Expires=3600", None),
        ("X-Amz-Date=20241127T132736Z", None),
        ("X-Amz-Date=2024-11-27&X-Amz-Expires=3600", None),
        ("X-Amz-Date=20241327T132736Z&X-Amz-Expires=3600", None),
        ("X-Amz-Date=20241127T132736Z&X-Amz-Expires=3600&X-Amz-Expires=7200", None),
        ("X-Amz-Date=20241127T132736Z&X-Amz-Expires=-1", None),
        ("X-Amz-Date=20241127T132736Z&X-Amz-Expires=٣", None),
        ("X-Amz-Date=20241127T132736Z&X-Amz-Expires=" + "9" * 12, None),
        ("X-Amz-Date=20241127T132736Z&X-Amz-Expires=" + "9" * 5000, None),
        ("Expires=soon", None),
    ],
)
def test_a_url_says_when_it_expires(query: str, expires: str | None) -> None:
    found = parse(url=f"https://minio/x.jpg?{query}").url_expires

    assert (None if found is None else found.isoformat()) == expires


@pytest.mark.parametrize("name", ["run-12", "x" * 100, "A_b-9", "a" * 31])
def test_names_without_md5_are_accepted_if_asked_for(name: str) -> None:
    announced = parse(filename=f"{name}.jpg", names_without_md5=True)

    assert (announced.event_id, announced.md5) == (name, None)
    assert "does not end in the md5" in refusal(
        json.dumps(FIELDS | {"filename": f"{name}.jpg"}).encode()
    )


def test_with_names_without_md5_an_md5_is_still_found() -> None:
    assert parse(names_without_md5=True).md5 == MD5


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"", "message is empty", id="empty"),
        pytest.param(
            b"\xff\xfe{}", "message is not UTF-8: invalid start byte at 0", id="not UTF-8"
        ),
        pytest.param(b"DAQ started", "message is not JSON: Expecting value", id="plain text"),
        pytest.param(b'{"url": ', "message is not JSON", id="half an object"),
        pytest.param(b"[]", "not a JSON object but a array", id="list"),
        pytest.param(b"7", "not a JSON object but a number", id="number"),
        pytest.param(b'"text"', "not a JSON object but a string", id="string"),
        pytest.param(b"null", "not a JSON object but a null", id="null"),
        pytest.param(b"true", "not a JSON object but a boolean", id="boolean"),
        pytest.param(b"9" * 5000, "message is not JSON", id="a number of 5000 digits"),
        pytest.param(b"[" * 60_000, "message is not JSON", id="60,000 brackets"),
        pytest.param(b"[" * 100_000, "of 100000 bytes is longer than 65536", id="100,000 brackets"),
        pytest.param(
            json.dumps(FIELDS).encode().ljust(MAX_MESSAGE_BYTES + 1),
            "of 65537 bytes is longer than 65536",
            id="one byte too long",
        ),
        pytest.param(b'{"a":' * 10_000, "message is not JSON", id="10,000 objects"),
        pytest.param(
            b"\xef\xbb\xbf" + json.dumps(FIELDS).encode(),
            "message begins with a byte order mark",
            id="byte order mark",
        ),
        pytest.param(b'{"run": NaN}', "message holds NaN, which is not JSON", id="NaN"),
        pytest.param(b'{"run": [-Infinity]}', "message holds -Infinity", id="infinity"),
        pytest.param(b'{"url": "a", "url": "a"}', "field 'url' is there twice", id="twice"),
        pytest.param(b'{"a": {"b": 1, "b": 2}}', "field 'b' is there twice", id="twice below"),
    ],
)
def test_what_is_no_json_object_is_refused(payload: bytes, reason: str) -> None:
    assert reason in refusal(payload)


def test_the_longest_message_is_accepted() -> None:
    payload = json.dumps(FIELDS).encode().ljust(MAX_MESSAGE_BYTES)

    assert parse_announcement(payload, timezone=ROME) == parse()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (None, "null"),
        (7, "number"),
        (1.5, "number"),
        ([], "array"),
        ({}, "object"),
        (True, "boolean"),
    ],
    ids=str,
)
def test_fields_of_another_type_are_refused(field: str, value: object, type_: str) -> None:
    reason = refusal(json.dumps(FIELDS | {field: value}).encode())

    assert reason == f"field '{field}' is not a string but a {type_}"


@pytest.mark.parametrize("field", FIELDS)
def test_missing_fields_are_refused(field: str) -> None:
    rest = {name: value for name, value in FIELDS.items() if name != field}

    assert refusal(json.dumps(rest).encode()) == f"field '{field}' is missing"


LETTERS = "may hold only letters"
NO_SUFFIX = "has no suffix such as .jpg"
NO_MD5 = "does not end in the md5 of the file"
NO_TIME = "field 'time' is not a time such as 2024-11-27 14:27:36.570564"
NO_HTTP = "field 'url' is neither https nor http"
NO_HOST = "field 'url' names no host"
NO_URL = "field 'url' cannot be parsed"
OLD = "field 'time' is before 1970"
AHEAD = "field 'time' is more than a day in the future"
NAMELESS = "field 'url' holds a user name or password"
NO_PLAIN = "field 'url' names no plain host[:port]"
ODD = "field 'url' writes an address in an odd form"
CANNOT = "field 'url' names a host that cannot be"
SPACES = "field 'url' holds spaces or control characters"
QUERY = f"?X-Amz-Signature={SIGNATURE}"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("filename", f"a/{MD5}.jpg", LETTERS),
        ("filename", f"a\\{MD5}.jpg", LETTERS),
        ("filename", f"../{MD5}.jpg", LETTERS),
        ("filename", f"..{MD5}.jpg", LETTERS),
        ("filename", f"a.{MD5}.jpg", LETTERS),
        ("filename", f"a\0{MD5}.jpg", LETTERS),
        ("filename", f"a\n{MD5}.jpg", LETTERS),
        ("filename", f"{MD5}\n.jpg", LETTERS),
        ("filename", f"a\x7f{MD5}.jpg", LETTERS),
        ("filename", f"a {MD5}.jpg", LETTERS),
        ("filename", f"événement-{MD5}.jpg", LETTERS),
        ("filename", f"*-{MD5}.jpg", LETTERS),
        ("filename", f"\ud800{MD5}.jpg", LETTERS),
        ("filename", "٣" * 32 + ".jpg", LETTERS),
        ("filename", ".jpg", LETTERS),
        ("filename", "", NO_SUFFIX),
        ("filename", MD5, NO_SUFFIX),
        ("filename", f"{MD5}.", NO_SUFFIX),
        ("filename", f"{MD5}.jpg\n", NO_SUFFIX),
        ("filename", f"{MD5}.j/g", NO_SUFFIX),
        ("filename", f"{MD5}.abcdefghijk", NO_SUFFIX),
        ("filename", "x" * 10_000 + ".jpg", "is longer than 100 characters (10000)"),
        ("filename", "x" * 69 + MD5 + ".jpg", "is longer than 100 characters (101)"),
        ("filename", "cygno.jpg", NO_MD5),
        ("filename", f"cygno-{MD5.upper()}.jpg", NO_MD5),
        ("filename", f"cygno{MD5}.jpg", NO_MD5),
        ("filename", f"cygno-{MD5}-x.jpg", NO_MD5),
        ("filename", f"cygno-{MD5[1:]}.jpg", NO_MD5),
        ("time", "", NO_TIME),
        ("time", "yesterday", NO_TIME),
        ("time", "14:27:36", NO_TIME),
        ("time", "2024-13-27 14:27:36", NO_TIME),
        ("time", "2023-02-29 14:27:36", NO_TIME),
        ("time", "2024-11-27 24:27:36", NO_TIME),
        ("time", "2024-11-27 14:27:36+25:00", NO_TIME),
        ("time", "1732717656.5", NO_TIME),
        ("time", "0000-01-01 00:00:00", NO_TIME),
        ("time", "0001-01-01 00:00:00", NO_TIME),
        ("time", "9999-12-31T23:59:00-12:00", NO_TIME),
        ("time", "1969-12-31T23:59:59Z", OLD),
        ("time", "0001-02-01 00:00:00", OLD),
        ("time", str(datetime.now(UTC) + timedelta(hours=25)), AHEAD),
        ("time", "9999-12-30 00:00:00", AHEAD),
        ("time", f"https://minio/{QUERY}", "a URL"),
        ("filename", f"https://anna:pass@minio/x.jpg{QUERY}", "a URL"),
        ("time", "20240-11-27 14:27:36", NO_TIME),
        ("time", "9" * 10_000, NO_TIME),
        ("url", "", NO_HTTP),
        ("url", "/cygno-daq/x.jpg", NO_HTTP),
        ("url", f"minio/x.jpg{QUERY}", NO_HTTP),
        ("url", "file:///etc/passwd", NO_HTTP),
        ("url", f"ftp://minio/x.jpg{QUERY}", NO_HTTP),
        ("url", "data:image/jpeg;base64,AAAA", NO_HTTP),
        ("url", f"https://{QUERY}", NO_HOST),
        ("url", f"https:///x.jpg{QUERY}", NO_HOST),
        ("url", f"https://:9000/x.jpg{QUERY}", NO_HOST),
        ("url", f"https://minio/x y.jpg{QUERY}", SPACES),
        ("url", f" https://minio/x.jpg{QUERY}", SPACES),
        ("url", f"https://minio/x.jpg{QUERY}\n", SPACES),
        ("url", f"https://minio/x.jpg{QUERY}\0", SPACES),
        ("url", f"https://minio/x.jpg{QUERY}\ud800", SPACES),
        ("url", f"https://minio:port/x.jpg{QUERY}", NO_URL),
        ("url", f"https://minio:99999/x.jpg{QUERY}", NO_URL),
        ("url", f"http://[{QUERY}", NO_URL),
        ("url", f"http://[::1{QUERY}", NO_URL),
        ("url", f"https://anna:{SIGNATURE}@minio/x.jpg", NAMELESS),
        ("url", f"https://@minio/x.jpg{QUERY}", NAMELESS),
        ("url", f"https://minio@127.0.0.1/x.jpg{QUERY}", NAMELESS),
        ("url", f"https://minio\\@127.0.0.1/x.jpg{QUERY}", NAMELESS),
        ("url", f"https://minio\\127.0.0.1/x.jpg{QUERY}", NO_PLAIN),
        ("url", f"https://%6dinio/x.jpg{QUERY}", NO_PLAIN),
        ("url", f"https://minio%2e127.0.0.1/x.jpg{QUERY}", NO_PLAIN),
        ("url", f"https://minio:/x.jpg{QUERY}", NO_PLAIN),
        ("url", f"https://[fe80::1%25eth0]/x.jpg{QUERY}", NO_PLAIN),
        ("url", f"https://minio:0/x.jpg{QUERY}", "field 'url' names port 0, which is none"),
        ("url", f"https://münchen.example/x.jpg{QUERY}", "in letters beyond ASCII (write it as"),
        ("url", f"https://\uff1127.0.0.1/x.jpg{QUERY}", "in letters beyond ASCII"),
        ("url", f"https://127。0。0。1/x.jpg{QUERY}", "in letters beyond ASCII"),
        ("url", f"https://127.1/x.jpg{QUERY}", f"{ODD}: '127.1'"),
        ("url", f"https://2130706433/x.jpg{QUERY}", ODD),
        ("url", f"https://0x7f.1/x.jpg{QUERY}", ODD),
        ("url", f"https://0X7F000001/x.jpg{QUERY}", ODD),
        ("url", f"https://0177.0.0.1/x.jpg{QUERY}", ODD),
        ("url", f"https://127.0.0.256/x.jpg{QUERY}", ODD),
        ("url", f"https://minio.1/x.jpg{QUERY}", ODD),
        ("url", f"https://[::ffff:127.0.0.1]/x.jpg{QUERY}", ODD),
        ("url", f"https://[::ffff:7f00:1]/x.jpg{QUERY}", ODD),
        ("url", f"https://127.0.0.1./x.jpg{QUERY}", CANNOT),
        ("url", f"https://minio./x.jpg{QUERY}", CANNOT),
        ("url", f"https://minio..example/x.jpg{QUERY}", CANNOT),
        ("url", f"https://-minio/x.jpg{QUERY}", CANNOT),
        ("url", f"https://{'x' * 64}/x.jpg{QUERY}", CANNOT),
        ("url", f"https://{'x.' * 127}x/x.jpg{QUERY}", CANNOT),
        ("url", "https://minio/" + "x" * 8_192, "field 'url' is longer than 8192 characters"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_values_that_cannot_be_are_refused(field: str, value: str, reason: str) -> None:
    said = refusal(json.dumps(FIELDS | {field: value}).encode())

    assert reason in said
    assert said.startswith(f"field '{field}' ")
    assert len(said) < 300
    assert SIGNATURE not in said


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0", "☃", "\ud800"], ids=ascii)
def test_a_time_is_one_line_of_ascii(separator: str) -> None:
    # Python's ISO parser takes any character between date and time; the time becomes a header.
    payload = json.dumps(FIELDS | {"time": f"2024-11-27{separator}14:27:36"}).encode()

    assert NO_TIME in refusal(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children),
    max_leaves=5,
)
times = (
    st.datetimes(datetime(1960, 1, 1), datetime(2030, 1, 1)).map(str)  # noqa: DTZ001 – as sent
    | st.datetimes().map(str)
    | st.datetimes(timezones=st.timezones()).map(str)
    | st.sampled_from(["0001-01-01 00:00:00", "9999-12-31T23:59:00-12:00"])
)
parameters = st.sampled_from(["X-Amz-Date", "X-Amz-Expires", "Expires", "X-Amz-Signature"])
queries = st.lists(
    st.tuples(
        parameters,
        st.datetimes().map("{:%Y%m%dT%H%M%SZ}".format) | st.integers().map(str) | st.text(),
    )
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
urls = (
    st.text().map("https://minio/{}".format)
    | st.text().map("http://{}/x".format)
    | queries.map("https://minio/x?{}".format)
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "url": st.just(URL) | urls | json_values,
        "time": st.just(FIELDS["time"]) | times | json_values,
        "filename": st.just(FIELDS["filename"]) | st.text().map("{}.jpg".format) | json_values,
    },
)


def check_parsed_or_refused(payload: bytes) -> None:
    try:
        announced = parse_announcement(payload, timezone=ROME, names_without_md5=True)
    except NotAnEventError as refused:
        said = str(refused)
    else:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,100}", announced.event_id)
        # What is done with an event afterwards must not fail: reckon with its time, put its
        # message id into a header.
        announced.acquired.astimezone(UTC)
        assert announced.message_id.isascii()
        assert announced.message_id.isprintable()
        said = announced.source + repr(announced)
        assert announced.url_expires is None or announced.url_expires.tzinfo is UTC
    assert "X-Amz" not in said


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_parsed_or_refused(payload: bytes) -> None:
    check_parsed_or_refused(payload)


@settings(deadline=None, max_examples=300)
@given(messages)
def test_any_object_is_parsed_or_refused(fields: dict[str, object]) -> None:
    check_parsed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(json_values)
def test_any_json_is_parsed_or_refused(value: object) -> None:
    check_parsed_or_refused(json.dumps(value).encode())
