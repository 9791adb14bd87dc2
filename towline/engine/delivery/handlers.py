"""Calls the program's own handlers. If one raises, the error is logged and counted; the engine goes on."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from ..._tasks import Tasks, failure_of, is_failure
from ..._updates import Update
from .joining import joined, size_of

Value = TypeVar("Value")
#: A plain function is called at once, within the engine's step; a coroutine function in order, in a task.
Handler: TypeAlias = Callable[[Value], Awaitable[None] | None]

#: How many calls of coroutine functions may wait. Beyond it updates are joined, and the engine stops reading. Of the
#: calls with other values the oldest is dropped.
WAITING_LIMIT: Final = 256


class Handlers:
    """Calls handlers in the order of events; coroutine functions run one after the other in a task.

    `made_room` is called after a call that waited. `max_waiting` bounds the output in waiting calls, in bytes.
    """

    def __init__(
        self,
        tasks: Tasks,
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        made_room: Callable[[], object] = lambda: None,
        max_waiting: int,
    ) -> None:
        self._is_cancelled = is_cancelled
        self._made_room = made_room
        self._max_waiting = max_waiting
        self._tasks = tasks
        self._waiting: list[tuple[Handler[Any], Any]] = []
        # The bytes of output among them, and how many are left when they were last joined.
        self._size = 0
        self._joined = 0
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
        if len(self._waiting) >= WAITING_LIMIT and not isinstance(value, Update):
            self._skip_oldest()
        self._waiting.append((handler, value))
        self._size += size_of(value)
        if self.is_full and len(self._waiting) >= 2 * self._joined:
            self._join()
        if self._done is None:
            self._done = anyio.Event()
            self._scope = anyio.CancelScope()
            self._tasks.start_soon(self._run, self._scope, self._done, name="towline handlers")

    @property
    def is_full(self) -> bool:
        """Whether too many updates wait: a slow handler needs time."""
        return len(self._waiting) > WAITING_LIMIT or self._size > self._max_waiting

    def _join(self) -> None:
        calls: list[tuple[Handler[Any], Any]] = []
        for (handler, are_updates), run in groupby(self._waiting, lambda call: (call[0], isinstance(call[1], Update))):
            values = [value for _, value in run]
            calls.extend((handler, value) for value in (joined(values) if are_updates else values))
        self._waiting, self._joined = calls, len(calls)
        self._size = sum(size_of(value) for _, value in calls)

    def _skip_oldest(self) -> None:
        """Drop the oldest call without an update, if there are too many."""
        others = [place for place, (_, value) in enumerate(self._waiting) if not isinstance(value, Update)]
        if len(others) >= WAITING_LIMIT:
            del self._waiting[others[0]]
            self.skipped += 1

    async def _run(self, scope: anyio.CancelScope, done: anyio.Event) -> None:
        try:
            with scope:
                while self._waiting:
                    handler, value = self._waiting.pop(0)
                    self._size -= size_of(value)
                    self._joined = min(self._joined, len(self._waiting))
                    self._made_room()
                    if isinstance(value, Update) and self._is_cancelled():
                        continue
                    try:
                        answer = handler(value)
                        if answer is not None:
                            await answer
                    except BaseException as error:
                        await failure_of(error, "a handler", log=None)
                        self.report(error)
        finally:
            self._scope = self._done = None
            self._waiting.clear()
            self._size = 0
            self._made_room()
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
        """Let the waiting calls run for at most `seconds`, without waiting here; drop those with updates."""
        self._waiting = [call for call in self._waiting if not isinstance(call[1], Update)]
        self._size = 0
        if self._scope is not None:
            self._scope.deadline = anyio.current_time() + seconds

    def give_up(self) -> None:
        """Cancel the running call and drop the waiting ones."""
        if self._scope is not None:
            self._scope.cancel()

    def report(self, error: BaseException) -> None:
        """Log and count an error that the program's own function raised."""
        self.errors += 1
        self._tasks.log.error("a handler raised an error; the connection goes on", exc_info=error)
