"""Ctrl-Z and `fg`: a stopped process cannot answer pings, so the connection is put to rest before it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

import anyio


async def watch_job_control(
    suspend: Callable[[], Awaitable[object]], resume: Callable[[], object], *, stop: Callable[[], object] | None = None
) -> None:
    """On SIGTSTP await `suspend()` and stop the process; call `resume()` when it goes on. Never returns.

    For the main thread, on systems with these signals. `stop` is for tests.
    """
    with anyio.open_signal_receiver(signal.SIGTSTP, signal.SIGCONT) as signals:
        async for number in signals:
            if number == signal.SIGTSTP:
                await suspend()
                (stop or _stop_process)()
            else:
                resume()


def _stop_process() -> None:
    # The handler took the place of the default action; only SIGSTOP still does what was asked for.
    os.kill(os.getpid(), signal.SIGSTOP)
