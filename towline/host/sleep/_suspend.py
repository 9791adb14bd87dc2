"""Detects that the machine was suspended: compares a clock that counts suspended time with one that does not."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

#: `INTERVAL`: seconds between comparisons. `THRESHOLD`: how many seconds one clock must have gained meanwhile.
INTERVAL: Final = 2.0
THRESHOLD: Final = 5.0


def suspended_seconds() -> float:
    """How long the machine has been suspended, counted from an arbitrary moment: only differences are meaningful.

    Linux and macOS have two clocks for it. Elsewhere the wall clock is used: setting it forward looks like a
    suspension, which costs one needless probe.
    """
    if sys.platform == "linux":
        through, awake = time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC)
    elif sys.platform == "darwin":  # not run by our tests
        through, awake = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_UPTIME_RAW)
    else:
        through, awake = time.time(), time.monotonic()
    return through - awake


async def watch_suspension(
    woke: Callable[[], object],
    *,
    wait_awake: Callable[[], Awaitable[object]] | None = None,
    suspended: Callable[[], float] = suspended_seconds,
    interval: float = INTERVAL,
    threshold: float = THRESHOLD,
) -> None:
    """Call `woke` within `interval` seconds after each suspension of more than `threshold` seconds. Never returns.

    `wait_awake` is awaited before each wait. Until it returns there is no timer, so the machine is not woken for it.
    """
    while True:
        if wait_awake is not None:
            await wait_awake()
        before = suspended()
        await anyio.sleep(interval)
        if suspended() - before > threshold:
            woke()
