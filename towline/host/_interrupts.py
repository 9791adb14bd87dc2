"""Ctrl-C for people: once stops following and leaves the job alone, twice also asks the server to cancel it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import anyio

from .._exceptions import Cancelled, TowlineError
from ..transport import CancelAnswer

if TYPE_CHECKING:
    from .._connection import Connection

#: How long a second Ctrl-C is waited for, in seconds.
WINDOW: Final = 3.0

#: What came of a signal: following stopped, by Ctrl-C or by SIGTERM or SIGHUP; how the request to cancel the job
#: was answered; why it was not.
Interruption: TypeAlias = Literal["stopped", "terminated"] | CancelAnswer | TowlineError


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """The signals among these that the process does not ignore."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


async def watch_interrupts(
    connection: Connection, told: Callable[[Interruption], object], *, window: float = WINDOW
) -> None:
    """Let Ctrl-C stop an entered connection, and cancel its job if it is pressed again. Never returns.

    - The first SIGINT puts the connection to rest, and `told` is called with "stopped". `window` seconds later it is
      `cancel()`: final, and the job goes on. With a window of 0, where nobody can be told, that is so at once.
    - A second one within the window is `cancel_job()`: `told` gets the answer or the error. If the job stops, or had
      ended, the connection follows on to tell of that end; else, and at one more SIGINT, it is cancelled.
    - SIGTERM, and SIGHUP of a terminal that was closed, are the first one without the wait, and `told` is called with
      "terminated": no second one does more.
    - A signal that this process was started to ignore stays ignored, as shells want it for `command &` and `nohup`.

    For the main thread, on systems with these signals.
    """
    with anyio.open_signal_receiver(*heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals:
        first = await anext(signals)
        told("stopped" if first == signal.SIGINT else "terminated")
        if first == signal.SIGINT and window > 0:
            connection.background(grace=0)
            second = None
            with anyio.move_on_after(window):
                second = await anext(signals)
            if second == signal.SIGINT:
                await _ask_to_cancel(connection, told, signals)
        connection.cancel()
        async for _ in signals:
            pass  # it is stopping as fast as it can


async def _ask_to_cancel(
    connection: Connection, told: Callable[[Interruption], object], signals: AsyncIterator[signal.Signals]
) -> None:
    """Ask, and return when the connection is to be cancelled: the job goes on, or somebody has had enough."""
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            try:
                answer = await connection.cancel_job()
            except Cancelled:
                return
            except TowlineError as error:
                told(error)
            else:
                told(answer)
                if answer != "unknown":
                    connection.foreground()
                    return
            tasks.cancel_scope.cancel()

        tasks.start_soon(ask)
        await anext(signals)
        tasks.cancel_scope.cancel()
