"""Calls the program's own handlers. If one raises, the error is logged and counted; the engine goes on."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from ..._tasks import Tasks, failure_of, is_failure
from ..._updates import Progress, merge

Value = TypeVar("Value")
#: A plain function is called at once, within the engine's step; a coroutine function in order, in a task.
Handler: TypeAlias = Callable[[Value], Awaitable[None] | None]

_LOG: Final = logging.getLogger("towline")

#: How many calls of coroutine functions may wait. Beyond it progress is merged, then the oldest call is dropped.
WAITING_LIMIT: Final = 256


class Handlers:
    """Calls handlers in the order of events; coroutine functions run one after the other in a task."""

    def __init__(self, tasks: Tasks, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self._is_cancelled = is_cancelled
        self._tasks = tasks
        self._waiting: list[tuple[Handler[Any], Any]] = []
        self._scope: anyio.CancelScope | None = None
        # Set when all waiting calls have been made; None if there are none.
        self._done: anyio.Event | None = None
        self._closed = False
        self.errors = 0
        #: Calls that were dropped because a coroutine function was slow.
        self.skipped = 0

    def call(self, handler: Handler[Any] | None, value: object) -> None:
        """Call a handler with `value`."""
        if handler is None:
            return
        if inspect.iscoroutinefunction(handler):
            self._wait_for_turn(handler, value)
            return
        try:
            answer = handler(value)
        except BaseException as error:
            if not is_failure(error):
                raise
            self.report(error)
            return
        if inspect.isawaitable(answer) and not self._closed:
            # Only its return value shows that the callable is asynchronous.
            self._wait_for_turn(lambda _: answer, value)

    def _wait_for_turn(self, handler: Handler[Any], value: object) -> None:
        if self._closed:
            return
        waiting = self._waiting
        if len(waiting) >= WAITING_LIMIT:
            last, before = waiting[-1]
            merged = merge(before, value) if isinstance(before, Progress) and isinstance(value, Progress) else None
            if merged is not None and last is handler:
                waiting[-1] = handler, merged
                return
            del waiting[0]
            self.skipped += 1
        waiting.append((handler, value))
        if self._done is None:
            self._done = anyio.Event()
            self._scope = anyio.CancelScope()
            self._tasks.start_soon(self._run, self._scope, self._done, name="towline handlers")

    async def _run(self, scope: anyio.CancelScope, done: anyio.Event) -> None:
        try:
            with scope:
                while self._waiting:
                    handler, value = self._waiting.pop(0)
                    if isinstance(value, Progress) and self._is_cancelled():
                        continue
                    try:
                        answer = handler(value)
                        if answer is not None:
                            await answer
                    except BaseException as error:
                        await failure_of(error, "a handler", log=False)
                        self.report(error)
        finally:
            self._scope = self._done = None
            self._waiting.clear()
            done.set()

    async def settle(self, seconds: float) -> None:
        """Make the waiting calls for at most `seconds`, then drop the rest and accept no more."""
        if self._done is not None:
            with anyio.move_on_after(seconds):
                await self._done.wait()
        self._closed = True
        self.give_up()
        if self._done is not None:
            await self._done.wait()

    def give_up_after(self, seconds: float) -> None:
        """Let the waiting calls run for at most `seconds`, without waiting here; drop those with progress."""
        self._waiting[:] = [(handler, value) for handler, value in self._waiting if not isinstance(value, Progress)]
        if self._scope is not None:
            self._scope.deadline = anyio.current_time() + seconds

    def give_up(self) -> None:
        """Cancel the running call and drop the waiting ones."""
        if self._scope is not None:
            self._scope.cancel()

    def report(self, error: BaseException) -> None:
        """Log and count an error that the program's own function raised."""
        self.errors += 1
        _LOG.error("a handler raised an error; the connection goes on", exc_info=error)
