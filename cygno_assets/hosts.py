"""Hosts in URLs: the one form in which they are compared, and the list of those to fetch from.

Here belong forms and matching; not what is asked of a host. Imports nothing else of ours.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

_PORTS = {"https": 443, "http": 80}
# What passes here is read alike by every parser there is: no user name, no backslash, no `%`.
_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_HOST_LENGTH = 253
_SHOWN = 80
_WORD = re.compile(r'(?:\\.|[^ \t\r\n"\\])+')
_QUERY = re.compile(r"\?|\\u003f|%3f|x-amz-", re.IGNORECASE)
_AT = re.compile(r"@|\\u0040|%40", re.IGNORECASE)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that is given out of IPv6 (RFC 4291); what is not, some network may use for itself."""
_IETF_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")
"""Of RFC 6890, of which Python takes some addresses for global."""


@dataclass(frozen=True)
class Endpoint:
    """Where a URL leads: its scheme, its host in lower case, and the port, written or not."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """Reads the beginning of a URL.

        Raises:
            ValueError: it is written in a form that some program may read otherwise than we do.
                The text begins with a verb and quotes nothing but the host.
        """
        if any(c.isspace() or not c.isprintable() for c in url):
            raise ValueError("holds spaces or control characters")  # which some programs leave out
        try:
            parts = urlsplit(url)
            _ = parts.port  # read lazily; may raise
        except ValueError:
            raise ValueError("cannot be parsed") from None
        if parts.scheme not in _PORTS:
            raise ValueError(f"is neither https nor http: {_shown(parts.scheme)}")
        if not parts.hostname:
            raise ValueError("names no host")
        if "@" in parts.netloc:
            raise ValueError("holds a user name or password before its host")
        if not parts.netloc.isascii():
            raise ValueError(
                f"names a host in letters beyond ASCII (write it as xn--…): {_shown(parts.netloc)}"
            )
        match = _AUTHORITY.fullmatch(parts.netloc)
        if match is None:
            raise ValueError(f"names no plain host[:port]: {_shown(parts.netloc)}")
        port = _PORTS[parts.scheme] if match["port"] is None else int(match["port"])
        if not 1 <= port <= 65_535:
            raise ValueError(f"names port {port}, which is none")
        return cls(parts.scheme, _canonical(match["host"]), port)

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"[{self.host}]{port}" if ":" in self.host else f"{self.host}{port}"


@dataclass(frozen=True)
class AllowedHost:
    """One entry of the list of hosts to fetch from.

    Attributes:
        endpoint: scheme, host and port; all three must agree.
        below: the host stands for all names below it, but not for itself.
    """

    endpoint: Endpoint
    below: bool = False

    @classmethod
    def parse(cls, entry: str) -> AllowedHost:
        """Reads `host[:port]` or `*.example.org[:port]`; https unless `http://` is before it.

        Raises:
            ValueError: it is none of these; the text quotes the entry.
        """
        scheme, _, rest = entry.rpartition("://")
        below, rest = rest.startswith("*."), rest.removeprefix("*.")
        if rest.count(":") > 1 and not rest.startswith("["):
            rest = f"[{rest}]"  # a bare IPv6 address
        shown = repr(entry.rpartition("@")[2])  # what is before it may be a password
        if set(rest) & set("/?#"):
            raise ValueError(f"{shown} has something after its host")
        try:
            endpoint = Endpoint.of(f"{scheme or 'https'}://{rest}")
        except ValueError as error:
            raise ValueError(f"{shown} {error}") from None
        if below and (_address(endpoint.host) or "." not in endpoint.host):
            raise ValueError(f"{shown} is no pattern of the form *.example.org")
        return cls(endpoint, below)

    def admits(self, endpoint: Endpoint) -> bool:
        """Whether this entry lets somebody ask there."""
        mine = self.endpoint
        if (endpoint.scheme, endpoint.port) != (mine.scheme, mine.port):
            return False
        return endpoint.host.endswith(f".{mine.host}") if self.below else endpoint == mine

    def __str__(self) -> str:
        scheme = "" if self.endpoint.scheme == "https" else "http://"
        return f"{scheme}{'*.' if self.below else ''}{self.endpoint}"


def admitting(endpoint: Endpoint, allowed: Iterable[AllowedHost]) -> AllowedHost | None:
    """The entry that admits an endpoint, one that names it before a pattern; None if none does."""
    entries = [entry for entry in allowed if entry.admits(endpoint)]
    return min(entries, key=lambda entry: entry.below, default=None)


def is_public(address: str) -> bool:
    """Whether an IP address is of the internet at large: not private, loopback, link-local, ….

    An IPv4 address that is wrapped into an IPv6 one is judged by itself.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or inner or ip
    allocated = ip in _GLOBAL_UNICAST if ip.version == 6 else ip not in _IETF_PROTOCOLS
    return allocated and ip.is_global and not ip.is_multicast


def is_loopback(host: str) -> bool:
    """Whether a host, as an Endpoint has it, is this machine by whatever resolver."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def without_queries(text: str) -> str:
    """A text as it may be printed: a URL's signature opens its image for whoever reads it."""
    # Up to a space or a quotation mark, unless the mark is escaped, as in JSON: it is the query's.
    return re.sub(r'\?(?:\\.|[^\s"])*', "?…", text)


def without_secrets(text: str) -> str:
    """What somebody sent, as it may be printed: without queries, and without user names.

    Of each word, which ends at a space or `"`, what is before an `@` and after a `?` is left out,
    be it that these are written as JSON or a URL may write them, and with `://` or without.
    """
    return _WORD.sub(_without_its_secrets, text)


def _without_its_secrets(word: re.Match[str]) -> str:
    path, *query = _QUERY.split(word[0], maxsplit=1)
    if query and _AT.search(query[0]):
        return "…"  # the `?` may be part of a password, or the `@` of a signature
    *user, rest = _AT.split(path)
    return ("…@" if user else "") + rest + ("?…" if query else "")


def _canonical(host: str) -> str:
    odd = ValueError(f"writes an address in an odd form: {_shown(host)}")
    host = host.lower()
    if host.startswith("["):
        address = _address(host[1:-1])
        if not isinstance(address, ipaddress.IPv6Address) or address.ipv4_mapped is not None:
            raise odd
        return str(address)
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # 127.1, 2130706433 and 0x7f.1 are all 127.0.0.1 to some
        if _address(host) is None:
            raise odd
    elif len(host) > _MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"names a host that cannot be: {_shown(host)}")
    return host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _shown(host: str) -> str:
    host = without_secrets(host)  # it need not be one
    return repr(host if len(host) <= _SHOWN else host[:_SHOWN] + "…")
