"""Virtual time for `anyio` programs: when every task waits, the clock jumps to the next timer (docs/testing.md).

A jumping clock does not wait for anything outside its loop. It runs past worker threads (`anyio.to_thread`, name
resolution) and past real sockets and processes, so use memory streams only. Only the end of a run waits in real time,
for the threads of asyncio's executor (they resolve names). A program in which every task waits and no timer is set
hangs, as it would in real time. Only the loop's own clock is virtual (`anyio.current_time`, `sleep`, `fail_after`,
deadlines); `time.monotonic()` is not.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio

from .._exceptions import InvalidArgument

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


#: Seconds that asyncio adds to the current time when it checks which timers are due.
_RESOLUTION: Final = time.get_clock_info("monotonic").resolution


class _JumpingSelector(selectors.DefaultSelector):
    """The real selector, but a wait that nothing ends at once advances `now` instead of passing time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        #: False while the loop waits for threads: then a wait passes real time.
        self.jumps = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            # No timer is set: only a signal or another thread can wake the loop.
            return super().select(None)
        ready = super().select(0 if self.jumps else timeout)
        if not ready:
            self.now += timeout
            # asyncio fires timers due before `now` plus the clock's resolution. After some months a float cannot
            # represent that sum, and a timer due exactly now would never fire: step past it.
            if self.now + _RESOLUTION == self.now:
                self.now = math.nextafter(self.now, math.inf)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose `time()` starts at 0 and jumps to the next timer when nothing is ready.

    Otherwise it is a selector loop, so the order of callbacks is asyncio's own. Pass the class as `loop_factory`.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was created."""
        return self._jumping.now

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Join the executor's threads as asyncio does, in real time: threads cannot follow a clock that jumps.

        From Python 3.12 on asyncio takes a `timeout`, and a run that ends gives the threads 300 s.
        """
        self._jumping.jumps = False
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._jumping.jumps = True


def virtual_time_backends() -> list[str]:
    """Names of the installed backends with virtual time: `params` for an `anyio_backend` fixture."""
    return ["asyncio", *(["trio"] if find_spec("trio") else [])]


def virtual_time(backend: str) -> tuple[str, dict[str, Any]]:
    """Make a backend name and options for one run, as anyio's pytest plugin and `anyio.run` take them.

    Call it for each run: a clock belongs to one run. Raises `InvalidArgument` for any other backend.
    """
    if backend == "asyncio":
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    if backend == "trio":
        from trio.testing import MockClock

        return "trio", {"clock": MockClock(autojump_threshold=0)}
    raise InvalidArgument("backend", f"{backend!r} has no virtual clock: use asyncio or trio")


def run_virtual(func: Callable[[*Ts], Awaitable[T]], *args: *Ts, backend: str = "asyncio") -> T:
    """Run `func(*args)` with `anyio.run` under virtual time, and return its result."""
    name, options = virtual_time(backend)
    return anyio.run(func, *args, backend=name, backend_options=options)
