"""Opens a tunnel through a proxy: HTTP CONNECT (RFC 9110 section 9.3.6) or SOCKS5 (RFC 1928, RFC 1929).

Only connections that will carry TLS use a proxy, so it sees just a host name and a port. Only the proxy sees its
credentials. The proxy resolves the host name; we do not.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

import anyio
import h11
from anyio.abc import ByteStream

from ..._exceptions import InvalidArgument, ProxyFailed
from ..._secret import Secret
from .._url import is_loopback, parse_host
from ..http._protocol import head_room

_DEFAULT_PORT: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
#: Desktops write `socks` into `all_proxy`, without saying which version they mean.
_ALIASES: Final = {"socks": "socks5"}
_SOCKS: Final = frozenset({"socks5", "socks5h"})
_UNPRINTABLE: Final = re.compile(r"[\x00- \x7f]")
_PORT: Final = re.compile("[0-9]{1,5}")
_MAX_HEAD: Final = 16 << 10
_MAX_INFORMATIONAL: Final = 16


@dataclass(frozen=True, slots=True)
class Proxy:
    """A checked proxy. `zone` is an IPv6 literal's zone. Its password is a `Secret`."""

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: Secret | None = None
    zone: str | None = None

    @property
    def secure(self) -> bool:
        """Whether the connection to the proxy itself is encrypted."""
        return self.scheme == "https"


def parse_proxy(text: str, name: str = "proxy") -> Proxy:
    """Check a proxy's URL: `http`, `https`, `socks5`, `socks5h` or `socks`, with credentials if the proxy needs them.

    All SOCKS schemes mean version 5 and let the proxy resolve names. `name` is the argument or variable that holds the
    URL. Raises `InvalidArgument`, which never quotes the URL.
    """
    problem = "must be a URL such as http://user:password@host:3128 (http, https or socks5)"
    rest = text.partition("://")[2].removesuffix("/")
    if "#" in rest:
        raise InvalidArgument(name, f"{problem}; write # in a password as %23")
    if "/" in rest or "?" in rest:
        # Such as a `proxy.pac`, a program that chooses a proxy.
        raise InvalidArgument(name, f"{problem}, without a path; write / and ? in a password as %2F and %3F")
    if _UNPRINTABLE.search(text):
        raise InvalidArgument(name, f"{problem}, without spaces or control characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidArgument(name, problem) from None
    scheme = _ALIASES.get(parts.scheme.lower(), parts.scheme.lower())
    if scheme not in _DEFAULT_PORT or not parts.hostname or port == 0:
        raise InvalidArgument(name, problem)
    try:
        host, zone = parse_host(parts.hostname)
    except InvalidArgument as error:
        raise InvalidArgument(name, error.problem) from None
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else Secret(unquote(parts.password))
    for value in (username, password.reveal() if password else None):
        if value is not None and (len(value.encode()) > 255 or any(character < " " for character in value)):
            raise InvalidArgument(
                name, "its user name or password is longer than 255 bytes or holds a control character"
            )
    if scheme in _SOCKS:
        try:
            import socksio  # noqa: F401 - asked for now, before anything is dialled
        except ImportError:
            raise InvalidArgument(name, "SOCKS5 needs an extra: pip install 'towline[socks]'") from None
    return Proxy(scheme, host, port or _DEFAULT_PORT[scheme], username, password, zone)


def proxy_from_environment(host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that `https_proxy` or `all_proxy` (in either case) names for a host, unless `no_proxy` excludes it.

    Loopback never uses an environment's proxy. `no_proxy` lists host names (with all subdomains), addresses, networks
    such as `10.0.0.0/8`, each with or without a port, or `*`. A proxy may be written as desktops and shells do:
    `host:3128`, `//host:3128`, with spaces around it. Raises `InvalidArgument` with the variable's name.
    """
    if is_loopback(host) or _is_excluded(host, port, _variable("no_proxy", environment)[1]):
        return None
    name, text = _variable("https_proxy", environment)
    if not text:
        name, text = _variable("all_proxy", environment)
    if not text:
        return None
    return parse_proxy(text if "://" in text else f"http://{text.removeprefix('//')}", name)


def _variable(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """A variable's name as it is set, and its value without surrounding spaces; a blank one counts as not set."""
    for spelling in (name, name.upper()):
        if value := environment.get(spelling, "").strip():
            return spelling, value
    return name, ""


def _is_excluded(host: str, port: int, listed: str) -> bool:
    # `curl` and others also accept spaces between the entries.
    for entry in listed.lower().replace(",", " ").split():
        if entry == "*":
            return True
        name, colon, entry_port = entry.rpartition(":")
        if colon and _PORT.fullmatch(entry_port) and (":" not in name or name.startswith("[")):
            if int(entry_port) != port:
                continue
            entry = name
        entry = entry.strip("[]").lstrip(".").removeprefix("*.").rstrip(".")
        if not entry:
            continue
        if host == entry or host.endswith(f".{entry}"):
            return True
        try:
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        except ValueError:
            continue  # the host or the entry is a name
    return False


async def open_tunnel(stream: ByteStream, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy on this stream to connect to a host. Raises `ProxyFailed`, and the stream's errors."""
    if proxy.scheme in {"http", "https"}:
        await _connect_http(stream, proxy, host, port)
    else:
        await _connect_socks(stream, proxy, host, port)


async def _connect_http(stream: ByteStream, proxy: Proxy, host: str, port: int) -> None:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    await stream.send(_connect_request(http, proxy, authority))
    informational = 0
    while True:
        try:
            event = http.next_event()
        except Exception as error:
            problem = type(error).__name__  # the error's text may quote the bytes
        else:
            # h11 checks its bound only while a head is incomplete: feed it no more than there is room for.
            if event is h11.NEED_DATA and (room := head_room(http, _MAX_HEAD)):
                try:
                    http.receive_data(await stream.receive(room))
                except anyio.EndOfStream:
                    raise ProxyFailed("it closed the connection without a response") from None
                continue
            if isinstance(event, h11.InformationalResponse) and informational < _MAX_INFORMATIONAL:
                informational += 1
                continue
            if event is h11.NEED_DATA:
                problem = "a head that does not end"
            elif not isinstance(event, h11.Response):
                problem = type(event).__name__
            elif not 200 <= event.status_code < 300:
                raise ProxyFailed(f"it answered CONNECT with {event.status_code}", status=event.status_code)
            elif http.trailing_data[0]:
                problem = "it sent bytes before ours"  # in TLS the client speaks first
            else:
                return
        raise ProxyFailed(f"its response to CONNECT is not HTTP ({problem})")


# Only functions that cannot raise hold credentials in plain text in their variables.


def _login(proxy: Proxy) -> tuple[bytes, bytes]:
    return (proxy.username or "").encode(), proxy.password.reveal().encode() if proxy.password else b""


def _connect_request(http: h11.Connection, proxy: Proxy, authority: str) -> bytes:
    headers = [("Host", authority)]
    if proxy.username is not None:
        headers.append(("Proxy-Authorization", f"Basic {b64encode(b':'.join(_login(proxy))).decode()}"))
    request = http.send(h11.Request(method=b"CONNECT", target=authority, headers=headers)) or b""
    return request + (http.send(h11.EndOfMessage()) or b"")


async def _connect_socks(stream: ByteStream, proxy: Proxy, host: str, port: int) -> None:
    from socksio import ProtocolError, socks5

    async def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                data += await stream.receive(count - len(data))
            except anyio.EndOfStream:
                raise ProxyFailed("it closed the connection during the SOCKS5 handshake") from None
        return data

    connection = socks5.SOCKS5Connection()
    methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if proxy.username is not None:
        methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
    try:
        connection.send(socks5.SOCKS5AuthMethodsRequest(methods))
        await stream.send(connection.data_to_send())
        chosen = connection.receive_data(await exactly(2))
        if not isinstance(chosen, socks5.SOCKS5AuthReply) or chosen.method not in methods:
            raise ProxyFailed(
                "it accepts none of our login methods: check the user name and password in the proxy's URL"
            )
        if chosen.method is socks5.SOCKS5AuthMethod.USERNAME_PASSWORD:
            connection.send(socks5.SOCKS5UsernamePasswordRequest(*_login(proxy)))
            await stream.send(connection.data_to_send())
            verdict = connection.receive_data(await exactly(2))
            if not isinstance(verdict, socks5.SOCKS5UsernamePasswordReply) or not verdict.success:
                raise ProxyFailed("it rejected the user name or password")
        connection.send(socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port)))
        await stream.send(connection.data_to_send())
        # Version, reply, reserved byte, then an address in one of three forms and a port (RFC 1928 section 6).
        reply = await exactly(5)
        size = {1: 4, 3: reply[4] + 1, 4: 16}.get(reply[3])
        if size is None:
            raise ProxyFailed("its response is not SOCKS5")
        answer = connection.receive_data(reply + await exactly(size + 2 - 1))
    except (ProtocolError, ValueError, IndexError):
        raise ProxyFailed("its response is not SOCKS5") from None
    if not isinstance(answer, socks5.SOCKS5Reply):
        raise ProxyFailed("its response is not SOCKS5")
    if answer.reply_code is not socks5.SOCKS5ReplyCode.SUCCEEDED:
        raise ProxyFailed(f"SOCKS5: {answer.reply_code.name.replace('_', ' ').lower()}")
