"""The timers of a lifecycle. They need no task while they wait: many connections do little else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .._tasks import Tasks


class _Armed(NamedTuple):
    deadline: float
    ticket: int


class Timers:
    """Deadlines on the loop's clock. Calls `expired(timer, ticket)`, which must not raise, once for each of them.

    The calls are made in a task. Leaving the block of `tasks` stops every timer.
    """

    __slots__ = ("_alarm", "_armed", "_expired", "_left", "_rings_at", "_tasks")

    def __init__(self, tasks: Tasks, expired: Callable[[Any, int], None]) -> None:
        self._tasks = tasks
        self._expired = expired
        self._armed: dict[Any, _Armed] = {}
        # The loop's next call, and a function that prevents it. It may come before the next deadline, but never after.
        self._rings_at = math.inf
        self._alarm: Callable[[], object] | None = None
        self._left = False
        tasks.on_leaving = self._leave

    def arm(self, timer: Any, ticket: int, seconds: float) -> None:
        """Start a timer, replacing one of the same name; does nothing once the block of `tasks` is left."""
        if self._left:
            return
        self._armed[timer] = _Armed(self._tasks.loop.time() + seconds, ticket)
        self._set_alarm()

    def disarm(self, timer: Any) -> None:
        """Stop a timer if it runs."""
        self._armed.pop(timer, None)
        if not self._armed:
            self._stop()

    def _leave(self) -> None:
        # A task that ends later, such as one that was shielded, may still take a step.
        self._left = True
        self._stop()

    def _stop(self) -> None:
        self._armed.clear()
        if self._alarm is not None:
            self._alarm()
            self._alarm, self._rings_at = None, math.inf

    def _set_alarm(self) -> None:
        moment = min((armed.deadline for armed in self._armed.values()), default=math.inf)
        if moment < self._rings_at:
            if self._alarm is not None:
                self._alarm()
            self._rings_at = moment
            self._alarm = self._tasks.loop.at(moment, self._ring)

    def _ring(self) -> None:
        moment, self._alarm, self._rings_at = self._rings_at, None, math.inf
        self._tasks.start_soon(self._fire_due, moment, name="towline timers")

    async def _fire_due(self, moment: float) -> None:
        # asyncio makes a call up to one step of its clock early: ringing again for it would not end.
        self._fire(max(moment, self._tasks.loop.time()))
        self._set_alarm()

    def _fire(self, now: float) -> None:
        for timer, armed in sorted(self._armed.items(), key=lambda item: item[1].deadline):
            # An expiry may disarm or re-arm the others, so check each again.
            if self._armed.get(timer) == armed and armed.deadline <= now:
                del self._armed[timer]
                self._expired(timer, armed.ticket)
