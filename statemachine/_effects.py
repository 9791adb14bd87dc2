"""What the machine asks for, as frozen values. It performs none of them: whoever drives it does, in order."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeAlias

from msgspec import Struct

from ._events import Timer
from ._policy import Delay


class Purpose(Enum):
    """What a state fetch is for."""

    SYNC = "sync"
    """To come into step: several tries; after the last the connection comes into step without a state."""
    STATUS = "status"
    """To learn, without a socket, whether the job ended meanwhile: one try, its failure changes nothing."""
    STALL = "stall"
    """To learn why a living socket has gone quiet: one try, its failure changes nothing."""


class Effect(Struct, frozen=True, kw_only=True, tag_field="effect"):
    """What all effects share."""


class Dial(Effect, frozen=True, kw_only=True, tag="dial"):
    """Begin an attempt, not before `not_before` on the loop's clock, with a fresh token if told so."""

    generation: int
    not_before: float
    fresh_token: bool = False


class AbandonDial(Effect, frozen=True, tag="abandon_dial"):
    """Give up the attempt under way."""


class Greet(Effect, frozen=True, tag="greet"):
    """Say `ready` on the new socket, with the cursor."""


class FetchState(Effect, frozen=True, kw_only=True, tag="fetch_state"):
    """Fetch the job's state after `delay` seconds; what comes of it carries `generation` and `fetch`."""

    purpose: Purpose
    generation: int
    fetch: int
    delay: float = 0.0
    fresh_token: bool = False


class CancelFetch(Effect, frozen=True, tag="cancel_fetch"):
    """Give up the state fetch under way."""


class SkipState(Effect, frozen=True, tag="skip_state"):
    """Come into step without a state: the socket decides."""


class CloseSocket(Effect, frozen=True, kw_only=True, tag="close_socket"):
    """Close with `code` and wait at most `wait` seconds for the peer's answer; 0: write it and be gone."""

    code: int
    wait: float = 0.0


class Probe(Effect, frozen=True, tag="probe"):
    """Ping now; if nothing comes in, the link is lost."""


class Arm(Effect, frozen=True, kw_only=True, tag="arm"):
    """Start the timer, in place of one that runs already; its expiry carries `ticket`."""

    timer: Timer
    ticket: int
    delay: Delay


class Disarm(Effect, frozen=True, kw_only=True, tag="disarm"):
    """Stop the timer."""

    timer: Timer


class ReleaseBuffer(Effect, frozen=True, tag="release_buffer"):
    """Deliver what the sync found and the frames it held back; the change to `connected` is told after them."""


class Deliver(Effect, frozen=True, kw_only=True, tag="deliver"):
    """Deliver the job's end: the one place it can come from. Without an `update` the end is assumed."""

    outcome: str
    update: Any = None


class SaveCursor(Effect, frozen=True, tag="save_cursor"):
    """Store how far delivery has come."""


AnyEffect: TypeAlias = (
    Dial
    | AbandonDial
    | Greet
    | FetchState
    | CancelFetch
    | SkipState
    | CloseSocket
    | Probe
    | Arm
    | Disarm
    | ReleaseBuffer
    | Deliver
    | SaveCursor
)
