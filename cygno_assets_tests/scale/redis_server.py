"""A real Redis, from Debian's package: what brings runs to the workers."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

import redis

from cygno_assets.services.process import Service, free_port

if TYPE_CHECKING:
    from pathlib import Path

_READY_TIMEOUT_S = 30.0


class RedisServer:
    """Redis on 127.0.0.1 with a password, every message kept on disk.

    Args:
        folder: of its configuration and its data.
        log_file: where its output goes.
    """

    def __init__(self, folder: Path, log_file: Path) -> None:
        self._folder = folder
        self._password = secrets.token_hex(16)
        self.port = free_port()
        program = shutil.which("redis-server") or "redis-server"
        self.service = Service(
            "broker", [program, str(folder / "redis.conf")], log_file, cwd=folder
        )

    @property
    def url(self) -> str:
        """Its address, with the password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Starts it, on what it had stored before, and waits until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "redis.conf").write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\n"
            f'dir {self._folder}\nappendonly yes\nsave ""\n'
        )
        self.service.start().wait_ready(self._answers, _READY_TIMEOUT_S)
        return self

    def _answers(self) -> bool:
        try:
            return bool(redis.Redis.from_url(self.url).ping())
        except redis.exceptions.RedisError:
            return False

    def stop(self) -> None:
        """Ends it; what it stored stays."""
        self.service.stop()
