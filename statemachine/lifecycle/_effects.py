"""The effects that the machine requests, as frozen values. The engine that drives it performs them, in order."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeAlias

from msgspec import Struct

from ._events import Timer, snake
from ._policy import Delay


class Purpose(Enum):
    """The purpose of a state fetch."""

    SYNC = "sync"
    """To sync: several tries; if the last one fails, the connection syncs without a state."""
    STATUS = "status"
    """To learn, without a socket, whether the job has ended: one try; a failure changes nothing."""
    STALL = "stall"
    """To learn why an open socket is silent: one try; a failure changes nothing."""


class Effect(Struct, frozen=True, kw_only=True, tag_field="effect", tag=snake):
    """Base of all effects."""


class Dial(Effect, frozen=True, kw_only=True):
    """Start an attempt, not before `not_before` on the loop's clock; `fresh_token` asks for a fresh token first.

    `source` says which way to follow the job, counted from 0 in the protocol's order.
    """

    generation: int
    not_before: float
    fresh_token: bool = False
    source: int = 0


class AbandonDial(Effect, frozen=True):
    """Abandon the attempt in progress."""


class Greet(Effect, frozen=True):
    """Begin to order what the new link brings, after the cursor."""


class FetchState(Effect, frozen=True, kw_only=True):
    """Fetch the job's state after `delay` seconds; the resulting event carries `generation` and `fetch`."""

    purpose: Purpose
    generation: int
    fetch: int
    delay: float = 0.0
    fresh_token: bool = False


class CancelFetch(Effect, frozen=True):
    """Cancel the state fetch in progress."""


class SkipState(Effect, frozen=True):
    """Finish the sync without a state: only the socket counts."""


class CloseSocket(Effect, frozen=True, kw_only=True):
    """Close with `code` and wait up to `wait` seconds for the peer's answer; 0: write the frame and do not wait."""

    code: int
    wait: float = 0.0


class Probe(Effect, frozen=True):
    """Ping now; if nothing answers in time, the link is lost."""


class Arm(Effect, frozen=True, kw_only=True):
    """Start or restart the timer; its expiry carries `ticket`."""

    timer: Timer
    ticket: int
    delay: Delay


class Disarm(Effect, frozen=True, kw_only=True):
    """Stop the timer."""

    timer: Timer


class ReleaseBuffer(Effect, frozen=True):
    """Deliver the state from the sync and the buffered frames, then report the change to `connected`."""


class Deliver(Effect, frozen=True, kw_only=True):
    """Deliver the job's end; only this effect does so. Without an `update` the end is assumed."""

    outcome: str
    update: Any = None


class SaveCursor(Effect, frozen=True):
    """Save the cursor: the position of the last delivered frame."""


class RenewToken(Effect, frozen=True):
    """Renew the token before it expires; `token_renewed` follows, whether or not it worked."""


class StopRenewal(Effect, frozen=True):
    """Stop the renewal in progress."""


class ReportGivingUp(Effect, frozen=True):
    """Report to all waiting code that the engine has given up, once the state fetch has finished."""


class ResumeDelivery(Effect, frozen=True):
    """Deliver again after a stop or after giving up."""


class StopDelivery(Effect, frozen=True, kw_only=True):
    """End every iteration; if it is `final`, also the calls about the job that the program waits for."""

    final: bool = False


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
    | RenewToken
    | StopRenewal
    | ReportGivingUp
    | ResumeDelivery
    | StopDelivery
)
