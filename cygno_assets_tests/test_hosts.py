"""Hosts: one form for each, and a list that admits what it says and nothing near it."""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.util import parse_url

from cygno_assets.hosts import (
    AllowedHost,
    Endpoint,
    admitting,
    is_loopback,
    is_public,
    without_queries,
    without_secrets,
)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "shown"),
    [
        ("https://MINIO.Example/x", "https", "minio.example", 443, "minio.example"),
        ("https://minio:443", "https", "minio", 443, "minio"),
        ("http://minio?x", "http", "minio", 80, "minio"),
        ("HTTP://minio:9000#x", "http", "minio", 9000, "minio:9000"),
        ("https://my_minio-1.example", "https", "my_minio-1.example", 443, "my_minio-1.example"),
        ("https://xn--mnchen-3ya.example", *("https", "xn--mnchen-3ya.example", 443),
         "xn--mnchen-3ya.example"),
        ("https://127.0.0.1:9000/", "https", "127.0.0.1", 9000, "127.0.0.1:9000"),
        ("https://[0:0::0:1]:9000/", "https", "::1", 9000, "[::1]:9000"),
        ("https://[2001:DB8::1]/", "https", "2001:db8::1", 443, "[2001:db8::1]"),
    ],
)  # fmt: skip
def test_a_url_leads_to_one_endpoint(
    url: str, scheme: str, host: str, port: int, shown: str
) -> None:
    assert Endpoint.of(url) == Endpoint(scheme, host, port)
    assert str(Endpoint.of(url)) == shown


urls = st.text(alphabet="/\\?#@:[]%.0127fx aA\u3002\uff11\t", max_size=30)


@given(urls.map("https://{}".format) | st.text().map("http://{}".format))
@example("https://a\\@b/")
@example("https://a#@b/")
def test_whatever_is_read_the_client_reads_alike(url: str) -> None:
    """urllib3, which opens the connection, has a parser of its own."""
    try:
        endpoint = Endpoint.of(url)
    except ValueError:
        return
    theirs = parse_url(url)
    assert theirs.auth is None
    assert theirs.host is not None
    theirs_host = theirs.host.strip("[]")
    if ":" in theirs_host:
        theirs_host = str(ipaddress.ip_address(theirs_host))
    assert theirs_host == endpoint.host
    assert (theirs.port or {"http": 80, "https": 443}[theirs.scheme or ""]) == endpoint.port
    assert urlsplit(url).scheme == theirs.scheme


@pytest.mark.parametrize(
    ("entry", "admitted", "refused"),
    [
        ("minio", ["https://minio/x", "https://MINIO:443"], ["http://minio", "https://minio:9000"]),
        ("minio:9000", ["https://minio:9000/"], ["https://minio", "http://minio:9000"]),
        ("https://minio", ["https://minio"], ["http://minio", "https://a.minio"]),
        ("http://minio:9000", ["http://minio:9000"], ["https://minio:9000", "http://minio"]),
        ("127.0.0.1", ["https://127.0.0.1"], ["https://127.0.0.2"]),
        ("::1", ["https://[::1]", "https://[0::1]"], ["https://[::2]"]),
        ("[::1]:9000", ["https://[::1]:9000"], ["https://[::1]"]),
        (
            "*.Example.org",
            ["https://a.example.org", "https://a.b.EXAMPLE.org"],
            ["https://example.org", "https://aexample.org", "https://a.example.org.evil",
             "http://a.example.org", "https://a.example.org:444"],
        ),
        ("http://*.example.org:81", ["http://a.example.org:81"], ["https://a.example.org:81"]),
    ],
)  # fmt: skip
def test_an_entry_admits_what_it_says(entry: str, admitted: list[str], refused: list[str]) -> None:
    allowed = AllowedHost.parse(entry)

    assert [url for url in admitted + refused if allowed.admits(Endpoint.of(url))] == admitted
    assert AllowedHost.parse(str(allowed)) == allowed


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("", "names no host"),
        ("*", "names no plain host"),
        ("*.", "names no host"),
        ("*.org", "is no pattern of the form *.example.org"),
        ("*.10.0.0.1", "is no pattern"),
        ("*.[::1]", "is no pattern"),
        ("a.*.org", "names no plain host"),
        ("minio/bucket", "has something after its host"),
        ("https://minio/", "has something after its host"),
        ("ftp://minio", "is neither https nor http"),
        ("minio:0", "names port 0"),
        ("minio:http", "cannot be parsed"),
        ("127.1", "writes an address in an odd form"),
        ("[::ffff:10.0.0.1]", "writes an address in an odd form"),
        ("anna:hunter2@minio", "holds a user name"),
        ("min io", "holds spaces"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        AllowedHost.parse(entry)
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_name_that_is_listed_comes_before_a_pattern() -> None:
    pattern, named = (AllowedHost.parse(entry) for entry in ("*.example.org", "a.example.org"))

    assert admitting(Endpoint.of("https://a.example.org"), [pattern, named]) == named
    assert admitting(Endpoint.of("https://b.example.org"), [pattern, named]) == pattern
    assert admitting(Endpoint.of("https://example.org"), [pattern, named]) is None


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
        ("192.0.0.8", False),
        ("::ffff:192.0.0.9", False),
        ("fec0::1", False),
        ("64:ff9b::1:7f00:1", False),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("5f00::1", False),
        ("4000::1", False),
    ],
)
def test_addresses_of_the_internet_at_large(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.8.9.10", True), ("::1", True)),
        *(("10.0.0.1", False), ("localhost.example.org", False), ("2001:db8::1", False)),
    ],
)
def test_which_host_is_this_machine(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'https://minio/x?a='&X-Amz-Signature=c0ffee HTTP", "'https://minio/x?… HTTP"),
        ('{"url": "https://minio/x?a=1", "time": 2}', '{"url": "https://minio/x?…", "time": 2}'),
        (r'{"url": "https://minio/x?a=\"&X-Amz-Signature=c0ffee"}', '{"url": "https://minio/x?…"}'),
        ("why? no", "why?… no"),
    ],
)
def test_a_query_ends_where_no_query_can_go_on(text: str, shown: str) -> None:
    assert without_queries(text) == shown


@given(st.text(), st.from_regex(r"[A-Za-z0-9=&%-]+", fullmatch=True))
def test_what_is_after_a_question_mark_is_never_printed(text: str, query: str) -> None:
    assert "?…" in without_queries(f"{text} https://minio/x.jpg?{query}")
    assert f"?{query}" not in without_queries(f"{text} https://minio/x.jpg?{query} {text}")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("x.jpg?X-Amz-Signature=c0ffee", "x.jpg?…"),
        ("see https://anna:hunter2@minio/x?a='b'c \"y?z\"", 'see …@minio/x?… "y?…"'),
        ("https://anna:hun?ter2@minio/x", "…"),
        (r"https:\/\/a:b\u0040minio\/x\u003Fa=\"b", r"…@minio\/x?…"),
        ("x.jpg;x-amz-signature=c0ffee", "x.jpg;?…"),
        ("anna%3Ahunter2%40minio", "…@minio"),
        ("nothing secret, 100 %", "nothing secret, 100 %"),
    ],
)
def test_what_somebody_sent_is_printed_without_secrets(text: str, printed: str) -> None:
    assert without_secrets(text) == printed


def test_a_quotation_mark_does_not_end_a_query() -> None:
    assert without_queries("https://minio/x?a='b'&X-Amz-Signature=c") == "https://minio/x?…"


def test_a_long_word_is_read_once() -> None:
    began = time.process_time()
    without_secrets("a" * 1_000_000 + "\\" * 1_000_001)
    assert time.process_time() - began < 5
