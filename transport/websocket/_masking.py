"""Writes a WebSocket client's frames: each is masked (RFC 6455 section 5.3)."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from struct import Struct
from typing import Any, Final

from wsproto.frame_protocol import XorMaskerSimple

# From this size on, bitarray is faster than one XOR of two big integers. So are wsproto's four table look-ups in C over
# every fourth byte.
_LARGE: Final = 2048

# Bytes to mask at once: the keys stay in the processor's cache.
_STEP: Final = 64 << 10

_pack_short: Final = Struct("!BB4s").pack
_pack_medium: Final = Struct("!BBH4s").pack
_pack_long: Final = Struct("!BBQ4s").pack
_integer: Final = int.from_bytes


def encode_frame(head: int, payload: bytes, mask: bytes) -> bytes | bytearray:
    """Encode a client's frame: `head` is FIN, reserved bits and opcode; `mask` is four random bytes (section 5.3)."""
    length = len(payload)
    if length < 126:
        header = _pack_short(head, 0x80 | length, mask)
    elif length < 1 << 16:
        header = _pack_medium(head, 0xFE, length, mask)
    else:
        header = _pack_long(head, 0xFF, length, mask)
    if length >= _LARGE:
        return _large_frame(header, payload, mask)
    keys = _integer((mask * ((length + 3) >> 2))[:length], "little")
    return header + (_integer(payload, "little") ^ keys).to_bytes(length, "little")


def _large_frame(header: bytes, payload: bytes, mask: bytes) -> bytes | bytearray:
    bits = _bits()
    if bits is None:
        return b"".join((header, XorMaskerSimple(mask).process(bytearray(payload))))
    # Fresh pages cost more than the mask: the payload is copied once, and masked where it lies.
    frame = bytearray().join((header, payload))
    masked = memoryview(frame)[len(header) :]
    keys = memoryview(mask * (_STEP // 4))
    for start in range(0, len(payload), _STEP):
        piece = bits(buffer=masked[start : start + _STEP])
        piece ^= bits(buffer=keys[: piece.nbytes])
    return frame


@cache
def _bits() -> Any:
    """The class that XORs memory in place in C, None without the extra `speed`; imported for a large frame only."""
    try:
        return import_module("bitarray").bitarray
    except ImportError:
        return None
