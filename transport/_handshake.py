"""The opening handshake of a WebSocket client (RFC 6455 section 4.1): bytes in, an answer out. No I/O, no clock.

It stands on h11 rather than on wsproto's own handshake, which takes a 1xx answer for a rejection, accepts an HTTP/1.0
101 and one of two Upgrade values, and keeps a rejection's body without bound. It does not know how its bytes travel.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import h11
from wsproto.utilities import generate_accept_token

from .._exceptions import ConnectionBroken, ProtocolViolation
from .._secret import Secret
from ._http_protocol import head_room
from ._limits import DEFAULT_LIMITS, Limits
from ._url import URL, revealed

#: Headers that the handshake sets itself.
RESERVED: Final = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    }
)

Entropy: TypeAlias = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server agreed. `trailing` holds frames that came in the same read; `extensions` is its header, joined."""

    subprotocol: str | None = field(repr=False)  # it may hold the token
    extensions: str
    headers: Sequence[tuple[bytes, bytes]] = field(repr=False)
    trailing: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """The server answered with another status than 101; `body` is what came of it, up to the limit."""

    status: int
    retry_after: bytes | None
    body: bytes = field(repr=False)


class ClientHandshake:
    """One upgrade. Send `request`, feed what comes to `receive` (and the end to `receive_eof`) until it answers.

    `refusal` holds a refused upgrade from its head on, before its body is whole: what to report when time runs out.
    """

    def __init__(
        self,
        url: URL,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        subprotocols: Sequence[str | Secret] = (),
        require_subprotocol: bool = False,
        extensions: str = "",
        limits: Limits | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._limits = limits or DEFAULT_LIMITS
        self._subprotocols = subprotocols
        self._require_subprotocol = require_subprotocol
        self._offered_extensions = bool(extensions)
        self._key = b64encode(entropy(16))
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.max_response_head)
        self._informational = 0
        self._body = bytearray()
        self._head: tuple[int, bytes | None] | None = None
        own = [
            (b"Host", url.host_header.encode("ascii")),
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Key", self._key),
            (b"Sec-WebSocket-Version", b"13"),
        ]
        if subprotocols:
            own.append((b"Sec-WebSocket-Protocol", ", ".join(map(revealed, subprotocols)).encode("ascii")))
        if extensions:
            own.append((b"Sec-WebSocket-Extensions", extensions.encode("ascii")))
        #: The request, whole: it is to be sent before anything is received.
        self.request: Final[bytes] = (
            self._http.send(h11.Request(method=b"GET", target=url.target.encode("ascii"), headers=[*own, *headers]))
            or b""
        )

    @property
    def refusal(self) -> Refused | None:
        """The refusal as far as it is known now, or None while no refusing head has come."""
        return None if self._head is None else Refused(*self._head, bytes(self._body))

    def receive(self, data: bytes) -> Accepted | Refused | None:
        """Take bytes; None means that more are needed. Raises `ProtocolViolation`; after it, hang up."""
        problem = None
        if not data:
            return None  # h11 would take it for the end of the stream
        try:
            while True:
                # h11 looks at its bound only while an event is incomplete, so a head that comes in one piece would
                # pass however large: it is given no more than the bound has room for.
                room = len(data) if self._head is not None else head_room(self._http, self._limits.max_response_head)
                piece, data = data[:room], data[room:]
                self._http.receive_data(piece)
                answer = self._advance()
                if isinstance(answer, Accepted):
                    return replace(answer, trailing=answer.trailing + data)
                if answer is not None or not data:
                    return answer
                if not room:
                    raise ProtocolViolation(f"the head of its answer is over {self._limits.max_response_head} bytes")
        except ProtocolViolation:
            raise
        except Exception as error:
            # h11 raises more than its own errors on hostile bytes, and their texts quote the bytes.
            problem = type(error).__name__
        if self.refusal is not None:
            return self.refusal  # the body is broken, the status was not
        raise ProtocolViolation(f"its answer to the upgrade is not HTTP ({problem})")

    def receive_eof(self) -> Refused:
        """The stream ended. Gives the refusal if there is one; raises `ConnectionBroken` if there is not."""
        if self.refusal is None:
            raise ConnectionBroken("the stream ended before the upgrade was answered")
        return self.refusal

    def _advance(self) -> Accepted | Refused | None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return self._check(event)
                self._informational += 1
                if self._informational > self._limits.max_informational:
                    raise ProtocolViolation(f"more than {self._limits.max_informational} 1xx answers")
            elif isinstance(event, h11.Response):
                self._head = event.status_code, _only(event.headers, b"retry-after")
            elif isinstance(event, h11.Data):
                room = self._limits.max_rejection_body - len(self._body)
                self._body += event.data[:room]
                if len(event.data) >= room:
                    return self.refusal
            else:  # EndOfMessage, PAUSED or ConnectionClosed: nothing more will come
                return self.receive_eof()

    def _check(self, answer: h11.InformationalResponse) -> Accepted:
        headers = list(answer.headers)
        if answer.http_version != b"1.1":
            raise ProtocolViolation("it switched protocols in another HTTP version than 1.1")
        if [value.lower() for value in _tokens(headers, b"upgrade")] != [b"websocket"]:
            raise ProtocolViolation("its Upgrade header is not exactly one websocket")
        if b"upgrade" not in [value.lower() for value in _tokens(headers, b"connection")]:
            raise ProtocolViolation("its Connection header does not say Upgrade")
        if _all(headers, b"sec-websocket-accept") != [generate_accept_token(self._key)]:
            raise ProtocolViolation("its Sec-WebSocket-Accept does not answer our key")
        extensions = b", ".join(_tokens(headers, b"sec-websocket-extensions"))
        if extensions and not self._offered_extensions:
            raise ProtocolViolation("it chose an extension that was not offered")
        return Accepted(
            self._chosen_subprotocol(_all(headers, b"sec-websocket-protocol")),
            extensions.decode("latin-1"),
            headers,
            self._http.trailing_data[0],
        )

    def _chosen_subprotocol(self, values: list[bytes]) -> str | None:
        if not values:
            if self._require_subprotocol:
                raise ProtocolViolation("it chose none of the subprotocols, and one is required")
            return None
        chosen = values[0].decode("latin-1")
        if len(values) > 1 or chosen not in map(revealed, self._subprotocols):
            raise ProtocolViolation("it chose a subprotocol that was not offered")
        return chosen


def _all(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _only(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    values = _all(headers, name)
    return values[0] if len(values) == 1 else None


def _tokens(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """The members of a list-valued header (RFC 9110 section 5.6.1), over all its lines."""
    return [token for value in _all(headers, name) for part in value.split(b",") if (token := part.strip())]
