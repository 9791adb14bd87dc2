"""The parts of the event loop for other threads, signal handlers and finalizers: its clock, and a call soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio.lowlevel

if TYPE_CHECKING:
    from trio.lowlevel import TrioToken


class Loop:
    """The running loop. Its methods are safe between any two bytecodes of any thread."""

    __slots__ = ("_soon", "time")

    def __init__(self) -> None:
        native = anyio.lowlevel.current_token().native_token
        #: Seconds on the loop's clock; works even after the loop has ended.
        self.time: Callable[[], float]
        self._soon: Callable[[Callable[[], object]], object]
        if isinstance(native, asyncio.AbstractEventLoop):
            self.time = native.time
            # Use the running task's context: the thread that asks for the call may have none.
            context = copy_context()
            with suppress(ImportError):  # sniffio comes with trio; without it, anyio asks asyncio
                from sniffio import current_async_library_cvar

                context.run(current_async_library_cvar.set, "asyncio")
            self._soon = partial(native.call_soon_threadsafe, context=context)
        else:
            import trio

            self.time = trio.lowlevel.current_clock().current_time
            self._soon = cast("TrioToken", native).run_sync_soon

    def soon(self, call: Callable[[], object]) -> None:
        """Wake the loop and have it make a call, which must not raise. Does nothing once the loop has ended."""
        with suppress(RuntimeError):  # asyncio's "Event loop is closed", trio's RunFinishedError
            self._soon(call)
