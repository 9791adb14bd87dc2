"""An open WebSocket, client side, without I/O: bytes in, messages out; messages in, bytes out.

It begins where `ClientHandshake` ends. The driver does, in this order:

1. Feed received bytes to `receive_data` (the end of the stream to `receive_eof`), and take the messages it returns.
2. While `has_more`, let other tasks run and call `receive_data(b"")`.
3. Write `data_to_send()` if `wants_to_send`: pongs, and the close frame that answers the peer or reports its error.
4. When `end` is set, no more messages come: raise it and close the stream.
5. Write bytes from `send_message`, `send_messages`, `send_close` and `data_to_send` completely, in the order in which
   they were made. If a write fails or is cancelled, call `send_failed`, because it is unknown what the peer received.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..._exceptions import ConnectionBroken, ConnectionClosed, InvalidArgument, TowlineError
from ..._secret import Secret, revealed
from .._limits import DEFAULT_LIMITS, Limits
from ._deflate import DeflateExtension
from ._framing import FrameReader, Message
from ._handshake import Entropy
from ._masking import encode_frame

#: Close codes a client may send (RFC 6455 section 7.4): registered ones, and those of libraries and applications.
_SENDABLE = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})

# Bytes of masks to draw at once.
_MASKS = 64

_TEXTS = (str, Secret)


class WebSocketProtocol:
    """The state of one open WebSocket. `end` is None while it is open, then the error that says how it ended."""

    __slots__ = (
        "_deflate",
        "_entropy",
        "_masks",
        "_masks_used",
        "_out",
        "_reader",
        "_send_failed",
        "_sent_close",
        "bytes_received",
        "bytes_sent",
        "end",
        "messages_received",
        "messages_sent",
    )

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        deflate: DeflateExtension | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self.end: TowlineError | None = None
        self._reader = FrameReader(limits or DEFAULT_LIMITS, deflate)
        self._deflate = deflate
        self._entropy = entropy
        # Random bytes for the next masks, drawn together: a system call for each mask is a tenth of sending a message.
        self._masks = b""
        self._masks_used = 0
        self._out: list[bytes | bytearray] = []
        self._sent_close: int | None = None
        self._send_failed = False
        self.messages_received = 0
        self.messages_sent = 0
        self.bytes_received = 0
        self.bytes_sent = 0

    # --- receive ------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Message]:
        """Feed bytes; returns the complete messages, in order. Then check `wants_to_send`, `has_more` and `end`."""
        if self.end is not None:
            return []
        self.bytes_received += len(data)
        reader = self._reader
        messages = reader.receive(data)
        self.messages_received += len(messages)
        if reader.failure is not None:
            close_code, error = reader.failure
            # RFC 6455 section 7.1.7: send the reason, then close.
            self._queue_close(close_code)
            self.end = error
        elif reader.close is not None:
            code, reason = reader.close
            by_us = self._sent_close is not None
            # Section 5.5.1: answer with a close frame, typically echoing the code.
            self._queue_close(code)
            self.end = ConnectionClosed(code, reason, sent_code=self._sent_close, by_us=by_us)
        return messages

    def receive_eof(self) -> None:
        """Handle the end of the stream: without a close frame, the connection is broken."""
        self.fail(ConnectionBroken("the stream ended without a close frame"))

    def fail(self, error: TowlineError) -> None:
        """Record how it ended; the first error stays. After our own close frame, it ends as `ConnectionClosed`."""
        if self.end is None:
            if self._sent_close is not None:
                self.end = ConnectionClosed(1006, sent_code=self._sent_close, by_us=True)
                self.end.__cause__ = error
            else:
                self.end = error

    def release(self) -> None:
        """Free the memory kept for large messages; call it when little data arrives."""
        self._reader.release()

    @property
    def has_more(self) -> bool:
        """Whether the buffer has more frames; one turn handles only so many."""
        return self._reader.has_more

    # --- send ---------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether we have made a close frame; no frame may follow it."""
        return self._sent_close is not None

    def send_message(self, message: Message | Secret) -> bytes | bytearray:
        """The bytes of one message. Raises `end`, `ConnectionClosed` after our close, or `InvalidArgument`."""
        self._check_sendable()
        return self._message_frame(*_encoded(message))

    def send_messages(self, messages: Iterable[Message | Secret]) -> bytes:
        """The bytes of several messages, in order; of none if one is refused. Raises as `send_message`."""
        self._check_sendable()
        # The compressor remembers what it has packed: all messages are checked before the first one is.
        encoded = [_encoded(message) for message in messages]
        return b"".join([self._message_frame(head, payload) for head, payload in encoded])

    def _message_frame(self, head: int, payload: bytes) -> bytes | bytearray:
        self.messages_sent += 1
        if self._deflate is not None and (deflated := self._deflate.deflate(payload)) is not None:
            head, payload = head | 0x40, deflated
        return self._frame(head, payload)

    def queue_ping(self) -> None:
        """Queue a ping for `data_to_send`; does nothing after our close or the end."""
        if self.end is None and not self.closing:
            self._out.append(self._frame(0x89, b""))

    def send_close(self, code: int = 1000, reason: str = "") -> bytes:
        """The bytes of a close frame, after any queued ones; empty if one was sent already or the WebSocket has ended.

        Raises `InvalidArgument`.
        """
        check_close(code, reason)
        if self.end is not None or self._sent_close is not None or self._send_failed:
            return b""
        waiting = self.data_to_send()
        self._sent_close = code
        return waiting + self._frame(0x88, code.to_bytes(2, "big") + reason.encode())

    def send_failed(self) -> None:
        """Stop sending: a write failed, so it is unknown what the peer received.

        Data from the peer may still be read.
        """
        self._send_failed = True
        self._out.clear()

    def _check_sendable(self) -> None:
        if self.end is not None:
            raise self.end.with_traceback(None)
        if self._send_failed:
            raise ConnectionBroken("an earlier write failed")
        if self._sent_close is not None:
            raise ConnectionClosed(1006, sent_code=self._sent_close, by_us=True)

    # --- drain --------------------------------------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` would return bytes."""
        return not self._send_failed and (bool(self._out) or (bool(self._reader.pings) and not self.closing))

    def data_to_send(self) -> bytes:
        """Pongs for the newest pings (RFC 6455 section 5.5.3 allows skipping older ones), and a close frame."""
        # No frame may follow a close frame (section 5.5.1).
        pong = b"" if self.closing else b"".join([self._frame(0x8A, ping) for ping in self._reader.pings])
        self._reader.pings.clear()
        data = pong + b"".join(self._out)
        self._out.clear()
        return data

    def _queue_close(self, code: int) -> None:
        if self._sent_close is None:
            self._sent_close = code
            # 1005 must not be sent: it stands for a close frame without a code.
            self._out.append(self._frame(0x88, b"" if code == 1005 else code.to_bytes(2, "big")))

    def _frame(self, head: int, payload: bytes) -> bytes | bytearray:
        used = self._masks_used
        if used == len(self._masks):
            self._masks, used = self._entropy(_MASKS), 0
        self._masks_used = used + 4
        frame = encode_frame(head, payload, self._masks[used : used + 4])
        self.bytes_sent += len(frame)
        return frame


def _encoded(message: Message | Secret) -> tuple[int, bytes]:
    """The first byte and the payload of a message's frame. Raises `InvalidArgument`."""
    if isinstance(message, _TEXTS):
        try:
            # No variable holds a secret before it is encoded: the error's frame would show it.
            return 0x81, revealed(message).encode()
        except UnicodeEncodeError:
            raise InvalidArgument("message", "holds a lone surrogate, which UTF-8 cannot encode") from None
    if isinstance(message, bytes | bytearray | memoryview):
        return 0x82, bytes(message)
    raise InvalidArgument("message", f"must be str or bytes, not {type(message).__name__}")


def check_close(code: int, reason: str) -> None:
    """Check the caller's close code and reason; raises `InvalidArgument`."""
    if not isinstance(code, int) or (code not in _SENDABLE and not 3000 <= code <= 4999):
        raise InvalidArgument("code", "must be a close code that a client may send (RFC 6455 section 7.4)")
    try:
        size = len(reason.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("reason", "holds a lone surrogate, which UTF-8 cannot encode") from None
    if size > 123:
        raise InvalidArgument("reason", "must be at most 123 bytes of UTF-8")
