"""One line that tells a connection of the machine it runs on: its network path, its sleep, its being stopped."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import anyio

from .._tasks import Tasks, failure_of
from ..statemachine import State
from ..transport._path import Path, PathMonitor, PathSource
from ..transport._url import is_loopback
from ._job_control import watch_job_control
from ._server_path import ServerPathSource
from ._suspend import watch_suspension

if TYPE_CHECKING:
    from .._connection import Connection
    from ._announced_sleep import AnnouncedSleep
    from ._logind import Logind

logger = logging.getLogger("towline")

#: What tells a host's connection of the machine.
Source: TypeAlias = Literal["path", "connectivity", "sleep", "suspension", "job control"]
_Watch: TypeAlias = Callable[[], Awaitable[None]]

#: How long a sleep or a stop waits for the connection to part from the server, in seconds; logind allows 5.
_PARTING: Final = 4.0
#: How long the close frame may take from here to the network card.
_LEAVING: Final = 0.1
_QUIET: Final = (State.BACKGROUNDED, State.IDLE, State.EXHAUSTED, State.CANCELLED)
_AWAKE: Final = tuple(state for state in State if state is not State.BACKGROUNDED)


class Host:
    """What `attach` yields: the host's word to its connection. Use it in place of the connection's own `background()`.

    The connection is in the foreground unless the application, a coming sleep or a stop of the process says otherwise.
    `sources` are the watchers that run; `missing` says of each other one that was asked for why it does not.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sources: set[Source] = set()
        self.missing: dict[Source, str] = {}
        self._reasons: set[str] = set()
        self._path = Path(up=True)  # as it was told last
        # Made when a watcher waits for the last reason to rest to go, and set then.
        self._shown: anyio.Event | None = None

    def background(self) -> None:
        """The application is hidden or suspended: after the policy's grace the connection is put to rest."""
        self._rest("the application", None)

    def foreground(self) -> None:
        """The application is seen again."""
        self._wake("the application")

    async def suspend(self) -> None:
        """The process is about to be stopped: put the connection to rest now. Returns when the server was told of it,
        at most 4 s later. For the connection's own loop; sleep and `job_control` do this by themselves.
        """
        await self._part("a stop")

    def resume(self) -> None:
        """The process goes on after `suspend`."""
        self._return("a stop")

    def _rest(self, reason: str, grace: float | None) -> None:
        # Told again by a second reason, for its grace may be the shorter.
        self._reasons.add(reason)
        self.connection.background(grace=grace)
        if not self._reasons:  # taken back meanwhile, by another thread or a signal handler
            self.connection.foreground()

    def _wake(self, reason: str) -> None:
        if reason not in self._reasons:
            return
        self._reasons.discard(reason)
        if not self._reasons:
            self.connection.foreground()
            self.connection._engine_of("foreground").soon(self._show)
        if self._reasons:  # hidden again meanwhile, by another thread or a signal handler
            self.connection.background()

    def _show(self) -> None:
        if self._shown is not None:
            self._shown.set()
            self._shown = None

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

    async def _run(self, source: Source, watch: _Watch) -> None:
        try:
            await watch()
        except BaseException as error:
            # What the system does not give us is no error of the user's: the connection does without, as before.
            await failure_of(error, source, log=False)
            self._lose(source, error)

    def _lose(self, source: Source, error: BaseException) -> None:
        self.sources.discard(source)
        self.missing[source] = str(error) or type(error).__name__
        trace = None if isinstance(error, OSError) else error  # the system's own failures need none
        logger.warning("the host tells of %s no more: %s", source, self.missing[source], exc_info=trace)
        self._wake(source)
        if source == "path":
            self.connection.report_path(True)  # nobody knows any more: a dial is to find out

    def _leave(self) -> None:
        """The watchers are gone, and with them who would take back what they told last."""
        for source in ("sleep", "job control"):
            self._wake(source)
        if "path" in self.sources and not self._path.up:
            self.connection.report_path(True)

    async def _watch_path(self, monitor: PathMonitor) -> None:
        with monitor:
            async for path in monitor.changes(wait_awake=self._wait_awake):
                self._path = path
                self.connection.report_path(path.up, path.identity)

    async def _watch_suspension(self) -> None:
        await watch_suspension(self.connection.report_wake, wait_awake=self._wait_awake)

    async def _wait_awake(self) -> None:
        # At rest there is nothing that a wake-up could mend: so there is no timer either.
        line = self.connection
        if line.state is State.CANCELLED or line.outcome is not None:
            await anyio.sleep_forever()
        await line.wait_for(*_AWAKE)
        while self._reasons and line.state is State.EXHAUSTED:
            self._shown = self._shown or anyio.Event()
            await self._shown.wait()

    async def _watch_job_control(self) -> None:
        await watch_job_control(lambda: self._part("job control"), lambda: self._return("job control"))


class _Beginning:
    """Begins the watchers of a host; what they hold open is closed with `open_things`, after `tasks`."""

    def __init__(self, host: Host, open_things: AsyncExitStack, tasks: Tasks) -> None:
        self._host = host
        self._open_things = open_things
        self._tasks = tasks

    def begin(self, source: Source, watch: _Watch) -> None:
        self._host.sources.add(source)
        self._tasks.start_soon(self._host._run, source, watch, name=f"towline {source}")

    async def attempt(self, source: Source, begin: _Watch) -> None:
        """Begin a watcher, or do without it."""
        try:
            await begin()
        except BaseException as error:
            await failure_of(error, source, log=False)
            self._miss(source, error)

    def _miss(self, source: Source, error: BaseException) -> None:
        self._host.missing[source] = str(error) or type(error).__name__
        logger.info("the host does not tell of %s: %s", source, self._host.missing[source])

    async def begin_path(self, monitor: PathMonitor | None, *, connectivity: bool) -> None:
        if monitor is None:
            host = self._host.connection._engine_of("attaching").settings.url.origin.host
            if is_loopback(host):
                self._miss("path", OSError("the server is on this machine, which needs no way out"))
                return
            source: PathSource = await ServerPathSource.towards(host)
            if connectivity and sys.platform == "linux":
                try:
                    source = await self._judged_by_network_manager(source)
                except BaseException:
                    source.close()
                    raise
            monitor = PathMonitor(source)
        chosen = monitor
        self.begin("path", lambda: self._host._watch_path(chosen))

    async def _judged_by_network_manager(self, beneath: PathSource) -> PathSource:
        try:
            from ._bus import open_bus
            from ._network_manager import NetworkManagerPathSource

            bus = await self._open_things.enter_async_context(open_bus())
        except Exception as error:
            self._miss("connectivity", error)
            return beneath
        source = NetworkManagerPathSource(beneath)
        self.begin("connectivity", lambda: source.watch(bus))
        return source

    async def begin_sleep(self) -> None:
        host = self._host
        announcer: Logind | AnnouncedSleep
        try:
            if sys.platform == "darwin":
                from ._sleep_macos import announced_sleep

                announcer = self._open_things.enter_context(announced_sleep())
            elif sys.platform == "win32":
                from ._sleep_windows import announced_sleep

                announcer = self._open_things.enter_context(announced_sleep())
            else:
                from ._logind import connect_logind

                announcer = await self._open_things.enter_async_context(connect_logind())
        except Exception as error:
            self._miss("sleep", error)
            return
        watch = announcer.watch_sleep
        self.begin("sleep", lambda: watch(lambda: host._part("sleep"), lambda: host._return("sleep")))

    def begin_job_control(self) -> None:
        if sys.platform == "win32":
            self._miss("job control", OSError("Windows has no such signals"))
        elif threading.current_thread() is not threading.main_thread():
            self._miss("job control", OSError("signals come to the main thread only"))
        else:
            self.begin("job control", self._host._watch_job_control)


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
    """Tell an entered connection of its host while the block lasts; yields the `Host`.

    - `path`: the network path, by `monitor` or the system's own; the latter not for a server on this machine.
    - `connectivity`: whether that path leads anywhere, by NetworkManager, on Linux; needs a system bus and jeepney (the
      extra `host`). A `monitor` of yours is taken at its word instead.
    - `sleep`: sleep that the system announces (logind, which needs the same; macOS; Windows): the server is told
      goodbye before it.
    - `suspension`: sleep that nobody announced, noticed within 2 s of waking.
    - `job_control`: Ctrl-Z and `fg`, for command lines. Needs the main thread.

    A source that is missing here, or fails later, raises nothing: it is logged once, and `Host.missing` has it. After
    the block the path counts as up, and no sleep holds the connection; what the application said of itself stays.
    Raises `ForbiddenRequest` if the connection is not entered.
    """
    connection._engine_of("attaching")
    host = Host(connection)
    async with AsyncExitStack() as open_things, Tasks() as tasks:
        open_things.callback(host._leave)
        beginning = _Beginning(host, open_things, tasks)
        async with anyio.create_task_group() as beginnings:  # together, for a bus or a resolver may take its time
            if path:
                beginnings.start_soon(
                    beginning.attempt, "path", lambda: beginning.begin_path(monitor, connectivity=connectivity)
                )
            if sleep:
                beginnings.start_soon(beginning.attempt, "sleep", beginning.begin_sleep)
        if suspension:
            beginning.begin("suspension", host._watch_suspension)
        if job_control:
            beginning.begin_job_control()
        yield host
