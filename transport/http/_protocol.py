"""One HTTP/1.1 request and its response, without I/O: bytes in, events out.

The request says `Accept-Encoding: identity`, and `Connection: close` unless the connection is to be kept; the response
may be chunked. Redirects are not followed. The driver sends `request_head`, then each `body_chunk` and `body_end`, and
feeds received bytes to `receive`. If the exchange is then `reusable`, another one may follow on the same connection.
"""

from __future__ import annotations

import email.utils
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import h11

from ..._exceptions import ConnectionBroken, ProtocolViolation
from .._url import URL

#: Headers that the exchange sets itself.
RESERVED: Final = frozenset({"accept-encoding", "connection", "content-length", "host", "transfer-encoding", "upgrade"})

_MAX_HEAD: Final = 64 << 10
_MAX_INFORMATIONAL: Final = 16


@dataclass(frozen=True, slots=True)
class Head:
    """The response's status and headers, with lower-case names. Its repr shows the status alone."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = field(repr=False)

    def header(self, name: bytes) -> bytes | None:
        """The value of a header that occurs exactly once, else None."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None


class HTTPExchange:
    """One request and its response.

    `content_length` is the size of the request body in bytes: None for no body, -1 for a chunked body of unknown size.
    `keep_alive` leaves it to the server whether the connection stays open.
    """

    def __init__(
        self,
        method: str,
        url: URL,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        content_length: int | None = None,
        keep_alive: bool = False,
    ) -> None:
        self.head: Head | None = None
        #: Whether any byte of the response has arrived.
        self.answered = False
        #: Whether the response is complete.
        self.complete = False
        #: Why nothing can be read after the last pieces; the next `receive` raises it.
        self.problem: ProtocolViolation | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._informational = 0
        own = [(b"Host", url.host_header.encode("ascii")), (b"Accept-Encoding", b"identity")]
        if not keep_alive:
            own.append((b"Connection", b"close"))
        if content_length is not None and content_length < 0:
            own.append((b"Transfer-Encoding", b"chunked"))
        elif content_length is not None:
            own.append((b"Content-Length", b"%d" % content_length))
        request = h11.Request(
            method=method.encode("ascii"), target=url.target.encode("ascii"), headers=[*own, *headers]
        )
        self.request_head: Final[bytes] = self._http.send(request) or b""

    # --- send ---------------------------------------------------------------------------------------------------

    def body_chunk(self, data: bytes) -> bytes:
        """The bytes of a piece of the body. Raises `h11.LocalProtocolError` past the declared length."""
        return self._http.send(h11.Data(data=data)) or b""

    def body_end(self) -> bytes:
        """The bytes that end the request, with or without a body."""
        return self._http.send(h11.EndOfMessage()) or b""

    # --- receive ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[bytes]:
        """Feed bytes (empty: the stream ended) and return pieces of the body. Then check `head` and `complete`.

        Raises `ProtocolViolation` (after pieces: at the next call, see `problem`), and `ConnectionBroken` if the stream
        ended before the response did.
        """
        if self.problem is not None:
            raise self.problem
        self.answered = self.answered or bool(data)
        problem = None
        pieces: list[bytes] = []
        try:
            rest = data
            while not self.complete and problem is None:
                room = len(rest) if self.head is not None else head_room(self._http, _MAX_HEAD)
                piece, rest = rest[:room], rest[room:]
                self._http.receive_data(piece)
                problem = self._advance(pieces)
                if problem is None and not self.complete:
                    if not rest:
                        return pieces
                    if not room:
                        problem = "a head that does not end"
        except Exception as error:
            # h11 raises more than its own errors on hostile bytes, and their texts quote the bytes.
            problem = type(error).__name__
        if self.complete:
            return pieces
        if not data:
            raise ConnectionBroken("the stream ended before the response did")
        violation = ProtocolViolation(f"its response is not HTTP ({problem})")
        if not pieces:
            raise violation
        self.problem = violation
        return pieces

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow on this connection.

        Both messages are complete, both sides allow it (RFC 9112 section 9.3), and no byte came after the response.
        """
        return (
            self.complete
            and self._http.our_state is self._http.their_state is h11.DONE
            and not any(self._http.trailing_data)
        )

    def _advance(self, pieces: list[bytes]) -> str | None:
        """Process h11's events; returns the problem, None if there is none."""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return None
            if isinstance(event, h11.InformationalResponse):
                self._informational += 1
                if self._informational > _MAX_INFORMATIONAL or event.status_code == 101:
                    return "too many 1xx responses"
            elif isinstance(event, h11.Response):
                self.head = Head(event.status_code, list(event.headers))
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.complete = True
                return None
            else:
                return "ConnectionClosed"


def head_room(http: h11.Connection, limit: int) -> int:
    """How many more bytes of a head may be fed to h11."""
    return limit - len(http.trailing_data[0])


def parse_retry_after(value: bytes | None, wall_time: float) -> float | None:
    """Read `Retry-After` (RFC 9110 section 10.2.3) as seconds from now, never negative; None if it is unusable.

    `wall_time` is the current time in seconds since 1970; a date is measured against it.
    """
    if value is None or len(value) > 64:
        return None
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        parsed = email.utils.parsedate_to_datetime(text)
        moment = parsed.timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    # Python would read a date without a zone as local time; HTTP dates are always GMT.
    return None if parsed.tzinfo is None else max(0.0, moment - wall_time)
