"""How the requests of a protocol reach their server: the network, the limits, and the origins they may go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from .._exceptions import InvalidArgument
from .._facts import Request
from .._secret import Secret, Text, revealed
from ..transport import URL, Limits, Liveness, Network, Origin, parse_url

_SCHEMES: Final = ("https", "http", "wss", "ws")
_WEBSOCKET: Final = {"https": "wss", "http": "ws"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the sources need to make requests.

    `origins` are those that requests and the token may go to. `connect_deadline` (seconds) covers everything up to the
    head of the server's answer. `random` draws numbers from 0 to 1, for the jitter of polls.
    """

    origins: frozenset[Origin]
    limits: Limits
    liveness: Liveness
    connect_deadline: float
    network: Network
    wall_time: Callable[[], float]
    random: Callable[[], float]

    def url_of(self, asked: Request) -> URL:
        """The checked URL of a request, as HTTP or WebSocket.

        Raises `InvalidArgument` for a URL of an origin that is not the protocol's, and for one that is not absolute.
        """
        url = _checked_url(asked.url)
        if url.origin not in self.origins:
            own = " or ".join(sorted(map(str, self.origins)))
            raise InvalidArgument(
                "url",
                f"the protocol asks for {url.origin}, and the token must not be sent to another origin than {own}."
                " If the server moved the job there, follow it under its new URL",
            )
        if asked.via != "websocket":
            return url.at(url.target)
        return replace(url, scheme=_WEBSOCKET.get(url.scheme, url.scheme))


def _checked_url(text: Text) -> URL:
    try:
        # Whether an unencrypted origin is allowed was decided when the connection was made.
        return parse_url(revealed(text), schemes=_SCHEMES, allow_insecure=True)
    except InvalidArgument as error:
        problem = error.problem
    # A new error: the frames of the first one hold the URL, which may be secret.
    raise InvalidArgument("url", f"the protocol asks for a URL that cannot be used: {problem}")


def body_of(asked: Request) -> bytes | Secret | None:
    """The body to send. A POST without one has an empty body."""
    return b"" if asked.body is None and asked.method != "GET" else asked.body
