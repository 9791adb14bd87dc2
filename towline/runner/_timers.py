"""The timers of a lifecycle: one task while any timer runs, otherwise none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import anyio

from .._tasks import Tasks


class _Armed(NamedTuple):
    deadline: float
    ticket: int


class Timers:
    """Deadlines on the loop's clock. Calls `expired(timer, ticket)`, which must not raise, once for each of them."""

    def __init__(self, tasks: Tasks, expired: Callable[[Any, int], None]) -> None:
        self._tasks = tasks
        self._expired = expired
        self._armed: dict[Any, _Armed] = {}
        self._scope: anyio.CancelScope | None = None
        self._running = False

    def arm(self, timer: Any, ticket: int, seconds: float) -> None:
        """Start a timer, replacing one of the same name."""
        self._armed[timer] = _Armed(anyio.current_time() + seconds, ticket)
        if not self._running:
            self._running = True
            self._tasks.start_soon(self._run, name="towline timers")
        elif self._scope is not None:
            self._scope.deadline = self._next()

    def disarm(self, timer: Any) -> None:
        """Stop a timer if it runs; the task ends with the last one."""
        self._armed.pop(timer, None)
        if self._scope is not None:
            self._scope.deadline = self._next() if self._armed else float("-inf")

    def _next(self) -> float:
        return min(armed.deadline for armed in self._armed.values())

    async def _run(self) -> None:
        try:
            while self._armed:
                with anyio.CancelScope(deadline=self._next()) as self._scope:
                    await anyio.sleep_forever()
                self._scope = None
                self._fire(anyio.current_time())
        finally:
            self._scope = None
            self._running = False

    def _fire(self, now: float) -> None:
        for timer, armed in sorted(self._armed.items(), key=lambda item: item[1].deadline):
            # An expiry may disarm or re-arm the others, so check each again.
            if self._armed.get(timer) == armed and armed.deadline <= now:
                del self._armed[timer]
                self._expired(timer, armed.ticket)
