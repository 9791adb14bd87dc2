"""Calling a program's own handlers. One that raises is isolated, counted and reported; it never stops the engine."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from ._tasks import Tasks, failure_of, is_failure
from ._updates import Progress, merge

Told = TypeVar("Told")
#: A plain function is called at once, within the engine's step; a coroutine function in a task, in order.
Handler: TypeAlias = Callable[[Told], Awaitable[None] | None]

_LOG: Final = logging.getLogger("towline")

#: Calls of coroutine functions that may wait. Beyond it progress is merged, and then the oldest call is given up.
WAITING_LIMIT: Final = 256


class Handlers:
    """Calls handlers in the order of what happened; coroutines one after the other, in a task while there are any."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._waiting: list[tuple[Handler[Any], Any]] = []
        self._scope: anyio.CancelScope | None = None
        # Set when the calls that wait were made; None while there are none.
        self._done: anyio.Event | None = None
        self._closed = False
        self.errors = 0
        #: Calls that a slow coroutine function never got.
        self.skipped = 0

    def call(self, handler: Handler[Any] | None, told: object) -> None:
        """Tell a handler."""
        if handler is None:
            return
        if inspect.iscoroutinefunction(handler):
            self._wait_for_turn(handler, told)
            return
        try:
            answer = handler(told)
        except BaseException as error:
            if not is_failure(error):
                raise
            self.report(error)
            return
        if inspect.isawaitable(answer) and not self._closed:
            # A callable that only its answer shows to be asynchronous.
            self._wait_for_turn(lambda _: answer, told)

    def _wait_for_turn(self, handler: Handler[Any], told: object) -> None:
        if self._closed:
            return
        waiting = self._waiting
        if len(waiting) >= WAITING_LIMIT:
            last, before = waiting[-1]
            merged = merge(before, told) if isinstance(before, Progress) and isinstance(told, Progress) else None
            if merged is not None and last is handler:
                waiting[-1] = handler, merged
                return
            del waiting[0]
            self.skipped += 1
        waiting.append((handler, told))
        if self._done is None:
            self._done = anyio.Event()
            self._scope = anyio.CancelScope()
            self._tasks.start_soon(self._run, self._scope, self._done, name="towline handlers")

    async def _run(self, scope: anyio.CancelScope, done: anyio.Event) -> None:
        try:
            with scope:
                while self._waiting:
                    handler, told = self._waiting.pop(0)
                    try:
                        answer = handler(told)
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
        """Let the calls that wait be made, for so long; then give them up, and begin none any more."""
        if self._done is not None:
            with anyio.move_on_after(seconds):
                await self._done.wait()
        self._closed = True
        self.give_up()
        if self._done is not None:
            await self._done.wait()

    def give_up_after(self, seconds: float) -> None:
        """Let the calls that wait be made, for so long, without waiting for it; but deliver no progress any more."""
        self._waiting[:] = [(handler, told) for handler, told in self._waiting if not isinstance(told, Progress)]
        if self._scope is not None:
            self._scope.deadline = anyio.current_time() + seconds

    def give_up(self) -> None:
        """End the call under way and forget those that wait."""
        if self._scope is not None:
            self._scope.cancel()

    def report(self, error: BaseException) -> None:
        """A program's own function has raised."""
        self.errors += 1
        _LOG.error("a handler raised; the connection goes on", exc_info=error)
