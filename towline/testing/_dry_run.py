"""The machine without an engine: events in, time moved by hand, every timer kept.

What an application, or a test, wants to know of the lifecycle alone (when would it dial, when would it give up) is
answered here in microseconds, without sockets, tasks or a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from ..statemachine import (
    EXPIRIES,
    AnyEffect,
    AnyEvent,
    Arm,
    Facts,
    Policy,
    Snapshot,
    Step,
    Timer,
    step,
)

F = TypeVar("F", bound=AnyEffect)


class DryRun:
    """One connection's lifecycle, driven by hand.

    `random` draws the delays: a number in 0..1 for each. `facts` is what the next event will be told of the world;
    its `now` is virtual seconds. `log` holds every effect asked for so far, with the time.
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
        """Virtual seconds since the beginning."""
        return self.facts.now

    def world(self, **changes: Any) -> None:
        """Change what events are told of the world: `path_up`, `foreground`, `token_id`, `renewable`."""
        self.facts = replace(self.facts, **changes)

    def take(self, event: AnyEvent) -> Step:
        """Take one event up now; raises what `step` raises, and then nothing has changed."""
        taken = step(self.snapshot, event, self.facts, self.policy)
        self.snapshot = taken.snapshot
        for effect in taken.effects:
            self.log.append((self.now, effect))
            if isinstance(effect, Arm):
                heapq.heappush(self._due, (self.now + effect.delay.draw(self._random), effect.ticket, effect.timer))
        return taken

    def next_expiry(self) -> float | None:
        """When the next timer runs out, or None where none runs."""
        while self._due and self.snapshot.ticket(self._due[0][2]) != self._due[0][1]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def expire(self) -> Step:
        """Let time pass to the next expiry, and take that up; raises `LookupError` where no timer runs."""
        due = self.next_expiry()
        if due is None:
            raise LookupError("no timer runs")
        _, ticket, timer = heapq.heappop(self._due)
        self.world(now=max(self.now, due))
        return self.take(self._expiry(timer, ticket))

    def advance(self, seconds: float) -> list[Step]:
        """Let time pass, and take up each expiry at its moment; returns their steps."""
        steps, until = [], self.now + seconds
        while (due := self.next_expiry()) is not None and due <= until:
            steps.append(self.expire())
        self.world(now=until)
        return steps

    def _expiry(self, timer: Timer, ticket: int) -> AnyEvent:
        return EXPIRIES[timer](ticket=ticket)

    def effects(self, kind: type[F]) -> list[F]:
        """The effects of one kind asked for so far, oldest first."""
        return [effect for _, effect in self.log if isinstance(effect, kind)]
