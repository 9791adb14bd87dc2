"""Who may do what: the tokens a request carries, and who may start jobs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from starlette.requests import HTTPConnection, Request

from ..._secret import Secret

logger: Final = logging.getLogger("towline.server")

#: Says in whose name a request may start a job, or None where it may not.
Authorize: TypeAlias = Callable[[Request], Awaitable[str | None]]

LOCAL_OWNER: Final = "local"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


async def loopback_only(request: Request) -> str | None:
    """Let in who calls from this machine, by its loopback address; it is what a hub without `authorize=` does.

    A proxy on this machine is not this machine's user, so a forwarded request is refused. So is any host name that is
    not loopback's own, because a page can make its name point here. A proxy that adds no header is not seen: behind
    one a hub needs its own `authorize=`. Pages of other origins are refused by the hub itself.
    """
    problem = _find_foreign(request)
    if problem is None:
        return LOCAL_OWNER
    logger.warning("only this machine may start jobs without authorize=: %s", problem)
    return None


def _find_foreign(request: Request) -> str | None:
    if request.client is None:
        return "the request comes over a Unix socket, as those of a proxy do"
    if not _is_loopback(request.client.host):
        return f"the request comes from {request.client.host}"
    forwarded = [name for name in _FORWARDED if name in request.headers]
    if forwarded:
        return f"the request has the header {forwarded[0]}"
    host = request.headers.get("host", "")
    if not _is_loopback(_split(f"//{host}").hostname or ""):
        return f"the Host {host!r} is not this machine's loopback address"
    return None


def is_same_origin(connection: HTTPConnection) -> bool:
    """Whether a page of the hub's own origin asks, or no page at all. The scheme's default port may be left out."""
    origin = connection.headers.get("origin")
    if origin is None:
        return True
    page = _split(origin)
    address = _address(page)
    return address is not None and address == _address(_split(f"{page.scheme}://{connection.headers.get('host', '')}"))


def _address(url: SplitResult) -> tuple[str, int | None] | None:
    try:
        return (url.hostname, url.port or _DEFAULT_PORTS.get(url.scheme)) if url.hostname else None
    except ValueError:  # the port is not a number
        return None


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # not a URL: the address of no page
        return urlsplit("")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def bearer_token(connection: HTTPConnection) -> Secret | None:
    """The token of the Authorization header (RFC 6750 section 2.1)."""
    scheme, _, text = connection.headers.get("authorization", "").partition(" ")
    text = text.strip()
    return Secret(text) if scheme.lower() == "bearer" and text else None


def query_token(connection: HTTPConnection) -> Secret | None:
    """The token of the query, which logs and proxies can see: only a hub that allows it asks for it."""
    text = connection.query_params.get("token")
    return Secret(text) if text else None


def socket_token(connection: HTTPConnection, *, subprotocol: str, in_query: bool) -> tuple[Secret | None, str | None]:
    """The token of an upgrade, and the subprotocol to answer with.

    A browser cannot set headers, so it offers `<subprotocol>.<token>`, best together with plain `<subprotocol>`, which
    is then the answer: the token is not said back.
    """
    offered = [item.strip() for item in connection.headers.get("sec-websocket-protocol", "").split(",")]
    carrier = next((item for item in offered if item.startswith(f"{subprotocol}.")), None)
    answer = subprotocol if subprotocol in offered else carrier
    if (bearer := bearer_token(connection)) is not None:
        return bearer, answer
    if carrier is not None and len(carrier) > len(subprotocol) + 1:
        return Secret(carrier[len(subprotocol) + 1 :]), answer
    return (query_token(connection) if in_query else None), answer
