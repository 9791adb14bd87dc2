"""Limits on what a peer may cost us, and on its silence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from .._exceptions import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one connection. A value equal to the limit is accepted; one more is refused.

    `max_message`: bytes of one message (as UTF-8 if it is text), counted while they arrive. Past it we close with 1009.
    `max_fragments`: frames of one message, empty ones too. `max_rejection_body`: bytes kept of the body of a refused
    upgrade. `max_response_head`: bytes of an HTTP status line with its headers. `max_informational`: 1xx responses
    before the final one. `read_size`: bytes requested per read while much data arrives. `frames_per_turn`: frames
    processed before other tasks get their turn. `max_waiting`: bytes of output that wait for one slow consumer. Past it
    nothing more is read until the consumer has caught up.
    """

    max_message: int = 1 << 20
    max_fragments: int = 4096
    max_rejection_body: int = 64 << 10
    max_response_head: int = 16 << 10
    max_informational: int = 16
    read_size: int = 256 << 10
    frames_per_turn: int = 1000
    max_waiting: int = 1 << 20

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgument(item.name, "must be a whole number of 1 or more")


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """How long a peer may be silent, in seconds since the last received byte. Sent bytes never count.

    After `ping_after` we send a protocol ping (RFC 6455 section 5.5.2: the peer must answer it). At `lost_after` we
    give up with `DeadlineExceeded`. Both need a task that receives.
    """

    ping_after: float = 15.0
    lost_after: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.ping_after < self.lost_after < float("inf"):
            raise InvalidArgument("liveness", "needs 0 < ping_after < lost_after")
