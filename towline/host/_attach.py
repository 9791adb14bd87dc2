"""`attach`: reports the machine's state to a connection (network path, sleep, stops of the process)."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import anyio

from .._tasks import Tasks, failure_of
from .._text import LOG
from ..statemachine import State
from ..transport._url import is_loopback
from ._job_control import watch_job_control
from .path._monitor import PathMonitor
from .path._path import Path, PathSource
from .path._server_path import ServerPathSource
from .sleep._suspend import watch_suspension

if TYPE_CHECKING:
    from .._connection import Connection
    from .sleep._announced import AnnouncedSleep
    from .sleep._logind import Logind

#: The sources of reports about the machine.
Source: TypeAlias = Literal["path", "connectivity", "sleep", "suspension", "job control"]
_Watch: TypeAlias = Callable[[], Awaitable[None]]

#: Seconds that a sleep or a stop waits for the connection to close; logind allows 5.
_CLOSE_WAIT: Final = 4.0
#: Seconds for the close frame to get from here to the network card.
_SEND_WAIT: Final = 0.1
_QUIET: Final = (State.BACKGROUNDED, State.IDLE, State.EXHAUSTED, State.CANCELLED)
_AWAKE: Final = tuple(state for state in State if state is not State.BACKGROUNDED)


class Host:
    """Reports the application's state to a connection; `attach` yields it. Use it instead of `Connection.background()`.

    The connection is in the foreground unless the application, a coming sleep or a stop of the process hides it.
    `sources` are the running watchers. `missing` gives the reason for each requested watcher that is not running.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sources: set[Source] = set()
        self.missing: dict[Source, str] = {}
        self._reasons: set[str] = set()
        self._path = Path(up=True)  # as last reported
        # Created when a watcher waits for the foreground, and set then.
        self._shown: anyio.Event | None = None

    def background(self) -> None:
        """Report that the application is hidden or suspended: the connection is closed after the policy's grace."""
        self._hide("the application", None)

    def foreground(self) -> None:
        """Report that the application is visible again."""
        self._unhide("the application")

    async def suspend(self) -> None:
        """Close the connection now, because the process is about to be stopped.

        Returns when the close frame was sent, at most 4 s later. Call it on the connection's own loop. Sleep and
        `job_control` do this automatically.
        """
        await self._close_connection("a stop")

    def resume(self) -> None:
        """Reconnect: the process runs again after `suspend`."""
        self._resume("a stop")

    def _hide(self, reason: str, grace: float | None) -> None:
        # Report a second reason too, because its grace may be shorter.
        self._reasons.add(reason)
        self.connection.background(grace=grace)
        if not self._reasons:  # withdrawn meanwhile, by another thread or a signal handler
            self.connection.foreground()

    def _unhide(self, reason: str) -> None:
        if reason not in self._reasons:
            return
        self._reasons.discard(reason)
        if not self._reasons:
            self.connection.foreground()
            self.connection._engine_of("foreground").runner.soon(self._wake_watchers)
        if self._reasons:  # hidden again meanwhile, by another thread or a signal handler
            self.connection.background()

    def _wake_watchers(self) -> None:
        if self._shown is not None:
            self._shown.set()
            self._shown = None

    async def _close_connection(self, reason: str) -> None:
        """Go to the background at once; returns when the connection is closed, or after `_CLOSE_WAIT`."""
        self._hide(reason, 0.0)
        with anyio.move_on_after(_CLOSE_WAIT):
            await self.connection.wait_for(*_QUIET)
            await anyio.sleep(_SEND_WAIT)

    def _resume(self, reason: str) -> None:
        self._unhide(reason)
        self.connection.report_wake()

    # --- the watchers ----------------------------------------------------------------------------------------------

    async def _run(self, source: Source, watch: _Watch) -> None:
        try:
            await watch()
        except BaseException as error:
            # A source that the system lacks is not the user's error: the connection works without it.
            await failure_of(error, source, log=None)
            self._drop_source(source, error)

    def _drop_source(self, source: Source, error: BaseException) -> None:
        self.sources.discard(source)
        self.missing[source] = str(error) or type(error).__name__
        trace = None if isinstance(error, OSError) else error  # failures of the system need no traceback
        LOG.warning("the host no longer reports %s: %s", source, self.missing[source], exc_info=trace)
        self._unhide(source)
        if source == "path":
            self.connection.report_network(True)  # the path is unknown now: connecting will find out

    def _undo_reports(self) -> None:
        """Withdraw the last reports of the watchers, which have ended."""
        for source in ("sleep", "job control"):
            self._unhide(source)
        if "path" in self.sources and not self._path.up:
            self.connection.report_network(True)

    async def _watch_path(self, monitor: PathMonitor) -> None:
        with monitor:
            async for path in monitor.changes(wait_awake=self._wait_awake):
                self._path = path
                self.connection.report_network(path.up, path.identity)

    async def _watch_suspension(self) -> None:
        await watch_suspension(self.connection.report_wake, wait_awake=self._wait_awake)

    async def _wait_awake(self) -> None:
        # While hidden, a wake-up could not improve anything, so no timer runs.
        line = self.connection
        if line.state is State.CANCELLED or line.outcome is not None:
            await anyio.sleep_forever()
        await line.wait_for(*_AWAKE)
        while self._reasons and line.state is State.EXHAUSTED:
            self._shown = self._shown or anyio.Event()
            await self._shown.wait()

    async def _watch_job_control(self) -> None:
        await watch_job_control(lambda: self._close_connection("job control"), lambda: self._resume("job control"))


class _Watchers:
    """Starts the watchers of a host; `open_things` closes their resources, after `tasks`."""

    def __init__(self, host: Host, open_things: AsyncExitStack, tasks: Tasks) -> None:
        self._host = host
        self._open_things = open_things
        self._tasks = tasks

    def start(self, source: Source, watch: _Watch) -> None:
        self._host.sources.add(source)
        self._tasks.start_soon(self._host._run, source, watch, name=f"towline {source}")

    async def try_start(self, source: Source, start: _Watch) -> None:
        """Start a watcher, or continue without it."""
        try:
            await start()
        except BaseException as error:
            await failure_of(error, source, log=None)
            self._note_missing(source, error)

    def _note_missing(self, source: Source, error: BaseException) -> None:
        self._host.missing[source] = str(error) or type(error).__name__
        LOG.info("the host cannot report %s: %s", source, self._host.missing[source])

    async def start_path(self, monitor: PathMonitor | None, *, connectivity: bool) -> None:
        if monitor is None:
            host = self._host.connection._engine_of("attaching").settings.host
            if is_loopback(host):
                self._note_missing("path", OSError("the server is on this machine, so it needs no network path"))
                return
            source: PathSource = await ServerPathSource.towards(host)
            if connectivity and sys.platform == "linux":
                try:
                    source = await self._with_network_manager(source)
                except BaseException:
                    source.close()
                    raise
            monitor = PathMonitor(source)
        chosen = monitor
        self.start("path", lambda: self._host._watch_path(chosen))

    async def _with_network_manager(self, kernel: PathSource) -> PathSource:
        try:
            from ._bus import open_bus
            from .path._network_manager import NetworkManagerPathSource

            bus = await self._open_things.enter_async_context(open_bus())
        except Exception as error:
            self._note_missing("connectivity", error)
            return kernel
        source = NetworkManagerPathSource(kernel)
        self.start("connectivity", lambda: source.watch(bus))
        return source

    async def start_sleep(self) -> None:
        host = self._host
        announcer: Logind | AnnouncedSleep
        try:
            if sys.platform == "darwin":
                from .sleep._macos import announced_sleep

                announcer = self._open_things.enter_context(announced_sleep())
            elif sys.platform == "win32":
                from .sleep._windows import announced_sleep

                announcer = self._open_things.enter_context(announced_sleep())
            else:
                from .sleep._logind import connect_logind

                announcer = await self._open_things.enter_async_context(connect_logind())
        except Exception as error:
            self._note_missing("sleep", error)
            return
        watch = announcer.watch_sleep
        self.start("sleep", lambda: watch(lambda: host._close_connection("sleep"), lambda: host._resume("sleep")))

    def start_job_control(self) -> None:
        if sys.platform == "win32":
            self._note_missing("job control", OSError("Windows has no such signals"))
        elif threading.current_thread() is not threading.main_thread():
            self._note_missing("job control", OSError("signals arrive in the main thread only"))
        else:
            self.start("job control", self._host._watch_job_control)


@asynccontextmanager
async def attach(
    connection: Connection,
    *,
    monitor: PathMonitor | None = None,
    path: bool = True,
    connectivity: bool = True,
    sleep: bool = True,
    suspension: bool = True,
    job_control: bool = False,
) -> AsyncIterator[Host]:
    """Report the host's state to an entered connection while the block lasts; yields the `Host`.

    - `path`: the network path, from `monitor` or the system. The system's is not watched for a server on this machine.
    - `connectivity`: whether that path reaches the internet, from NetworkManager, on Linux; needs a system bus and
      jeepney (the extra `host`). Not used with your own `monitor`.
    - `sleep`: sleep that the system announces (logind, which needs the same; macOS; Windows). The connection is closed
      before it.
    - `suspension`: sleep that was not announced, noticed within 2 s of waking.
    - `job_control`: Ctrl-Z and `fg`, for command lines. Needs the main thread.

    A source that is missing, or fails later, raises nothing: it is logged once and listed in `Host.missing`. After the
    block the path counts as up, and no sleep holds the connection; the application's own reports stay.

    Raises `ForbiddenRequest` if the connection is not entered.
    """
    connection._engine_of("attaching")
    host = Host(connection)
    async with AsyncExitStack() as open_things, Tasks() as tasks:
        open_things.callback(host._undo_reports)
        watchers = _Watchers(host, open_things, tasks)
        async with anyio.create_task_group() as starting:  # in parallel, because a bus or a resolver may be slow
            if path:
                starting.start_soon(
                    watchers.try_start, "path", lambda: watchers.start_path(monitor, connectivity=connectivity)
                )
            if sleep:
                starting.start_soon(watchers.try_start, "sleep", watchers.start_sleep)
        if suspension:
            watchers.start("suspension", host._watch_suspension)
        if job_control:
            watchers.start_job_control()
        yield host
