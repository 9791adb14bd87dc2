"""The state machine without an engine: feed events, move time by hand, inspect timers.

It answers questions about the lifecycle alone (when does it connect, when does it give up) in microseconds, without
sockets, tasks or a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from towline.statemachine import EXPIRIES, AnyEffect, AnyEvent, Arm, Facts, Policy, Snapshot, Step, Timer, step

F = TypeVar("F", bound=AnyEffect)


class DryRun:
    """One connection's lifecycle, driven by hand.

    `random` draws the delays: one number in 0..1 for each. `facts` describes the world for the next event; its `now` is
    in virtual seconds. `log` holds every effect so far, with its time.
    """

    def __init__(self, policy: Policy | None = None, *, random: Callable[[], float] = lambda: 0.5) -> None:
        self.policy = policy or Policy()
        self.snapshot = Snapshot()
        self.facts = Facts(now=0.0)
        self.log: list[tuple[float, AnyEffect]] = []
        self._random = random
        self._due: list[tuple[float, int, Timer]] = []

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.facts.now

    def world(self, **changes: Any) -> None:
        """Change the facts of the following events: `path_up`, `foreground`, `token_id`, `renewable`."""
        self.facts = replace(self.facts, **changes)

    def take(self, event: AnyEvent) -> Step:
        """Process one event now; raises what `step` raises, and then changes nothing."""
        taken = step(self.snapshot, event, self.facts, self.policy)
        self.snapshot = taken.snapshot
        for effect in taken.effects:
            self.log.append((self.now, effect))
            if isinstance(effect, Arm):
                heapq.heappush(self._due, (self.now + effect.delay.draw(self._random), effect.ticket, effect.timer))
        return taken

    def next_expiry(self) -> float | None:
        """The time of the next timer's expiry, or None if no timer is running."""
        while self._due and self.snapshot.ticket(self._due[0][2]) != self._due[0][1]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def expire(self) -> Step:
        """Advance to the next expiry and process it; raises `LookupError` if no timer is running."""
        due = self.next_expiry()
        if due is None:
            raise LookupError("no timer is running")
        _, ticket, timer = heapq.heappop(self._due)
        self.world(now=max(self.now, due))
        return self.take(self._expiry(timer, ticket))

    def advance(self, seconds: float) -> list[Step]:
        """Advance by `seconds` and process each expiry at its time; returns the steps."""
        steps, until = [], self.now + seconds
        while (due := self.next_expiry()) is not None and due <= until:
            steps.append(self.expire())
        self.world(now=until)
        return steps

    def _expiry(self, timer: Timer, ticket: int) -> AnyEvent:
        return EXPIRIES[timer](ticket=ticket)

    def effects(self, kind: type[F]) -> list[F]:
        """The effects of one kind so far, oldest first."""
        return [effect for _, effect in self.log if isinstance(effect, kind)]
