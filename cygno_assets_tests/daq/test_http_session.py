"""The sessions themselves: what they never do, whoever asks and whatever is answered."""

from __future__ import annotations

import gzip
import logging
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from cygno_assets.daq.http_session import session
from cygno_assets_tests.origin import QUERY, answer, sent_raw, serving

if TYPE_CHECKING:
    import requests


def asked(url: str, **options: object) -> requests.Response:
    web = session(max_bytes=100_000, max_s=10.0, public_only=False)
    return web.get(url, stream=True, timeout=10.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("allow_redirects", [True, False])
def test_a_redirect_is_neither_followed_nor_unfolded(*, allow_redirects: bool) -> None:
    bomb = gzip.compress(gzip.compress(bytes(10**8)))
    assert len(bomb) < 2000
    with serving() as origin:
        origin.answers[:] = [
            answer(bomb, status=302, Location="/there", Content_Encoding="gzip, gzip")
        ]
        tracemalloc.start()
        try:
            with asked(f"{origin.address}/here", allow_redirects=allow_redirects) as response:
                assert response.status_code == 302
            assert tracemalloc.get_traced_memory()[1] < 10e6
        finally:
            tracemalloc.stop()
        assert origin.requests == ["/here"]


@pytest.mark.parametrize("query", [QUERY, f"a='&{QUERY}", f"a=%22&{QUERY}"])
def test_the_log_has_no_query_and_no_header(query: str, caplog: pytest.LogCaptureFixture) -> None:
    signature = QUERY.rpartition("&")[2]
    with serving() as origin, caplog.at_level(logging.DEBUG):
        # A line that is no header: urllib3 warns with what comes after it, and a traceback.
        head = f"HTTP/1.1 200 OK\r\nX-A: 1\r\nGET /x?{query}\r\nX-B: {signature}\r\n\r\n"
        origin.answers[:] = [sent_raw(head.encode())]
        with asked(f"{origin.address}/x.jpg?{query}"):
            pass
    assert "/x.jpg?…" in caplog.text
    assert "Failed to parse headers" in caplog.text
    assert signature not in caplog.text
