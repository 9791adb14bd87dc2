"""The parts of the event loop that need no task: its clock, a call soon, and a call at a moment."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

import anyio.lowlevel

if TYPE_CHECKING:
    import trio


class Loop:
    """The running loop. `time` and `soon` are safe between any two bytecodes of any thread."""

    __slots__ = ("_asyncio", "_context", "_trio", "time")

    def __init__(self) -> None:
        native = anyio.lowlevel.current_token().native_token
        #: Seconds on the loop's clock; works even after the loop has ended.
        self.time: Callable[[], float]
        # Use the running task's context: the thread that asks for the call may have none.
        self._context: Context = copy_context()
        if isinstance(native, asyncio.AbstractEventLoop):
            self.time = native.time
            with suppress(ImportError):  # sniffio comes with trio; without it, anyio asks asyncio
                from sniffio import current_async_library_cvar

                self._context.run(current_async_library_cvar.set, "asyncio")
            self._asyncio: asyncio.AbstractEventLoop | None = native
        else:
            import trio

            self.time = trio.lowlevel.current_clock().current_time
            self._asyncio, self._trio = None, trio.lowlevel.current_trio_token()

    def soon(self, call: Callable[[], object]) -> None:
        """Wake the loop and have it make a call, which must not raise. Does nothing once the loop has ended."""
        with suppress(RuntimeError):  # asyncio's "Event loop is closed", trio's RunFinishedError
            if self._asyncio is not None:
                self._asyncio.call_soon_threadsafe(call, context=self._context)
            else:
                self._trio.run_sync_soon(call)

    def at(self, moment: float, call: Callable[[], object]) -> Callable[[], object]:
        """Have the loop make a call at `moment`, which must not raise; returns a function that prevents it."""
        if self._asyncio is not None:
            return self._asyncio.call_at(moment, call, context=self._context).cancel
        import trio

        scope = trio.CancelScope(deadline=moment)
        trio.lowlevel.spawn_system_task(_call_at_deadline, scope, call, context=self._context.copy())

        def prevent() -> None:
            scope.deadline = math.inf  # it may have passed already, while the task has not run since
            scope.cancel()

        return prevent


async def _call_at_deadline(scope: trio.CancelScope, call: Callable[[], object]) -> None:
    import trio

    with scope:
        await trio.sleep_forever()
    if trio.current_time() >= scope.deadline:
        call()
