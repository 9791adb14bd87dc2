"""The opening handshake of a WebSocket client (RFC 6455 section 4.1): bytes in, a result out. No I/O, no clock.

It uses h11 and not wsproto's own handshake. That one treats a 1xx response as a rejection, accepts an HTTP/1.0 101 and
one of two Upgrade values, and buffers a rejection's body without a bound.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import h11
from wsproto.utilities import generate_accept_token

from ..._exceptions import ConnectionBroken, ProtocolViolation
from ..._secret import Secret, revealed
from .._limits import DEFAULT_LIMITS, Limits
from .._url import URL
from ..http._protocol import head_room

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
    """The server accepted the upgrade. `trailing` holds frames from the same read, `extensions` the joined header."""

    subprotocol: str | None = field(repr=False)  # it may hold the token
    extensions: str
    headers: Sequence[tuple[bytes, bytes]] = field(repr=False)
    trailing: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """The server responded with a status other than 101. `body` is what arrived of the body, up to the limit."""

    status: int
    retry_after: bytes | None
    body: bytes = field(repr=False)


class ClientHandshake:
    """One WebSocket upgrade. Send `request`, then feed bytes to `receive` (the end to `receive_eof`) until it returns.

    `refusal` holds a refusal from its head on, before the body is complete: report it when the time runs out.
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
        #: The complete request; send it before receiving anything.
        self.request: Final[bytes] = (
            self._http.send(h11.Request(method=b"GET", target=url.target.encode("ascii"), headers=[*own, *headers]))
            or b""
        )

    @property
    def refusal(self) -> Refused | None:
        """The refusal as known so far, None if no refusing head has arrived."""
        return None if self._head is None else Refused(*self._head, bytes(self._body))

    def receive(self, data: bytes) -> Accepted | Refused | None:
        """Feed bytes; returns None if it needs more. Raises `ProtocolViolation`; close the stream then."""
        problem = None
        if not data:
            return None  # h11 reads empty data as the end of the stream
        try:
            while True:
                # h11 checks its bound only while an event is incomplete, so a head in one piece would pass at any size.
                # Feed it no more than the bound allows.
                room = len(data) if self._head is not None else head_room(self._http, self._limits.max_response_head)
                piece, data = data[:room], data[room:]
                self._http.receive_data(piece)
                answer = self._advance()
                if isinstance(answer, Accepted):
                    return replace(answer, trailing=answer.trailing + data)
                if answer is not None or not data:
                    return answer
                if not room:
                    raise ProtocolViolation(
                        f"the head of its response is longer than {self._limits.max_response_head} bytes"
                    )
        except ProtocolViolation:
            raise
        except Exception as error:
            # h11 raises more than its own errors on hostile bytes, and their texts quote the bytes.
            problem = type(error).__name__
        if self.refusal is not None:
            return self.refusal  # the body is broken, but the status was valid
        raise ProtocolViolation(f"its response to the upgrade is not HTTP ({problem})")

    def receive_eof(self) -> Refused:
        """Handle the end of the stream: return the refusal, or raise `ConnectionBroken` if there is none."""
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
                    raise ProtocolViolation(f"more than {self._limits.max_informational} 1xx responses")
            elif isinstance(event, h11.Response):
                self._head = event.status_code, _only(event.headers, b"retry-after")
            elif isinstance(event, h11.Data):
                room = self._limits.max_rejection_body - len(self._body)
                self._body += event.data[:room]
                if len(event.data) >= room:
                    return self.refusal
            else:  # EndOfMessage, PAUSED or ConnectionClosed: no more events will come
                return self.receive_eof()

    def _check(self, answer: h11.InformationalResponse) -> Accepted:
        headers = list(answer.headers)
        if answer.http_version != b"1.1":
            raise ProtocolViolation("it switched protocols in an HTTP version other than 1.1")
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
                raise ProtocolViolation("it chose no subprotocol, and one is required")
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
