"""Reads a WebSocket client's frames (RFC 6455 section 5): a fast path in front of wsproto.

The fast path cuts a frame from the read buffer and decodes it in place. It takes a complete, final, unmasked text or
binary frame without reserved bits, outside a fragmented message and within the size limit. It also takes compressed
frames if compression was negotiated, and complete pings and pongs. All other bytes go to `wsproto.Connection`, in
order. wsproto alone makes some thirty Python calls per frame; the fast path makes one or two.

wsproto always handles close frames and broken frames. We add the limits that wsproto lacks: bytes and fragments of a
message, and frames per turn.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from itertools import repeat
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from ..._exceptions import MessageTooBig, ProtocolViolation
from .._limits import Limits
from ._deflate import DeflateExtension, packed_room

Message: TypeAlias = str | bytes

_FIN_TEXT: Final = 0x81
_FIN_BINARY: Final = 0x82
_FIN_PING: Final = 0x89
_FIN_PONG: Final = 0x8A
_PING_AND_PONG: Final = frozenset({_FIN_PING, _FIN_PONG})
_NEVER: Final = -1  # no byte equals it

# First bytes that may take the fast path: text, binary, and with RSV1 the same compressed (RFC 7692 section 6).
_ALL_HEADS: Final = (_FIN_TEXT, _FIN_BINARY, _FIN_TEXT | 0x40, _FIN_BINARY | 0x40)
_PLAIN_HEADS: Final = (_FIN_TEXT, _FIN_BINARY, _NEVER, _NEVER)
_NO_HEADS: Final = (_NEVER, _NEVER, _NEVER, _NEVER)

# How many fragments of one message are kept before they are joined, so that a peer that sends single bytes does not
# cost an object for each.
_PIECES: Final = 4096

# From this size on, a frame in the buffer is decoded in place: the view costs less than a copy of the bytes.
_IN_PLACE: Final = (1 << 16) - 1

# Text up to this size is checked while it arrives, so that invalid UTF-8 is refused at once. More text is decoded once,
# when it is complete.
_CHECKED_EARLY: Final = 64 << 10

# Pings waiting for their pong: beyond this, only the newest are answered, as section 5.5.3 allows.
_PENDING_PINGS: Final = 16

# wsproto's text for a failure in our deflate extension.
_IN_EXTENSION: Final = "error in extension"

_unpack_header: Final = Struct("!BBH").unpack_from
_utf8: Final = getincrementaldecoder("utf-8")


class Failure(NamedTuple):
    """The reason reading ended: the close code to send (RFC 6455 section 7.4.1) and the error to raise."""

    close_code: int
    error: ProtocolViolation | MessageTooBig


class FrameReader:
    """Turns bytes into messages.

    `receive` returns the messages. After each call, check the attributes: `pings` are the payloads of the newest pings
    not taken out yet; `close` is the peer's close frame; `failure` says that the peer broke a rule. After `close` or
    `failure`, further bytes are ignored. While `has_more`, frames wait in the buffer: call `receive(b"")`.
    """

    __slots__ = (
        "_all_heads",
        "_buffer",
        "_check",
        "_deflate",
        "_fragments",
        "_head",
        "_heads",
        "_length",
        "_limits",
        "_medium",
        "_message_room",
        "_message_size",
        "_missing",
        "_parts",
        "_rest",
        "_short",
        "_store",
        "_wsproto",
        "close",
        "failure",
        "has_more",
        "pings",
    )

    def __init__(self, limits: Limits, deflate: DeflateExtension | None = None) -> None:
        # wsproto exists only while it handles a frame or message: most sockets are idle or use the fast path.
        self._wsproto: Connection | None = None
        self.pings: list[bytes] = []
        self.close: tuple[int, str] | None = None
        self.failure: Failure | None = None
        self.has_more = False
        self._limits = limits
        self._buffer = b""
        # A length byte up to this is the complete length, unmasked and within the limit.
        self._short = min(125, limits.max_message)
        self._medium = min(_IN_PLACE, limits.max_message)
        self._deflate = deflate
        # The heads that may take the fast path; none may inside a fragmented message.
        self._all_heads = _PLAIN_HEADS if deflate is None else _ALL_HEADS
        self._heads = self._all_heads
        # A frame of the fast path that continues past the buffer: its head, length, early check, what there is of it,
        # and the bytes still missing. The store is used again: fresh pages for each large message cost more than all
        # copies of it.
        self._head = self._length = self._missing = 0
        self._check: Callable[[memoryview], str] | None = None
        self._store = bytearray()
        # The payload bytes still missing of a frame that wsproto handles.
        self._rest = 0
        # The current fragmented message.
        self._fragments = 0
        self._message_size = 0
        self._message_room = limits.max_message
        self._parts: list[str] | list[bytes] = []

    def receive(self, data: bytes) -> list[Message]:
        """Feed bytes; returns the messages they complete. Never raises: check `failure`."""
        messages: list[Message] = []
        if self._over():
            return messages
        deflate = self._deflate
        if deflate is not None:
            deflate.begin_turn()
        buffer = self._buffer + data if self._buffer else data
        end = len(buffer)
        position = 0
        if self._missing or self._rest:
            position = self._continue_frame(buffer, messages)
            if self._over():
                return messages
        short, medium = self._short, self._medium
        text_head, binary_head, deflated_text, deflated_binary = self._heads
        last = end - 4
        append = messages.append
        for _ in repeat(None, self._limits.frames_per_turn):
            if position <= last:
                # One call reads a header in either of the two short forms (section 5.2).
                head, length, extended = _unpack_header(buffer, position)
                if length <= short:
                    start = position + 2
                    stop = start + length
                elif length == 126 and 125 < extended <= medium:
                    start = position + 4
                    stop = start + extended
                else:
                    stop = end + 1
                if stop <= end:
                    if head == text_head:
                        try:
                            append(buffer[start:stop].decode())
                        except UnicodeDecodeError:
                            self._fail_text()
                            break
                        position = stop
                        continue
                    if head == binary_head:
                        append(buffer[start:stop])
                        position = stop
                        continue
                    if head == deflated_text or head == deflated_binary:  # noqa: SIM109 - faster than a tuple
                        assert deflate is not None, "compressed heads need deflate"
                        if not self._inflate(deflate, head, buffer[start:stop], messages):
                            break
                        position = stop
                        if deflate.turn_room <= 0:
                            break
                        continue
            elif position + 2 > end:
                break
            if messages and buffer[position] not in self._heads and buffer[position] not in _PING_AND_PONG:
                # Return these messages first, so that they can be answered before a frame that may end the connection.
                self.has_more = True
                self._buffer = buffer[position:]
                return messages
            taken = self._take(buffer, position, end, messages)
            if taken == 0 or self._over():
                break
            position += taken
            text_head, binary_head, deflated_text, deflated_binary = self._heads
            if deflate is not None and deflate.turn_room <= 0:
                break
        else:
            self.has_more = True
            self._buffer = buffer[position:]
            return messages
        # A read may hold hundreds of messages that each inflate to the limit; never hold them all at once.
        self.has_more = deflate is not None and deflate.turn_room <= 0 and position < end and not self._over()
        if not self._rest and not self._fragments:
            self._wsproto = None
        # Keep the start of an incomplete header. If reading has ended, it no longer matters.
        self._buffer = buffer[position:]
        return messages

    def _over(self) -> bool:
        return self.failure is not None or self.close is not None

    def _take(self, buffer: bytes, position: int, end: int, messages: list[Message]) -> int:
        """Process one frame, or the available part, without the fast path.

        Returns the number of bytes consumed, 0 if the header is incomplete.
        """
        head, length = buffer[position], buffer[position + 1] & 0x7F
        opcode = head & 0x0F
        size = 2
        if (opcode in _CONTROL and (length > 125 or not head & 0x80)) or opcode not in _KNOWN:
            # Invalid whatever follows: wsproto reports it from the first two bytes.
            self._feed(buffer[position:end], messages)
            if self.failure is None:
                self._fail_protocol(1002, "a frame that no rule allows")
            return end - position
        if length >= 126:
            size = 4 if length == 126 else 10
            if end - position < size:
                return 0
            length = int.from_bytes(buffer[position + 2 : position + size], "big")
        available = min(end - position - size, length)
        if head in _PING_AND_PONG and available == length == buffer[position + 1]:
            # Complete, unmasked and without reserved bits: it affects no other frame, even between fragments.
            if head == _FIN_PING:
                self._ping(buffer[position + 2 : position + 2 + length])
            return 2 + length
        if opcode not in _CONTROL:
            if head in self._heads[:2] and buffer[position + 1] < 0x80 and _is_minimal(size, length):
                if length > self._limits.max_message:
                    self._fail_size()
                    return 0
                start = position + size
                if available == length:
                    self._finish(head, memoryview(buffer)[start : start + length], messages)
                else:
                    self._begin(head, memoryview(buffer)[start:end], length)
                return size + available
            self._fragments += 1
            self._message_size += length
            if opcode:
                packed = self._deflate is not None and head & 0x40
                self._message_room = packed_room(self._limits.max_message) if packed else self._limits.max_message
            if not length >> 63 and self._message_size > self._message_room:
                self._fail_size()
                return 0
            if self._fragments > self._limits.max_fragments:
                self.failure = Failure(1009, MessageTooBig("fragments of a message", self._limits.max_fragments))
                return 0
            # Until the message ends, no frame takes the fast path.
            self._heads = _NO_HEADS
        self._rest = length - available
        self._feed(buffer[position : position + size + available], messages)
        return size + available

    def _ping(self, payload: bytes) -> None:
        self.pings.append(payload)
        del self.pings[:-_PENDING_PINGS]

    def _continue_frame(self, buffer: bytes, messages: list[Message]) -> int:
        """Continue the frame that the buffer starts in; returns where the next frame starts."""
        if self._rest:
            taken = min(self._rest, len(buffer))
            self._rest -= taken
            self._feed(buffer[:taken], messages)
            return taken
        taken = min(self._missing, len(buffer))
        self._collect(memoryview(buffer)[:taken])
        if self._missing == 0 and not self._over():
            with memoryview(self._store) as store:
                self._finish(self._head, store[: self._length], messages)
        return taken

    def _inflate(self, deflate: DeflateExtension, head: int, payload: bytes, messages: list[Message]) -> bool:
        """Decode a compressed message that has one frame; returns whether reading continues."""
        inflated = deflate.inflate(payload)
        if not isinstance(inflated, bytes):
            self._fail_protocol(int(inflated), _IN_EXTENSION)
            return False
        try:
            messages.append(inflated.decode() if head == _FIN_TEXT | 0x40 else inflated)
        except UnicodeDecodeError:
            self._fail_text()
            return False
        return True

    # --- a frame of the fast path that is large or continues past the buffer ------------------------------------

    def _finish(self, head: int, payload: memoryview, messages: list[Message]) -> None:
        try:
            messages.append(str(payload, "utf-8") if head == _FIN_TEXT else bytes(payload))
        except UnicodeDecodeError:
            self._fail_text()

    def _begin(self, head: int, payload: memoryview, length: int) -> None:
        self._head, self._length, self._missing = head, length, length
        self._check = _utf8().decode if head == _FIN_TEXT and length <= _CHECKED_EARLY else None
        self._collect(payload)

    def _collect(self, payload: memoryview) -> None:
        start = self._length - self._missing
        stop = start + len(payload)
        if stop > len(self._store):
            # The store grows with what has come, never with what a header only announces.
            self._store[start:] = payload
        else:
            # A slice of a bytearray would first copy what it is set to.
            with memoryview(self._store) as store:
                store[start:stop] = payload
        self._missing -= len(payload)
        if self._check is not None:
            try:
                self._check(payload)
            except UnicodeDecodeError:
                self._fail_text()

    def release(self) -> None:
        """Free the memory kept for large frames, if none is under way."""
        if not self._missing:
            self._store = bytearray()

    # --- without the fast path ----------------------------------------------------------------------------------

    def _feed(self, data: bytes, messages: list[Message]) -> None:
        """Feed the peer's bytes to wsproto, here only, and drain its events at once."""
        if self._wsproto is None:
            self._wsproto = Connection(ConnectionType.CLIENT, [] if self._deflate is None else [self._deflate])
        connection = self._wsproto
        try:
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, TextMessage | BytesMessage):
                    self._parts.append(event.data)  # type: ignore[arg-type]
                    if event.message_finished:
                        messages.append(_joined(self._parts))
                        self._parts = []
                        self._fragments = self._message_size = 0
                        self._heads = self._all_heads
                    elif len(self._parts) >= _PIECES:
                        self._parts = [_joined(self._parts)]  # type: ignore[assignment]
                elif isinstance(event, Ping):
                    self._ping(bytes(event.payload))
                elif isinstance(event, CloseConnection):
                    if connection.state is ConnectionState.OPEN:
                        # wsproto reports a broken frame as an event and does not change its state.
                        self._fail_protocol(int(event.code), event.reason or "")
                    else:
                        self.close = int(event.code), event.reason or ""
        except Exception as error:
            problem = type(error).__name__  # never its text: it may quote the bytes
        else:
            return
        self._fail_protocol(1002, f"its frames cannot be read ({problem})")

    def _fail_protocol(self, code: int, problem: str) -> None:
        if code == 1007:
            problem = (
                "compressed data that cannot be inflated" if problem == _IN_EXTENSION else "text that is not UTF-8"
            )
        if code == 1009:
            self._fail_size()
        else:
            self.failure = Failure(code, ProtocolViolation(problem, code))

    def _fail_text(self) -> None:
        self._fail_protocol(1007, "")

    def _fail_size(self) -> None:
        self.failure = Failure(1009, MessageTooBig("bytes in a message", self._limits.max_message))


_CONTROL: Final = frozenset({0x8, 0x9, 0xA})
_KNOWN: Final = frozenset({0x0, 0x1, 0x2}) | _CONTROL


def _is_minimal(header_size: int, length: int) -> bool:
    """Check RFC 6455 section 5.2: a length uses the fewest bytes, and the top bit of the longest form is 0."""
    if header_size == 2:
        return True
    return length > 125 if header_size == 4 else 65535 < length < 1 << 63


def _joined(parts: list[str] | list[bytes]) -> Message:
    if len(parts) == 1:
        return parts[0]
    return (b"" if isinstance(parts[0], bytes) else "").join(parts)  # type: ignore[arg-type]
