"""Ctrl-Z and `fg`: a stopped process cannot answer pings, so the connection is put to rest before it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from ._interrupts import heeded

#: How long after the stop its SIGCONT is waited for, in seconds of a process that runs: they come together.
_CONTINUED: Final = 1.0


async def watch_job_control(suspend: Callable[[], Awaitable[object]], resume: Callable[[], object]) -> None:
    """On SIGTSTP await `suspend()` and stop the process; call `resume()` when it goes on. Never returns.

    A SIGTSTP that is ignored stays ignored. For the main thread, on systems with these signals.
    """
    with anyio.open_signal_receiver(*heeded(signal.SIGTSTP), signal.SIGCONT) as signals:
        async for number in signals:
            if number == signal.SIGTSTP:
                await suspend()
                _stop_process()
                # Without one it was not stopped: the first process of a container cannot be. Pressed again while the
                # connection parted, Ctrl-Z has had its stop with this one.
                with anyio.move_on_after(_CONTINUED):
                    while await anext(signals) != signal.SIGCONT:
                        pass
            resume()


def _stop_process() -> None:
    # The handler took the place of the default action; only SIGSTOP still does what was asked for.
    os.kill(os.getpid(), signal.SIGSTOP)
