"""The tasks of a block, and the meaning of unexpected errors.

Every task is covered: an error other than Towline's own never leaves the block as an exception group. Code that knows
what a failure means (an attempt is lost, a handler failed) calls `failure_of`. All other errors reach `Tasks`, which
passes them to the block's owner.

A cancellation is ours if a cancel scope around the task was cancelled, or if the program cancelled this very task. Any
other comes from something that the program's code waited for, and is a failure of that code.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from threading import Thread
from types import CoroutineType, TracebackType
from typing import Any, Final, Self, TypeVarTuple

import anyio
import anyio.lowlevel
from anyio import TaskHandle
from anyio.abc import TaskGroup

from ._exceptions import ForbiddenRequest, TowlineError, UnexpectedFailure
from ._loop import Loop
from ._text import LOG, AnyLog

Ts = TypeVarTuple("Ts")

#: Seconds that a block left in the wrong task waits for its tasks to end.
_ENDING: Final = 5.0


#: Whom this task serves, if it lasts for one call only; see `caller`.
CALLER: Final[ContextVar[object]] = ContextVar("towline_caller", default=None)


def caller() -> object:
    """Identifies who runs this code: the current task, or the thread that waits for it (`towline.blocking`)."""
    if (thread := CALLER.get()) is not None:
        return thread
    # This is asked for each update, and anyio's answer takes 3 µs.
    if asyncio._get_running_loop() is not None and (task := asyncio.current_task()) is not None:
        return task
    import trio

    return trio.lowlevel.current_task()


def has_ended(reader: object) -> bool:
    """Whether what `caller` returned can run no more code."""
    if isinstance(reader, asyncio.Task):
        return reader.done()
    if isinstance(reader, Thread):
        return not reader.is_alive()
    coroutine = getattr(reader, "coro", None)  # of a task of trio, which has no flag for its end
    return isinstance(coroutine, CoroutineType) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def is_failure(error: BaseException) -> bool:
    """Whether an error from a plain function is a failure of that function, and not the end of the process.

    A cancellation raised by it is a failure: only code that waits can be cancelled.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_failure(each) for each in error.exceptions)
    return isinstance(error, Exception) or _is_cancellation(error)


async def failure_of(error: BaseException, who: str, log: AnyLog | None = LOG) -> TowlineError:
    """Translate an error raised by an awaited call into one of Towline's own; `who` names the call.

    Raises it again if it is not a failure: a cancellation of this task, or the end of the process. An error other than
    Towline's own is written to `log` with its traceback.
    """
    if isinstance(error, TowlineError):
        return error
    if not is_failure(error):
        raise error
    if _is_cancellation(error) and _is_cancelled():
        # Something else may have been cancelled at the same time; a scope recognizes only its own cancellation.
        await anyio.lowlevel.checkpoint_if_cancelled()
        raise error
    return unexpected(error, who, log)


def unexpected(error: BaseException, who: str, log: AnyLog | None = LOG) -> UnexpectedFailure:
    """Wrap an unexpected error, and write it to `log` with its traceback."""
    failure = UnexpectedFailure(who, _described(error))
    failure.__cause__ = error
    if log is not None:
        log.error("%s", failure, exc_info=error)
    return failure


def _described(error: BaseException) -> str:
    # Not the error's own text, which may quote a token. The operating system's text does not.
    problem = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__} ({problem})" if problem else type(error).__name__


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError | anyio.get_cancelled_exc_class())


def _is_cancelled() -> bool:
    """Whether the running task must stop."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _make(call: Callable[[], object]) -> None:
    call()


class Tasks:
    """A task group that raises errors unchanged, and that may be left in another task, which is then an error.

    Errors of the body are raised unchanged. Leaving the block cancels the tasks, or with `finish` waits for them.
    """

    def __init__(self, *, finish: bool = False, log: AnyLog = LOG) -> None:
        #: Where errors that nobody expected are written.
        self.log = log
        self._finish = finish
        #: Called with failures that no task expected; without it they leave the block as from any task group.
        self.unforeseen: Callable[[UnexpectedFailure], None] | None = None
        #: Called when the block is left, in any task.
        self.on_leaving: Callable[[], object] = lambda: None
        self.loop = Loop()
        self._group: TaskGroup = anyio.create_task_group()
        self._owner = 0
        self._open = False
        # The tasks that run, by number; None for one that a program's eager task factory has started within
        # `start_soon`. Each is cancelled by itself: after the group's owner has ended, the group's scope would keep
        # cancelling that task.
        self._running: dict[int, TaskHandle[None, Any] | None] = {}
        self._started = 0
        self._all_ended: anyio.Event | None = None
        # Ends the block without being a failure: the end of the process, or a task that the program cancelled.
        self._ending: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._owner = anyio.get_current_task().id
        await self._group.__aenter__()
        self._open = True
        return self

    def start_soon(
        self, call: Callable[[*Ts], Awaitable[object]], *args: *Ts, name: str
    ) -> TaskHandle[None, Any] | None:
        """Start a task; does nothing once the block is left."""
        if not self._open:
            return None
        self._started += 1
        number = self._started
        self._running[number] = None
        handle = self._group.start_soon(self._run, call, args, number, name, name=name)
        if number in self._running:
            self._running[number] = handle
        return handle

    def call_soon(self, call: Callable[[], object]) -> None:
        """Wake the loop and have a task make a call. Safe from any thread, signal handler or finalizer."""
        # In a task, because a callback of the loop must not raise.
        self.loop.soon(lambda: self.start_soon(_make, call, name="towline requests"))

    async def _run(self, call: Callable[[*Ts], Awaitable[object]], args: tuple[*Ts], number: int, name: str) -> None:
        try:
            try:
                await call(*args)
            except BaseException as error:
                if self.unforeseen is None:
                    raise
                failure = await failure_of(error, name, self.log)
                if not isinstance(failure, UnexpectedFailure):
                    failure = unexpected(error, name, self.log)
                self.unforeseen(failure)
        except (KeyboardInterrupt, SystemExit) as error:
            self.end_with(error)
        except asyncio.CancelledError as error:
            if anyio.current_effective_deadline() != -math.inf and self._open:
                # The program cancelled a task of ours, as a loop over `asyncio.all_tasks()` does.
                self.end_with(unexpected(error, name, self.log))
            raise
        finally:
            del self._running[number]
            if not self._running and self._all_ended is not None:
                self._all_ended.set()

    def end_with(self, error: BaseException) -> None:
        """Cancel the block; leaving it raises `error`."""
        self._ending = self._ending or error
        self._group.cancel_scope.cancel()

    def cancel(self) -> None:
        """Cancel every task."""
        for handle in self._running.values():
            if handle is not None:
                handle.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._open = False
        self.on_leaving()
        if not self._finish:
            self.cancel()
        if anyio.get_current_task().id != self._owner:
            await self._wait_ended()
            raise ForbiddenRequest(
                "leaving",
                "in another task than the one that entered",
                "everything was stopped; enter and leave the block in one task",
            ) from error
        if error is not None and not isinstance(error, anyio.get_cancelled_exc_class()):
            # Raised after the group, which would wrap it.
            await self._group.__aexit__(None, None, None)
            return None
        swallowed = await self._group.__aexit__(kind, error, traceback)
        if self._ending is not None:
            raise self._ending
        if swallowed and error is not None:
            # The group was cancelled, but not by us: the program cancelled one of our tasks before its first step.
            raise unexpected(error, "a task of the connection", self.log)
        return swallowed

    async def _wait_ended(self) -> None:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _ENDING):
            if self._running:
                self._all_ended = anyio.Event()
                await self._all_ended.wait()
            await anyio.lowlevel.checkpoint()  # the last task is about to return
        self.cancel()
