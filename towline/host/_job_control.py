"""Ctrl-Z and `fg`: a stopped process cannot answer pings, so the connection is closed before it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from ._interrupts import heeded

#: Seconds of running time to wait for the SIGCONT that ends the stop; the two come together.
_CONTINUED: Final = 1.0


async def watch_job_control(suspend: Callable[[], Awaitable[object]], resume: Callable[[], object]) -> None:
    """On SIGTSTP await `suspend()` and stop the process; call `resume()` when it continues. Never returns.

    An ignored SIGTSTP stays ignored. Call it in the main thread, on systems with these signals.
    """
    with anyio.open_signal_receiver(*heeded(signal.SIGTSTP), signal.SIGCONT) as signals:
        async for number in signals:
            if number == signal.SIGTSTP:
                await suspend()
                _stop_process()
                # Without a SIGCONT the process was not stopped: the first process of a container cannot be. If Ctrl-Z
                # was pressed again during `suspend()`, this stop answers that one too.
                with anyio.move_on_after(_CONTINUED):
                    while await anext(signals) != signal.SIGCONT:
                        pass
            resume()


def _stop_process() -> None:
    # Our handler replaced SIGTSTP's default action; only SIGSTOP still stops the process.
    os.kill(os.getpid(), signal.SIGSTOP)
