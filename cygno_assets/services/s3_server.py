"""A real S3 server (SeaweedFS, from its wheel) behind HTTPS: where the simulated DAQ puts images.

Needs the extra `demo`.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cygno_assets.daq.simulator.bucket import Bucket, BucketSettings
from cygno_assets.services.certificates import make_certificates
from cygno_assets.services.nats_server import program
from cygno_assets.services.process import Service, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

_READY_TIMEOUT_S = 60.0
_REGION = "us-east-1"


@dataclass(frozen=True)
class BucketAccess:
    """One bucket and the only credentials that open it."""

    bucket: str
    access_key_id: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)


class S3Server:
    """SeaweedFS on 127.0.0.1, with a self-signed authority of its own.

    Args:
        folder: of all it stores; deleted when it stops.
        log_file: where its output goes.
        buckets: made at the start, each with its own credentials.
    """

    def __init__(self, folder: Path, log_file: Path, buckets: Sequence[BucketAccess]) -> None:
        self._folder = folder
        self._buckets = buckets
        self.port = free_port()
        self._ports = {
            name: free_port()
            for part in ("master.port", "volume.port", "filer.port", "admin.port", "s3.port")
            for name in (part, f"{part}.grpc")
        }
        self.ca_file = folder / "certificates" / "ca.pem"
        self.service = Service(
            "S3 server",
            self._argv(),
            log_file,
            cwd=folder,
            stop_signal=signal.SIGKILL,  # SIGTERM takes it twelve seconds
        )

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self.port}"

    def _argv(self) -> list[str]:
        folder, certificates = self._folder, self._folder / "certificates"
        return [
            program("weed"),
            f"-logdir={folder}",  # else files of every run stay in the system's temporary folder
            "mini",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in self._ports.items()),
            f"-s3.port.https={self.port}",
            f"-s3.cert.file={certificates / 'cert.pem'}",
            f"-s3.key.file={certificates / 'key.pem'}",
            f"-s3.config={folder / 'identities.json'}",
            # Sockets would otherwise lie in a folder shared with everybody; relative, for their
            # paths must be short.
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            f"-bucket={','.join(access.bucket for access in self._buckets)}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
        ]

    def start(self) -> S3Server:
        """Starts it and waits until each bucket can be written and read.

        Raises:
            ServiceError: it does not come up.
        """
        (self._folder / "data").mkdir(parents=True, exist_ok=True)
        make_certificates(self._folder / "certificates")
        identities = {"identities": [self._identity(access) for access in self._buckets]}
        file = self._folder / "identities.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(identities))
        self.service.start().wait_ready(
            lambda: self.service.listens_on(self.port), _READY_TIMEOUT_S
        )
        for access in self._buckets:
            self.service.wait_ready(partial(self._usable, access), _READY_TIMEOUT_S)
        return self

    @staticmethod
    def _identity(access: BucketAccess) -> dict[str, object]:
        return {
            "name": access.bucket,
            "credentials": [
                {"accessKey": access.access_key_id, "secretKey": access.secret_access_key}
            ],
            "actions": [f"{action}:{access.bucket}" for action in ("Read", "Write", "List")],
        }

    def bucket(self, access: BucketAccess) -> BucketSettings:
        """What a client needs to open a bucket."""
        return BucketSettings(
            endpoint=self.endpoint,
            bucket=access.bucket,
            access_key_id=access.access_key_id,
            secret_access_key=access.secret_access_key,
            region=_REGION,
            ca_file=self.ca_file,
        )

    def _usable(self, access: BucketAccess) -> bool:
        """Writing works only some time after the port opens, when a volume is there."""
        from obstore.exceptions import BaseError

        try:
            Bucket(self.bucket(access)).put(".ready", b"")
        except BaseError:
            return False
        return True

    def stop(self) -> None:
        """Ends it and deletes what it stored."""
        self.service.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        for port in self._ports.values():  # some of its sockets lie there, whatever one sets
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 – its choice
                with suppress(PermissionError):  # another user's, of a port that was theirs before
                    socket.unlink(missing_ok=True)
