"""Checks URLs, origins and headers once, before connecting.

A checked value needs no further check. The host is an A-label (RFC 5890) or an IP literal; the target and every header
are printable ASCII without line breaks. Anything else raises `InvalidArgument`. Its text never quotes a query or a
header's value, because either may hold a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

import idna

from .._exceptions import InvalidArgument
from .._headers import TOKEN, Headers, header_pairs
from .._secret import revealed

_SECURE: Final = {"wss": True, "https": True, "ws": False, "http": False}
_TWIN: Final = {"wss": "https", "ws": "http", "https": "https", "http": "http"}
_DEFAULT_PORT: Final = {True: 443, False: 80}

_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_UNPRINTABLE: Final = re.compile(r"[\x00- \x7f]")
_TARGET: Final = re.compile(r"[!-~]*")
_ZONE: Final = re.compile(r"[0-9A-Za-z._~-]{1,64}")


@dataclass(frozen=True, slots=True)
class Origin:
    """The scope of a token: whether the connection is encrypted, the host as an A-label, and the port.

    `ws` and `http` are the same, and so are `wss` and `https`. As text: `https://api.example:443`, always with the
    port.
    """

    secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class URL:
    """A checked absolute URL; make one with `parse_url`. Its text has no query, so it may be logged.

    `target` is the request target (path and query) as sent. `zone` is an IPv6 literal's zone (RFC 6874): it selects the
    interface to connect from and is never sent. `absolute`: the host was written with its final dot (RFC 1034 section
    3.1), so it is resolved as it is, without a search list. Its origin is the same.
    """

    scheme: str
    origin: Origin
    target: str = field(repr=False)
    zone: str | None = None
    absolute: bool = False

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.path}"

    @property
    def whole(self) -> str:
        """The complete URL as text, which `parse_url` reads as the same URL. Its query may hold a token."""
        host = _bracketed(self.origin.host if self.zone is None else f"{self.origin.host}%25{self.zone}")
        port = "" if self.origin.port == _DEFAULT_PORT[self.origin.secure] else f":{self.origin.port}"
        return f"{self.scheme}://{host}{'.' * self.absolute}{port}{self.target}"

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def address(self) -> str:
        """Origin and path, such as `https://api.example:443/ws/progress`; `wss` and `https` are the same."""
        return f"{self.origin}{self.path}"

    @property
    def host_header(self) -> str:
        """The host, with the port if it is not the scheme's default (RFC 9110 section 7.2)."""
        host = _bracketed(self.origin.host)
        return host if self.origin.port == _DEFAULT_PORT[self.origin.secure] else f"{host}:{self.origin.port}"

    def at(self, target: str) -> URL:
        """The URL of another path (and query) at this origin over HTTP: `ws` becomes `http`, `wss` `https`."""
        _check_target(target)
        return replace(self, scheme=_TWIN[self.scheme], target=target)


def parse_url(text: str, *, schemes: Iterable[str] = ("wss", "ws"), allow_insecure: bool = False) -> URL:
    """Check an absolute URL.

    An unencrypted URL (`ws`, `http`) is allowed only to a loopback address or `localhost`; `allow_insecure=True` allows
    it to any host. Raises `InvalidArgument`.
    """
    if not isinstance(text, str):
        raise _wrong_url("must be text")
    # urlsplit silently removes line breaks and tabs; a URL that holds them is a mistake or an attack.
    if _UNPRINTABLE.search(text):
        raise _wrong_url("holds a space or a control character: percent-encode it")
    try:
        parts = urlsplit(text)
        port = parts.port
        userinfo, at_sign, _ = parts.netloc.rpartition("@")
    except ValueError:
        raise _wrong_url("is not a URL") from None
    scheme = parts.scheme.lower()
    schemes = tuple(schemes)
    if scheme not in schemes or scheme not in _SECURE:
        raise _wrong_url(f"the scheme must be {' or '.join(schemes)}")
    if userinfo or at_sign:
        raise _wrong_url("holds credentials: pass them as a header")
    if parts.fragment or text.endswith("#"):
        raise _wrong_url("holds a fragment, which RFC 6455 section 3 forbids: remove it, or write # as %23")
    if port == 0:
        raise _wrong_url("port 0 cannot be connected to")
    if not parts.hostname:
        raise _wrong_url("has no host")
    host, zone = parse_host(parts.hostname)
    absolute = parts.hostname.endswith(".") and not is_address(host)
    secure = _SECURE[scheme]
    if not secure and not allow_insecure and not is_loopback(host):
        ways = "Network(allow_insecure=True), --allow-insecure on the command line"
        raise _wrong_url(f"{scheme} is not encrypted: use {scheme}s, or allow it ({ways})")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    _check_target(target)
    return URL(scheme, Origin(secure, host, port or _DEFAULT_PORT[secure]), target, zone, absolute)


def parse_origin(text: str, *, allow_insecure: bool = False) -> URL:
    """Check an origin such as `https://api.example`: an http(s) or ws(s) URL without path and query."""
    url = parse_url(text, schemes=("https", "http", "wss", "ws"), allow_insecure=allow_insecure)
    if url.target != "/":
        raise InvalidArgument("origin", "must not have a path or a query")
    return url


def _wrong_url(problem: str) -> InvalidArgument:
    return InvalidArgument("url", problem)


@lru_cache(64)  # every reconnect asks again, and checking the labels is most of the work
def parse_host(text: str) -> tuple[str, str | None]:
    """The host as A-label or canonical IP literal, and an IPv6 literal's zone; raises `InvalidArgument`.

    A final dot is removed: the name and its certificate are the same with and without it.
    """
    if ":" in text:
        address, percent, zone = text.partition("%")
        zone = zone.removeprefix("25")  # RFC 6874 writes the sign as %25; a plain one is common
        if percent and not _ZONE.fullmatch(zone):
            raise _wrong_url("the zone of the IPv6 address holds a character that is not allowed")
        try:
            return IPv6Address(address).compressed, zone or None
        except ValueError:
            raise _wrong_url("the host is not a valid IPv6 address") from None
    try:
        return str(IPv4Address(text.removesuffix("."))), None
    except ValueError:
        pass
    if text.isascii() and "xn--" not in text.lower():
        # RFC 1123 does not allow underscores, but service names in private networks have them.
        host = text.lower()
    else:
        try:
            host = idna.encode(text, uts46=True, transitional=False).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise _wrong_url("the host is not a valid name (IDNA, UTS 46)") from None
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _wrong_url("the host is not a valid name: it needs labels of 1 to 63 letters, digits and hyphens")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        # The system's resolver would read 127.1 or 0x7f000001 as an address, which our checks have not seen.
        raise _wrong_url("the host ends in a number but is not an IPv4 address")
    return host, None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_target(target: str) -> None:
    if not target.startswith("/") or not _TARGET.fullmatch(target) or "#" in target:
        raise InvalidArgument("url", "the path or query holds a character that must be percent-encoded")


def is_localhost(host: str) -> bool:
    """Whether the name is `localhost` or below it, which never leaves the machine (RFC 6761 section 6.3)."""
    return host == "localhost" or host.endswith(".localhost")


def is_address(host: str) -> bool:
    """Whether a checked host is an IP literal."""
    return ":" in host or host.rpartition(".")[2].isdigit()  # the last label of a checked name is not a number


@lru_cache(64)
def is_loopback(host: str) -> bool:
    """Whether the host is `localhost` or a loopback address; names are not looked up."""
    try:
        address = ip_address(host)
    except ValueError:
        return is_localhost(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def check_method(method: str) -> None:
    """Check the method of a request; raises `InvalidArgument`."""
    if not isinstance(method, str) or not TOKEN.fullmatch(method):
        raise InvalidArgument("method", "must be a name such as GET or POST (RFC 9110 section 9.1)")


def check_headers(headers: Headers, *, reserved: frozenset[str]) -> list[tuple[bytes, bytes]]:
    """Check the caller's headers and encode them, as UTF-8. Raises as `header_pairs`."""
    return [(name.encode(), revealed(value).encode()) for name, value in header_pairs(headers, reserved=reserved)]
