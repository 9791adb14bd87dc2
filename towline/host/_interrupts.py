"""Ctrl-C for command lines: once stops following and leaves the job running, twice also cancels the job."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import anyio

from .._exceptions import Cancelled, TowlineError
from .._facts import CancelWord

if TYPE_CHECKING:
    from .._connection import Connection

#: Seconds to wait for a second Ctrl-C.
WINDOW: Final = 3.0

#: The result of a signal: following stopped, by Ctrl-C ("stopped") or by SIGTERM or SIGHUP ("terminated"), the answer
#: to the cancel request, or the error of that request.
Interruption: TypeAlias = Literal["stopped", "terminated"] | CancelWord | TowlineError


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """The given signals that the process does not ignore."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


async def watch_interrupts(
    connection: Connection, report: Callable[[Interruption], object], *, window: float = WINDOW
) -> None:
    """Let Ctrl-C stop an entered connection, and cancel its job if pressed again. Never returns.

    - The first SIGINT sends the connection to the background, and `report` is called with "stopped". `window` seconds
      later follows `cancel()`, which is final; the job keeps running. With a window of 0 that happens at once: use it
      if no one can see a message.
    - A second SIGINT within the window calls `cancel_job()`, and `report` gets the answer or the error. If the job
      stops or had ended, the connection keeps following until the end. Otherwise, and at one more SIGINT, it is
      cancelled.
    - SIGTERM, and SIGHUP from a closed terminal, cancel without the wait, and `report` is called with "terminated". A
      second signal then changes nothing.
    - A signal that this process was started to ignore stays ignored, as shells expect for `command &` and `nohup`.

    Call it in the main thread, on systems with these signals.
    """
    with anyio.open_signal_receiver(*heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals:
        first = await anext(signals)
        report("stopped" if first == signal.SIGINT else "terminated")
        if first == signal.SIGINT and window > 0:
            connection.background(grace=0)
            second = None
            with anyio.move_on_after(window):
                second = await anext(signals)
            if second == signal.SIGINT:
                await _request_cancel(connection, report, signals)
        connection.cancel()
        async for _ in signals:
            pass  # it is stopping already, as fast as possible


async def _request_cancel(
    connection: Connection, report: Callable[[Interruption], object], signals: AsyncIterator[signal.Signals]
) -> None:
    """Ask the server to cancel. Returns if the connection must be cancelled: the job goes on, or a SIGINT came."""
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            try:
                answer = await connection.cancel_job()
            except Cancelled:
                return
            except TowlineError as error:
                report(error)
            else:
                report(answer)
                if answer != "unknown":
                    connection.foreground()
                    return
            tasks.cancel_scope.cancel()

        tasks.start_soon(ask)
        await anext(signals)
        tasks.cancel_scope.cancel()
