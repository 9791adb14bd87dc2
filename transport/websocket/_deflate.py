"""permessage-deflate (RFC 7692) for a client, with a bound on the size of an inflated message.

wsproto's own extension inflates without a bound. It also forgets that a message is compressed when a ping arrives
between its fragments. This extension replaces it in wsproto; the fast path of `_framing` uses it too.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from ..._exceptions import InvalidArgument, ProtocolViolation

# The sender leaves these bytes out at the end of each message (section 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"

_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION})


def packed_room(max_message: int) -> int:
    """The largest compressed size of a message within its limit: RFC 1951's fixed code has up to 9 bits a byte."""
    return max_message + max_message // 8 + 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """Offers compression to the server: pass `deflate=Deflate()`.

    `context_takeover` lets both sides refer to earlier messages: better ratios, and 40 to 300 KiB per connection on the
    server. Outgoing messages shorter than `min_size` bytes are not compressed.

    Compression is off by default: if an attacker chooses text that is compressed together with a secret, the size
    reveals the secret.
    """

    context_takeover: bool = False
    min_size: int = 64

    def __post_init__(self) -> None:
        if self.min_size < 0:
            raise InvalidArgument("min_size", "must not be negative")

    @property
    def offer(self) -> str:
        """The extension as the request offers it (section 7.1)."""
        offer = "permessage-deflate; client_max_window_bits"
        return offer if self.context_takeover else f"{offer}; server_no_context_takeover; client_no_context_takeover"

    def accepted(self, extensions: str, max_message: int) -> DeflateExtension:
        """Build the extension from the server's answer; raises `ProtocolViolation` if its choice was not offered."""
        name, *parameters = [part.strip().lower() for part in extensions.split(";")]
        if name != "permessage-deflate" or "," in extensions:
            raise ProtocolViolation("it chose an extension that was not offered")
        chosen: dict[str, str] = {}
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() in chosen:
                raise ProtocolViolation("it repeats a parameter of permessage-deflate")
            chosen[key.strip()] = value.strip().strip('"')
        bits = chosen.pop("server_max_window_bits", "15")
        our_bits = chosen.pop("client_max_window_bits", "15")
        flags = [chosen.pop(f"{side}_no_context_takeover", "") for side in ("server", "client")]
        if chosen or any(flags) or not {bits, our_bits} <= _WINDOW_BITS:
            raise ProtocolViolation("it chose parameters of permessage-deflate that were not offered")
        keeps = self.context_takeover and "client_no_context_takeover" not in extensions.lower()
        return DeflateExtension(max_message, keeps_context=keeps, min_size=self.min_size, window_bits=int(our_bits))


_WINDOW_BITS: Final = frozenset(str(bits) for bits in range(8, 16))


class DeflateExtension(Extension):
    """The negotiated extension; one per connection."""

    name = "permessage-deflate"

    def __init__(self, max_message: int, *, keeps_context: bool, min_size: int, window_bits: int = 15) -> None:
        self._max_message = max_message
        self._min_size = min_size
        # The largest window reads what any smaller one wrote. It is never reset: a server that promised not to refer to
        # earlier messages is not affected if we remember them.
        self._inflater = zlib.decompressobj(wbits=-15)
        # zlib cannot write a window of 256 bytes: if the server asks for one, we send messages uncompressed.
        self._deflater = zlib.compressobj(wbits=-window_bits) if window_bits > 8 else None
        # A full flush forgets the window, as "no context takeover" requires, without a new compressor.
        self._flush = zlib.Z_SYNC_FLUSH if keeps_context else zlib.Z_FULL_FLUSH
        self._control = False
        self._compressed: bool | None = None  # whether the current message is compressed; None between messages
        self._room = max_message
        #: How many bytes may still be inflated before the caller must take the messages.
        self.turn_room = max_message

    def enabled(self) -> bool:
        """Always True: the object exists only after the negotiation."""
        return True

    def offer(self) -> bool | str:
        """Unused: `Deflate.offer` was sent earlier."""
        return False

    # --- complete messages, for the fast path and for sending ---------------------------------------------------

    def begin_turn(self) -> None:
        """Start a new turn: the caller has taken all messages inflated so far."""
        self.turn_room = self._max_message

    def inflate(self, payload: bytes) -> bytes | CloseReason:
        """Inflate a message that has one frame."""
        self._room = self._max_message
        return self._inflate(payload + _TAIL)

    def deflate(self, payload: bytes) -> bytes | None:
        """Compress a message's payload; None if it is too small."""
        if self._deflater is None or len(payload) < self._min_size:
            return None
        return (self._deflater.compress(payload) + self._deflater.flush(self._flush))[: -len(_TAIL)]

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        """Inflate within the message's remaining limit. zlib is asked for at most one byte more than that."""
        try:
            pieces = []
            while True:
                piece = self._inflater.decompress(data, self._room + 1)
                if len(piece) > self._room:
                    return CloseReason.MESSAGE_TOO_BIG
                self._room -= len(piece)
                self.turn_room -= len(piece)
                pieces.append(piece)
                if not self._inflater.eof:
                    return piece if len(pieces) == 1 else b"".join(pieces)
                # A block may be marked as the last one (section 7.2.3.4); then the next block begins a new stream.
                data = self._inflater.unused_data
                self._inflater = zlib.decompressobj(wbits=-15)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA

    # --- frames, for wsproto ------------------------------------------------------------------------------------

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Check a frame's header. Bit RSV1 marks a compressed message, on its first frame only (section 6.1)."""
        self._control = opcode not in _DATA
        if rsv.rsv1 and (self._control or opcode is Opcode.CONTINUATION):
            return CloseReason.PROTOCOL_ERROR
        if not self._control:
            # wsproto checks the order of frames only after inflating, so check it here.
            if (opcode is Opcode.CONTINUATION) is (self._compressed is None):
                return CloseReason.PROTOCOL_ERROR
            if self._compressed is None:
                self._compressed = rsv.rsv1
                self._room = self._max_message
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Inflate a piece of a frame if its message is compressed."""
        return data if self._control or not self._compressed else self._inflate(data)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        """Finish a frame. A control frame between fragments changes nothing."""
        if self._control or not fin:
            return None
        compressed, self._compressed = self._compressed, None
        return self._inflate(_TAIL) if compressed else None
