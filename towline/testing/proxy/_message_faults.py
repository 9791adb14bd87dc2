"""Faults that act on WebSocket messages, from the server to the client, after the handshake.

No network does this to a TCP stream; servers and the brokers behind them do it to messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

#: The fault of a message: it is lost, sent twice, sent after the next one, or followed by all earlier ones again.
MessageFault: TypeAlias = Literal["drop", "duplicate", "swap", "replay"]

#: The start of an HTTP response. Other data is TLS, for example, and waits for us to forward it.
_START: Final = b"HTTP/"
#: A response whose head is larger than this is not inspected.
_LARGEST_HEAD: Final = 65_536


class MessageTamperer:
    """Follows the frames of one link, bytes in and bytes out; forwards each frame when it is complete.

    `fault_of(number)` returns the fault of the link's `number`-th message (from 1). It is called once for each
    unfragmented data message. Control frames and fragments pass, and so does a response other than 101.
    """

    def __init__(self, fault_of: Callable[[int], MessageFault | None]) -> None:
        self._fault_of = fault_of
        self._buffer = bytearray()
        self._in_head = True
        self._opaque = False  # not a WebSocket: forward everything unchanged
        self._overtaken = b""  # the message that waits until the next one was sent
        self._messages: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Feed bytes from the server; returns bytes for the client."""
        self._buffer += data
        out = bytearray()
        if self._in_head and not self._opaque:
            out += self._take_head()
        while not self._in_head and not self._opaque and (size := _frame_size(self._buffer)) is not None:
            frame = self._take(size)
            # RFC 6455 section 5.2: FIN with opcode 1 or 2 is a complete data message.
            out += self._tamper(frame) if frame[0] & 0x8F in (0x81, 0x82) else frame
        if self._opaque:
            out += self._take(len(self._buffer))
        return bytes(out)

    def finish(self) -> bytes:
        """Return the remaining bytes when the server has ended."""
        return self._overtaken + bytes(self._buffer)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _take_head(self) -> bytes:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            may_be_http = self._buffer.startswith(_START[: len(self._buffer)])
            self._opaque = not may_be_http or len(self._buffer) > _LARGEST_HEAD
            return b""
        self._in_head = False
        self._opaque = self._buffer.split(b" ", 2)[1:2] != [b"101"]
        return self._take(end + 4)

    def _tamper(self, frame: bytes) -> bytes:
        before = b"".join(self._messages)
        self._messages.append(frame)
        fault = self._fault_of(len(self._messages))
        if self._overtaken:
            frame, self._overtaken = frame + self._overtaken, b""
        if fault == "drop":
            return b""
        if fault == "duplicate":
            return frame + frame
        if fault == "replay":
            return frame + before
        if fault == "swap":
            self._overtaken = frame
            return b""
        return frame


def _frame_size(data: bytes | bytearray) -> int | None:
    """The size of the unmasked frame at the start of `data` (RFC 6455 section 5.2), None if it is incomplete."""
    if len(data) < 2:
        return None
    length, head = data[1] & 0x7F, 2
    if length >= 126:
        width = 2 if length == 126 else 8
        if len(data) < 2 + width:
            return None
        length, head = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    size = head + length + (4 if data[1] & 0x80 else 0)
    return size if len(data) >= size else None
