"""permessage-deflate (RFC 7692) for a client, bounded: no message inflates past its budget, however it is packed.

wsproto's own extension inflates without bound, and forgets that a message is compressed when a ping comes between its
fragments. This one takes its place in wsproto, and is shared with the short cut in front of it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from .._exceptions import InvalidArgument, ProtocolViolation

# What the sender leaves out at the end of each message (section 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"

_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION})


def packed_room(max_message: int) -> int:
    """How many compressed bytes a message within its limit may need: RFC 1951's fixed code has up to 9 bits a byte."""
    return max_message + max_message // 8 + 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """Offer the server to compress messages, as `deflate=Deflate()`.

    `context_takeover` lets either side refer to earlier messages: better ratios, and 40 to 300 KiB a connection on the
    server. Messages of ours below `min_size` bytes go out as they are. Compressing secrets together with text that
    somebody else chooses tells their length; that is why it is off unless asked for.
    """

    context_takeover: bool = False
    min_size: int = 64

    def __post_init__(self) -> None:
        if self.min_size < 0:
            raise InvalidArgument("min_size", "must not be negative")

    @property
    def offer(self) -> str:
        """The extension as the upgrade names it (section 7.1)."""
        offer = "permessage-deflate; client_max_window_bits"
        return offer if self.context_takeover else f"{offer}; server_no_context_takeover; client_no_context_takeover"

    def accepted(self, extensions: str, max_message: int) -> DeflateExtension:
        """What the server made of the offer; raises `ProtocolViolation` for anything that was not offered."""
        name, *parameters = [part.strip().lower() for part in extensions.split(";")]
        if name != "permessage-deflate" or "," in extensions:
            raise ProtocolViolation("it chose an extension that was not offered")
        told: dict[str, str] = {}
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() in told:
                raise ProtocolViolation("it names a parameter of permessage-deflate twice")
            told[key.strip()] = value.strip().strip('"')
        bits = told.pop("server_max_window_bits", "15")
        our_bits = told.pop("client_max_window_bits", "15")
        flags = [told.pop(f"{side}_no_context_takeover", "") for side in ("server", "client")]
        if told or any(flags) or not {bits, our_bits} <= _WINDOW_BITS:
            raise ProtocolViolation("it chose parameters of permessage-deflate that were not offered")
        keeps = self.context_takeover and "client_no_context_takeover" not in extensions.lower()
        return DeflateExtension(max_message, keeps_context=keeps, min_size=self.min_size, window_bits=int(our_bits))


_WINDOW_BITS: Final = frozenset(str(bits) for bits in range(8, 16))


class DeflateExtension(Extension):
    """The extension as agreed; one a connection."""

    name = "permessage-deflate"

    def __init__(self, max_message: int, *, keeps_context: bool, min_size: int, window_bits: int = 15) -> None:
        self._max_message = max_message
        self._min_size = min_size
        # The largest window reads what any smaller one wrote. It is never reset: who promised to refer to no earlier
        # message does not mind that we remember them.
        self._inflater = zlib.decompressobj(wbits=-15)
        # zlib cannot write a window of 256 bytes: who demands that gets messages as they are.
        self._deflater = zlib.compressobj(wbits=-window_bits) if window_bits > 8 else None
        # A full flush forgets the window, which is what "no context takeover" asks for, without a new compressor.
        self._flush = zlib.Z_SYNC_FLUSH if keeps_context else zlib.Z_FULL_FLUSH
        self._control = False
        self._compressed: bool | None = None  # whether the message under way is, None between messages
        self._room = max_message
        #: How many bytes may still be inflated before whoever takes the messages gets its turn.
        self.turn_room = max_message

    def enabled(self) -> bool:
        """Always: it is made once agreed."""
        return True

    def offer(self) -> bool | str:
        """Not used: `Deflate.offer` went out before."""
        return False

    # --- whole messages, for the short cut and for sending ------------------------------------------------------

    def begin_turn(self) -> None:
        """Whatever was inflated before has been taken away."""
        self.turn_room = self._max_message

    def inflate(self, payload: bytes) -> bytes | CloseReason:
        """A message of one frame."""
        self._room = self._max_message
        return self._inflate(payload + _TAIL)

    def deflate(self, payload: bytes) -> bytes | None:
        """A message's payload compressed, None for one that is too small to be."""
        if self._deflater is None or len(payload) < self._min_size:
            return None
        return (self._deflater.compress(payload) + self._deflater.flush(self._flush))[: -len(_TAIL)]

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        """Inflate within what is left of the message's room. zlib is asked for one byte more, never for all."""
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
                # A block may be marked as the last one (section 7.2.3.4): the next begins a new stream.
                data = self._inflater.unused_data
                self._inflater = zlib.decompressobj(wbits=-15)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA

    # --- frames, for wsproto ------------------------------------------------------------------------------------

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """The bit RSV1 marks a compressed message, on its first frame only (section 6.1)."""
        self._control = opcode not in _DATA
        if rsv.rsv1 and (self._control or opcode is Opcode.CONTINUATION):
            return CloseReason.PROTOCOL_ERROR
        if not self._control:
            # wsproto looks at the order of frames only after it has inflated something.
            if (opcode is Opcode.CONTINUATION) is (self._compressed is None):
                return CloseReason.PROTOCOL_ERROR
            if self._compressed is None:
                self._compressed = rsv.rsv1
                self._room = self._max_message
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Inflate a piece of a frame, if it is one of a compressed message."""
        return data if self._control or not self._compressed else self._inflate(data)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        """A frame is whole. A control frame between fragments changes nothing."""
        if self._control or not fin:
            return None
        compressed, self._compressed = self._compressed, None
        return self._inflate(_TAIL) if compressed else None
