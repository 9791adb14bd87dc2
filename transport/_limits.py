"""What a peer may cost us, and how long its silence may last."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from .._exceptions import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one WebSocket may cost; each limit is met at its value and refused one past it.

    `max_message`: bytes of one message (of its UTF-8 form where it is text), counted while they come; past it we
    close with 1009. `max_fragments`: frames of one message, empty ones too. `max_rejection_body`: bytes kept of the
    body of a refused upgrade. `max_response_head`: bytes of an HTTP status line with its headers.
    `max_informational`: 1xx answers before the real one. `read_size`: bytes asked of the socket at once,
    while much comes.
    `frames_per_turn`: frames taken from the read buffer before other tasks get their turn.
    """

    max_message: int = 1 << 20
    max_fragments: int = 4096
    max_rejection_body: int = 64 << 10
    max_response_head: int = 16 << 10
    max_informational: int = 16
    read_size: int = 256 << 10
    frames_per_turn: int = 1000

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgument(item.name, "must be a whole number of 1 or more")


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """When silence means death, in seconds since the last inbound byte; outbound bytes never count.

    After `ping_after` a protocol ping goes out (RFC 6455 section 5.5.2: the peer must answer it); at `lost_after`
    the socket is given up with `DeadlineExceeded`. A task must be receiving for either to happen.
    """

    ping_after: float = 15.0
    lost_after: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.ping_after < self.lost_after < float("inf"):
            raise InvalidArgument("liveness", "needs 0 < ping_after < lost_after")
