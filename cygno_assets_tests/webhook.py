"""An incoming webhook as Slack and Mattermost have it, which keeps what it is sent."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "T0P/B0X/s3cret"


@dataclass
class Webhook:
    """A web server that takes messages as Slack does, or answers with another status."""

    port: int
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/{SECRET}"

    @contextmanager
    def up(self) -> Iterator[None]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == f"/services/{SECRET}"
                if webhook.status == 200:
                    webhook.messages.append(json.loads(text))
                self.send_response(webhook.status)
                for name, value in webhook.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(webhook.body)

            def log_message(self, *_: object) -> None: ...

        server = HTTPServer(("127.0.0.1", self.port), Handler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def told(self) -> Counter[str]:
        """Failed runs, by what they make and why, over all messages."""
        return Counter(
            {
                label: sum(message["failed"].get(label, 0) for message in self.messages)
                for message in self.messages
                for label in message["failed"]
            }
        )
