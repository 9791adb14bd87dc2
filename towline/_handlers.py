"""Calling a program's own handlers. One that raises is isolated, counted and reported; it never stops the engine."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

from anyio.abc import TaskGroup

Told = TypeVar("Told")
#: A plain function is called at once, within the engine's step; a coroutine function in a task, in order.
Handler: TypeAlias = Callable[[Told], Awaitable[None] | None]

_LOG: Final = logging.getLogger("towline")


class Handlers:
    """Calls handlers in the order of what happened; coroutines one after the other, in a task while there are any."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._waiting: deque[Awaitable[None]] = deque()
        self._running = False
        self.errors = 0

    def call(self, handler: Handler[Any] | None, told: object) -> None:
        """Tell a handler."""
        if handler is None:
            return
        try:
            answer = handler(told)
        except Exception as error:
            self._report(error)
            return
        if inspect.isawaitable(answer):
            self._waiting.append(answer)
            if not self._running:
                self._running = True
                self._tasks.start_soon(self._run, name="towline handlers")

    async def _run(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()
                except Exception as error:
                    self._report(error)
        finally:
            self._running = False
            while self._waiting:
                # A coroutine that will not run any more must say so itself, or it warns that it never ran.
                answer = self._waiting.popleft()
                if inspect.iscoroutine(answer):
                    answer.close()

    def _report(self, error: Exception) -> None:
        self.errors += 1
        _LOG.error("a handler raised; the connection goes on", exc_info=error)
