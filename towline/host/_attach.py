"""One line that tells a connection of the machine it runs on: its network path, its sleep, its being stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import anyio
from anyio.abc import TaskGroup

from ..statemachine import State
from ..transport._path import PathMonitor
from ._job_control import watch_job_control
from ._suspend import watch_suspension

if TYPE_CHECKING:
    from .._connection import Connection
    from ._logind import Logind

logger = logging.getLogger("towline")

#: What tells a host's connection of the machine.
Source: TypeAlias = Literal["path", "suspension", "logind", "job control"]

#: How long a sleep or a stop waits for the connection to part from the server, in seconds; logind allows 5.
_PARTING: Final = 4.0
#: How long the close frame may take from here to the network card.
_LEAVING: Final = 0.1
_QUIET: Final = (State.BACKGROUNDED, State.IDLE, State.EXHAUSTED, State.CANCELLED)
_AWAKE: Final = tuple(state for state in State if state is not State.BACKGROUNDED)


class Host:
    """What `attach` yields: the host's word to its connection. Use it in place of the connection's own `background()`.

    The connection is in the foreground unless the application, a coming sleep or a stop of the process says otherwise.
    `sources` are the watchers that run.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sources: set[Source] = set()
        self._reasons: set[str] = set()

    def background(self) -> None:
        """The application is hidden or suspended: after the policy's grace the connection is put to rest."""
        self._rest("the application", None)

    def foreground(self) -> None:
        """The application is seen again."""
        self._wake("the application")

    def _rest(self, reason: str, grace: float | None) -> None:
        # Told again by a second reason, for its grace may be the shorter.
        self._reasons.add(reason)
        self.connection.background(grace=grace)

    def _wake(self, reason: str) -> None:
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons:
                self.connection.foreground()

    async def _part(self, reason: str) -> None:
        """Go to the background at once; return when the server has been told, or after `_PARTING`."""
        self._rest(reason, 0.0)
        with anyio.move_on_after(_PARTING):
            await self.connection.wait_for(*_QUIET)
            await anyio.sleep(_LEAVING)

    def _return(self, reason: str) -> None:
        self._wake(reason)
        self.connection.report_wake()

    # --- the watchers ----------------------------------------------------------------------------------------------

    async def _watch_path(self, monitor: PathMonitor) -> None:
        with monitor:
            async for path in monitor.changes():
                self.connection.report_path(path.up, path.identity)

    async def _watch_suspension(self) -> None:
        await watch_suspension(self.connection.report_wake, wait_awake=self._wait_awake)

    async def _wait_awake(self) -> None:
        # At rest there is nothing that a wake-up could mend: so there is no timer either.
        if self.connection.state is State.CANCELLED:
            await anyio.sleep_forever()
        await self.connection.wait_for(*_AWAKE)

    async def _watch_logind(self, logind: Logind) -> None:
        from ._logind import LogindUnavailable

        try:
            await logind.watch_sleep(lambda: self._part("sleep"), lambda: self._return("sleep"))
        except LogindUnavailable as error:
            # The system's bus went away; the suspended clock still tells of a sleep, afterwards.
            self.sources.discard("logind")
            logger.warning("logind tells of no more sleep: %s", error)
            self._wake("sleep")

    async def _watch_job_control(self) -> None:
        await watch_job_control(lambda: self._part("stop"), lambda: self._return("stop"))


@asynccontextmanager
async def attach(
    connection: Connection,
    *,
    monitor: PathMonitor | None = None,
    path: bool = True,
    suspension: bool = True,
    logind: bool = True,
    job_control: bool = False,
) -> AsyncIterator[Host]:
    """Tell an entered connection of its host while the block lasts; yields the `Host`.

    - `path`: the network path, by `monitor` or the system's own.
    - `suspension`: sleep that nobody announced, noticed within 2 s of waking.
    - `logind`: sleep that logind announces, where there is a system bus and jeepney (extra `host`): the server is told
      goodbye before the machine sleeps. Where there is none, `Host.sources` lacks it and nothing is said.
    - `job_control`: Ctrl-Z and `fg`, for command lines. Needs the main thread.
    """
    host = Host(connection)
    failure: Exception | None = None
    async with AsyncExitStack() as open_things, anyio.create_task_group() as tasks:
        if path:
            host.sources.add("path")
            tasks.start_soon(host._watch_path, monitor or PathMonitor())
        if suspension:
            host.sources.add("suspension")
            tasks.start_soon(host._watch_suspension)
        if logind:
            await _start_logind(host, open_things, tasks)
        if job_control and threading.current_thread() is threading.main_thread():
            host.sources.add("job control")
            tasks.start_soon(host._watch_job_control)
        try:
            yield host
        except Exception as error:
            # Carried past the task group, which would wrap it: the body's own errors come out as they are.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _start_logind(host: Host, open_things: AsyncExitStack, tasks: TaskGroup) -> None:
    try:
        from ._logind import LogindUnavailable, connect_logind
    except ImportError:
        return  # the extra is not installed
    try:
        conversation = await open_things.enter_async_context(connect_logind())
    except LogindUnavailable:
        return
    host.sources.add("logind")
    tasks.start_soon(host._watch_logind, conversation)
