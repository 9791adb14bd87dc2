"""TLS without I/O: the peer's bytes in, plain bytes out, and the reverse. A `SocketStream` moves the bytes.

OpenSSL works on two memory buffers. A non-blocking `SSLSocket` costs the same per round trip, but it makes two system
calls per record, gives one record per read, and cannot say which bytes it still has to send.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any, Final

import anyio

#: The largest record's content (RFC 8446 section 5.1): OpenSSL returns at most one record per read.
_RECORD: Final = 16 << 10

#: The largest record as sent (section 5.2), with its header.
SEALED_RECORD: Final = _RECORD + 256 + 5

_MAX_SESSIONS: Final = 64


class TLS:
    """One TLS connection of a client. Call `shake_hands` until it returns True, then `open` and `seal`.

    After each call, send `data_to_send()`. `end` is None until the peer ends the connection or breaks TLS, then the
    exception for the reader: `EndOfStream`, or `BrokenResourceError` from an `ssl.SSLError`.
    """

    def __init__(self, context: ssl.SSLContext, server_name: str, port: int) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        if isinstance(self.object, ResumingObject):
            self.object.port = port
        self.end: anyio.EndOfStream | anyio.BrokenResourceError | None = None

    def feed(self, data: bytes) -> None:
        """Add bytes of the peer's to read."""
        self._incoming.write(data)

    def shake_hands(self) -> bool:
        """Continue the handshake; returns whether it is complete. Raises `ssl.SSLError`."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def open(self, data: bytes | memoryview) -> bytes:
        """Decrypt bytes from the peer. Returns the complete content, perhaps none; check `end` after each call."""
        self._incoming.write(data)
        pieces: list[bytes] = []
        try:
            while self._incoming.pending and self.end is None:
                if piece := self.object.read(_RECORD):
                    pieces.append(piece)
                else:
                    self.end = anyio.EndOfStream()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.end = anyio.BrokenResourceError()
            self.end.__cause__ = error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """Encrypt our bytes; returns them after everything else that waits to be sent. Raises `ssl.SSLError`."""
        self.object.write(data)
        return self._outgoing.read()

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` would return bytes: handshake, an alert, an answer to a key update."""
        return self._outgoing.pending > 0

    def data_to_send(self) -> bytes:
        """Bytes for the peer."""
        return self._outgoing.read()

    def farewell(self) -> bytes:
        """Our close_notify alert (RFC 8446 section 6.1); nothing may be sent after it."""
        # The peer's own close_notify, for which `unwrap` would like to wait, tells us nothing new.
        with suppress(ssl.SSLError):
            self.object.unwrap()
        return self._outgoing.read()


def resume_sessions(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a client's context resume TLS sessions (RFC 8446 section 2.2), so that reconnecting costs less. Returns it.

    It keeps the newest session of each host name and port, for at most 64 of them, and uses each session once.
    """

    class OfThisContext(ResumingObject):
        sessions: dict[tuple[str, int], ssl.SSLSession] = {}  # noqa: RUF012 - shared by the context's connections

    context.sslobject_class = OfThisContext
    return context


class ResumingObject(ssl.SSLObject):
    """A TLS connection that offers its origin's kept session, and keeps the newest one for the next connection."""

    sessions: dict[tuple[str, int], ssl.SSLSession]
    port = 0
    _offered = False
    _remembered = False

    def do_handshake(self) -> None:
        """Offer the session, then handshake as the base class."""
        if not self._offered and self.server_hostname is not None:
            self._offered = True
            if (session := self.sessions.pop((self.server_hostname, self.port), None)) is not None:
                self.session = session
        super().do_handshake()

    def read(self, *arguments: Any, **options: Any) -> Any:
        """Read as the base class, and keep the session."""
        data = super().read(*arguments, **options)
        # In TLS 1.3 the ticket arrives after the handshake, before the server's first data.
        # Each look at the attribute makes a copy.
        if not self._remembered and self.server_hostname is not None and (session := self.session) is not None:
            self._remembered = True
            while len(self.sessions) >= _MAX_SESSIONS:
                self.sessions.pop(next(iter(self.sessions)), None)  # loops in several threads may share the context
            self.sessions[self.server_hostname, self.port] = session
        return data
