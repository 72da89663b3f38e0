"""The object store that the DAQ puts its images in.

Belongs here: how to reach it, one put, one presigned URL.
Does not: what is put, and the server itself.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_MAX_LIFETIME = timedelta(days=7)  # AWS Signature Version 4


@dataclass(frozen=True)
class BucketSettings:
    """Where the bucket is and who may write to it.

    Args:
        endpoint: HTTPS address of the S3 server, without the bucket.
        bucket: Its name; the school's is "cygno-daq".
        access_key_id: Whose the URLs are; part of each URL.
        secret_access_key: Never shown.
        region: S3 region.
        ca_file: PEM file of the authority behind the server's certificate; None for the system's.
    """

    endpoint: str
    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    ca_file: Path | None = None


class Bucket:
    """The bucket. `put` blocks: call it in a thread (obstore's async API can abort at exit).

    Args:
        settings: Where it is.

    Raises:
        ValueError: The authority's file is not there.
    """

    def __init__(self, settings: BucketSettings) -> None:
        if settings.ca_file is not None and not settings.ca_file.is_file():
            raise ValueError(f"ca_file = {str(settings.ca_file)!r}: no such file")
        client: ClientConfig = {
            "allow_http": settings.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=10),
        }
        if settings.ca_file is not None:
            client["root_certificate"] = settings.ca_file.read_text()
        self._store = S3Store(
            settings.bucket,
            endpoint=settings.endpoint,
            access_key_id=settings.access_key_id,
            secret_access_key=settings.secret_access_key,
            region=settings.region,
            virtual_hosted_style_request=False,
            client_options=client,
            retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=30)},
        )

    def put(self, name: str, content: bytes | Path, media_type: str = "image/jpeg") -> None:
        """Stores `content`, bytes or a file's, as `name`, or replaces it.

        Raises:
            obstore.exceptions.BaseError: Not stored, after retries for up to half a minute.
        """
        obstore.put(self._store, name, content, attributes={"Content-Type": media_type})

    def presigned_url(self, name: str, lifetime: timedelta) -> str:
        """A URL that lets anyone get `name` (SigV4). Asks no server.

        Args:
            name: The object.
            lifetime: For how long, in whole seconds; the school's URLs live an hour.

        Raises:
            ValueError: A lifetime that SigV4 does not allow.
        """
        check_lifetime(lifetime)
        return obstore.sign(self._store, "GET", name, lifetime)


def check_lifetime(lifetime: timedelta) -> None:
    """Raises ValueError if no presigned URL can live for `lifetime` (SigV4: 1 s to 7 days)."""
    if not timedelta(seconds=1) <= lifetime <= _MAX_LIFETIME:
        raise ValueError(f"lifetime = {lifetime}: must be between 1 second and 7 days")
