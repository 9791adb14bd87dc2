"""Noticing that the machine was asleep: a clock that runs on through suspension, against one that does not."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

#: How often the clocks are compared, and how far the one must have run ahead since, in seconds.
INTERVAL: Final = 2.0
THRESHOLD: Final = 5.0


def suspended_seconds() -> float:
    """How long the machine has been suspended, counted from any fixed moment: only differences mean something.

    Linux and macOS have two clocks for it. Elsewhere the wall clock stands in: setting it forward looks like a sleep,
    which costs one needless probe.
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

    `wait_awake` is awaited before each wait: while it does not return, there is no timer and no wake-up.
    """
    while True:
        if wait_awake is not None:
            await wait_awake()
        before = suspended()
        await anyio.sleep(interval)
        if suspended() - before > threshold:
            woke()
