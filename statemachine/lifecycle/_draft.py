"""The working copy of one step, and the resources that each state owns.

When the machine leaves a state, it releases the resources that the next state does not own, before the next state's
actions run. This is one rule here instead of a duty of each cell, so there is never more than one socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from msgspec.structs import force_setattr, replace

from ._effects import (
    AbandonDial,
    AnyEffect,
    Arm,
    CancelFetch,
    CloseSocket,
    Disarm,
    FetchState,
    Purpose,
    ResumeDelivery,
    SaveCursor,
    StopRenewal,
)
from ._events import AnyEvent, Cancel, Close, Expiry, Facts, JobEnded, State, Timer
from ._policy import Delay, Policy
from ._snapshot import Snapshot


class Resource(Enum):
    """A resource, other than a timer, that a state can own."""

    ATTEMPT = "attempt"
    SOCKET = "socket"
    FETCH = "fetch"


OWNS: Final[Mapping[State, frozenset[Resource]]] = {
    State.IDLE: frozenset(),
    State.CONNECTING: frozenset({Resource.ATTEMPT}),
    State.SYNCING: frozenset({Resource.SOCKET, Resource.FETCH}),
    State.CONNECTED: frozenset({Resource.SOCKET, Resource.FETCH}),
    State.RECONNECTING: frozenset({Resource.FETCH}),
    State.BACKGROUNDED: frozenset(),
    State.EXHAUSTED: frozenset({Resource.FETCH}),
    State.CANCELLED: frozenset(),
}

_LINK: Final = frozenset({State.CONNECTING, State.SYNCING, State.CONNECTED, State.RECONNECTING})

#: The states in which each timer may run; it is disarmed when the machine leaves them.
RUNS_IN: Final[Mapping[Timer, frozenset[State]]] = {
    Timer.BACKOFF: frozenset({State.RECONNECTING}),
    Timer.OUTAGE: frozenset({State.RECONNECTING}),
    Timer.STABILITY: frozenset({State.CONNECTED}),
    Timer.STALL: frozenset({State.CONNECTED}),
    Timer.GRACE: _LINK,
    Timer.REVIVAL: frozenset({State.EXHAUSTED}),
    Timer.RENEWAL: frozenset({State.CONNECTED}),
}

# The outage clock stops in these states, because no attempts are made.
_AT_REST: Final = frozenset({State.IDLE, State.BACKGROUNDED, State.EXHAUSTED, State.CANCELLED})

# A renewal of the token goes on through an outage, because the server may have exchanged the token already. It is
# stopped here, where no further attempt uses it.
_NO_RENEWAL: Final = frozenset({State.IDLE, State.CANCELLED})

# In these states the program may know that no update follows.
_DELIVERY_STOPPED: Final = frozenset({State.IDLE, State.EXHAUSTED})

# Entering one of these states makes all earlier work stale. (A dial raises the generation by itself.)
_NEW_GENERATION: Final = frozenset({State.IDLE, State.BACKGROUNDED, State.CANCELLED})

# RFC 6455 section 7.4.1. Some servers delete the client's token after 1000, so we send it only after the job has
# ended; all other closes are 1001.
_DONE: Final = 1000
_GOING_AWAY: Final = 1001


class Draft:
    """One step in progress. `before`, `event`, `facts` and `policy` are the input; `after` and `effects` the result."""

    __slots__ = ("after", "before", "effects", "event", "facts", "policy", "state")

    def __init__(self, before: Snapshot, event: AnyEvent, facts: Facts, policy: Policy) -> None:
        self.before = before
        self.event = event
        self.facts = facts
        self.policy = policy
        self.state = before.state
        self.after = before
        self.effects: list[AnyEffect] = []
        if isinstance(event, Expiry):
            self.set(armed=self._others(event.timer))

    def set(self, **changes: Any) -> None:
        """Change fields of the next snapshot."""
        if self.after is self.before:
            self.after = replace(self.before, **changes)
            return
        # Only this step knows its copy until it returns it. A copy for each change would cost most of the step.
        for name, value in changes.items():
            force_setattr(self.after, name, value)

    def emit(self, effect: AnyEffect) -> None:
        """Request an effect, after those requested earlier."""
        self.effects.append(effect)

    # --- timers and fetches -------------------------------------------------------------------------------------

    def arm(self, timer: Timer, delay: Delay) -> None:
        """Start a timer; if it already runs, restart it."""
        ticket = self.after.tickets + 1
        self.set(tickets=ticket, armed=(*self._others(timer), (timer, ticket)))
        self.emit(Arm(timer=timer, ticket=ticket, delay=delay))

    def disarm(self, timer: Timer) -> None:
        """Stop a timer, if it runs."""
        if self.after.ticket(timer) is not None:
            self.set(armed=self._others(timer))
            self.emit(Disarm(timer=timer))

    def fetch(self, purpose: Purpose, *, delay: float = 0.0, fresh_token: bool = False) -> None:
        """Request a state fetch; the answer to an earlier fetch becomes stale."""
        self.set(fetch=self.after.fetch + 1)
        self.emit(
            FetchState(
                purpose=purpose,
                generation=self.after.generation,
                fetch=self.after.fetch,
                delay=delay,
                fresh_token=fresh_token,
            )
        )

    def _others(self, timer: Timer) -> tuple[tuple[Timer, int], ...]:
        return tuple([pair for pair in self.after.armed if pair[0] is not timer])

    # --- the outage clock ---------------------------------------------------------------------------------------

    def start_clock(self) -> None:
        """Start the outage clock."""
        if self.after.outage_since is None:
            self.set(outage_since=self.facts.now)

    def stop_clock(self) -> None:
        """Pause the outage clock and keep the time already spent."""
        if self.after.outage_since is not None:
            self.set(outage_spent=self.after.outage_seconds(self.facts.now), outage_since=None)

    # --- leaving a state ----------------------------------------------------------------------------------------

    def leave(self, source: State, target: State) -> None:
        """Release the resources that `source` owns and `target` does not."""
        if source in _DELIVERY_STOPPED:
            self.emit(ResumeDelivery())
        owned, kept = OWNS[source], OWNS[target]
        if Resource.FETCH in owned:
            # The answer may already be queued: a new fetch number makes it stale.
            self.set(fetch=self.after.fetch + 1)
            self.emit(CancelFetch())
        if Resource.ATTEMPT in owned and target is not State.SYNCING:
            self.emit(AbandonDial())
            self._drop_planned_dial()
        if Resource.SOCKET in owned and Resource.SOCKET not in kept:
            code, wait = self._close_code_and_wait()
            self.emit(CloseSocket(code=code, wait=wait))
        if source is State.CONNECTED or (Resource.SOCKET in owned and Resource.SOCKET not in kept):
            self.emit(SaveCursor())
        for timer, _ in self.after.armed:
            if target not in RUNS_IN[timer]:
                self.disarm(timer)
        if source is State.RECONNECTING:
            self.set(hold_until=None)
        if source is State.SYNCING and self._heard():
            self.set(peer_known=True, token_accepted=True)
        if source is State.CONNECTED:
            self.set(silence=self.after.silent_seconds(self.facts), in_step_since=None)
        if self.after.renewing and target in _NO_RENEWAL:
            self.set(renewing=False)
            self.emit(StopRenewal())
        if target in _AT_REST:
            self.stop_clock()
        if target in _NEW_GENERATION:
            self.set(generation=self.after.generation + 1)

    def _heard(self) -> bool:
        """Whether the job gave a sign on the socket of the last dial; if so, the server accepted the token."""
        sign, dials = self.facts.last_sign, self.after.dials
        return sign is not None and bool(dials) and sign >= dials[-1]

    def _close_code_and_wait(self) -> tuple[int, float]:
        event, policy = self.event, self.policy
        if isinstance(event, JobEnded):
            return _DONE, policy.close_wait
        if isinstance(event, Cancel | Close):
            wait = policy.cancel_wait if isinstance(event, Cancel) else policy.close_wait
            return _GOING_AWAY, wait
        return _GOING_AWAY, 0.0

    def _drop_planned_dial(self) -> None:
        # A dial that was abandoned before it opened does not count for the spacing.
        dials = self.after.dials
        if dials and dials[-1] > self.facts.now:
            self.set(dials=dials[:-1])
