"""`Connection` for scripts and GUI threads: the same names, without `await`::

    from towline.blocking import Connection

    with Connection("wss://api.example/ws/progress", job="j1", token=token) as line:
        for update in line:
            print(line.state, update)
        print(line.outcome)

`with Connection(...) as line, attach(line) as host:` reports the machine's and the window's state, as `towline.host`
does.

The event loop runs in its own thread while the block lasts. Every method may be called from any thread; a method that
waits blocks only the calling thread. Handlers (`on_state` and so on) run on the loop's thread. They must not call
methods that wait, and a GUI must pass the values to its own thread.

Under gevent's monkey patching that thread is a greenlet, and one system thread can run only one loop. Then all
connections share a loop, and none can be opened while the program's own loop runs in that thread.

A forked process does not have the thread: there an open connection raises `ForbiddenRequest`, and leaving its block
sends nothing to the server. Create a new one.
"""

from __future__ import annotations

import atexit
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ._connection import MAX_RESULT, Statistics, Subscription, Token, TokenProvider
from ._connection import Connection as AsyncConnection
from ._exceptions import DeadlineExceeded, ForbiddenRequest
from ._facts import CancelWord, Protocol
from ._secret import Secret
from ._tasks import CALLER
from ._updates import AnyUpdate, Outcome
from .host import Host
from .host import attach as attach_async
from .protocols._shared.recording import Observer
from .statemachine import History, State

__all__ = ["Connection", "Updates", "attach"]

T = TypeVar("T")


class _SharedPortal:
    """One loop for all connections with this backend: if threads are greenlets, a second loop cannot run."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._users = 0
        self._open = ExitStack()
        self._portal: BlockingPortal | None = None

    @contextmanager
    def __call__(self) -> Iterator[BlockingPortal]:
        with self._lock:
            if self._portal is None:
                try:
                    self._portal = self._open.enter_context(start_blocking_portal(self._backend))
                except RuntimeError as error:
                    why = "gevent has made threads greenlets, so only one loop can run: use `towline.Connection` in it"
                    raise ForbiddenRequest("entering", "another event loop runs", why) from error
            portal = self._portal
            self._users += 1
        try:
            yield portal
        finally:
            with self._lock:  # held until the loop has ended, because the next one must not start before
                self._users -= 1
                if not self._users:
                    self._portal = None
                    self._open.close()


#: By process and backend, because a forked process has none of its parent's loops.
_SHARED: Final[dict[tuple[int, str], _SharedPortal]] = {}


def _portal(backend: str) -> AbstractContextManager[BlockingPortal]:
    """Run an event loop in a thread while the block lasts."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is None or not gevent.is_module_patched("threading"):
        return start_blocking_portal(backend)
    return _SHARED.setdefault((os.getpid(), backend), _SharedPortal(backend))()


class Updates(Iterator[AnyUpdate]):
    """The updates of one connection, for one thread; iterate over a `Connection` to create it."""

    def __init__(self, connection: Connection, subscription: Subscription) -> None:
        self._connection = connection
        self._subscription = subscription

    def __next__(self) -> AnyUpdate:
        update = self._connection._wait(self._next)
        if update is None:
            raise StopIteration
        return update

    async def _next(self) -> AnyUpdate | None:
        return await anext(self._subscription, None)


class Connection:
    """A blocking `towline.Connection` with the same options. A `token` provider may be a plain function.

    `backend` is the event loop to run: asyncio or trio.
    """

    def __init__(
        self,
        target: str | Protocol | None = None,
        *,
        job: str | None = None,
        token: str | Secret | TokenProvider | Callable[[], str | Secret | Token] | None = None,
        backend: str = "asyncio",
        **options: Any,
    ) -> None:
        provided: Any = _in_thread(token) if callable(token) and not _is_async(token) else token
        self._twin = AsyncConnection(target, job=job, token=provided, **options)
        self._backend = backend
        self._portal: BlockingPortal | None = None
        self._open = ExitStack()
        self._entered_by = threading.current_thread()
        self._entered_in: int | None = None

    def __repr__(self) -> str:
        return repr(self._twin)

    @property
    def _line(self) -> AsyncConnection:
        self._raise_if_forked()
        return self._twin

    def _raise_if_forked(self) -> None:
        if self._is_forked():
            why = "its thread runs in the parent only; create a new `Connection` here"
            raise ForbiddenRequest("using the connection", "in a forked process", why)

    def _is_forked(self) -> bool:
        return self._entered_in is not None and self._entered_in != os.getpid()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(_portal(self._backend))
            stack.enter_context(portal.wrap_async_context_manager(self._line))
            self._portal = portal
            self._open = stack.pop_all()
        self._entered_by = threading.current_thread()
        self._entered_in = os.getpid()
        atexit.register(self._end_with_interpreter)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        atexit.unregister(self._end_with_interpreter)
        if self._portal is not None and self._is_forked():
            # Its thread does not exist here and would never answer; a stopped portal is not asked again.
            with suppress(StopIteration, RuntimeError):
                self._portal.stop().send(None)
            with suppress(RuntimeError):
                self._open.close()
            self._portal = None
            return None
        try:
            return self._open.__exit__(kind, error, traceback)
        finally:
            self._portal = self._entered_in = None

    def _end_with_interpreter(self) -> None:
        # A block that is left later, such as a global generator's, would wait for a thread that no longer runs. A
        # daemon thread never leaves its block.
        if self._is_forked():
            self.__exit__(None, None, None)
        elif self._portal is not None and not (self._entered_by.daemon and self._entered_by.is_alive()):
            self._line.cancel()
            with suppress(RuntimeError):  # it has ended meanwhile
                self._portal.call(self._portal.stop, True)
            with suppress(RuntimeError):
                self.__exit__(None, None, None)

    def _wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run `call` on the loop and wait for it; interrupting this thread cancels the call."""
        self._raise_if_forked()
        if self._portal is None:
            raise ForbiddenRequest("waiting", "not entered", "use `with Connection(...)`, and wait inside the block")
        thread = threading.current_thread()

        async def run() -> T:
            CALLER.set(thread)
            return await call()

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # --- updates ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Updates:
        """Iterate over the updates until the job's end. See `updates`."""
        return self.updates()

    def updates(self, *, wait: bool = False) -> Updates:
        """Iterate over the updates. See `towline.Connection.updates`."""
        return Updates(self, self._line._on_loop(lambda: self._line.updates(wait=wait)))

    @property
    def state(self) -> State:
        """The connection's current state."""
        return self._line.state

    @property
    def job(self) -> str:
        """The job's id."""
        return self._line.job

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, or None if that is not known yet."""
        return self._line.outcome

    def result(self, timeout: float | None = None) -> Outcome:
        """Wait for the job's end and return it. See `towline.Connection.result`.

        Raises `DeadlineExceeded` after `timeout` seconds.
        """

        async def result() -> Outcome:
            with anyio.move_on_after(timeout):
                return await self._line.result()
            raise DeadlineExceeded("the job's end", timeout or 0.0)

        return self._wait(result)

    def wait_for(self, *states: State, timeout: float | None = None) -> State:
        """Wait until the connection is in one of `states`. See `towline.Connection.wait_for`."""
        return self._wait(lambda: self._line.wait_for(*states, timeout=timeout))

    # --- requests --------------------------------------------------------------------------------------------------

    def connect(self, *, token: str | Secret | None = None) -> None:
        """Follow the job again. See `towline.Connection.connect`."""
        self._line.connect(token=token)

    def retry(self) -> None:
        """Connect now and skip the current wait. See `towline.Connection.retry`."""
        self._line.retry()

    def cancel(self) -> bool:
        """Stop following for good; the job goes on. See `towline.Connection.cancel`."""
        return self._line.cancel()

    def cancel_job(self) -> CancelWord:
        """Ask the server to cancel the job. See `towline.Connection.cancel_job`."""
        return self._wait(self._line.cancel_job)

    def background(self, *, grace: float | None = None) -> None:
        """Report that the app is in the background. See `towline.Connection.background`."""
        self._line.background(grace=grace)

    def foreground(self) -> None:
        """Report that the app is in the foreground again."""
        self._line.foreground()

    def report_network(self, up: bool, identity: str | None = None) -> None:
        """Report the host's network path. See `towline.Connection.report_network`."""
        self._line.report_network(up, identity)

    def report_wake(self) -> None:
        """Report that the host was suspended and has woken."""
        self._line.report_wake()

    def close(self) -> None:
        """Stop following; the job goes on, and `connect()` follows it again. See `towline.Connection.aclose`."""
        self._wait(self._line.aclose)

    def fetch_result(self, *, max_bytes: int = MAX_RESULT) -> Any:
        """Return the job's result, and fetch it if necessary. See `towline.Connection.fetch_result`."""
        return self._wait(lambda: self._line.fetch_result(max_bytes=max_bytes))

    # --- diagnostics -----------------------------------------------------------------------------------------------

    def observe(self, observer: Observer) -> None:
        """Call `observer` on the loop's thread. See `towline.Connection.observe`."""
        self._line.observe(observer)

    def statistics(self) -> Statistics:
        """Return the connection's current state and counts."""
        return self._line._on_loop(self._line.statistics)

    def history(self) -> History:
        """Return the latest events and their results. See `towline.Connection.history`."""
        return self._line._on_loop(self._line.history)


@contextmanager
def attach(connection: Connection, **options: Any) -> Iterator[Host]:
    """Report the machine's state to an entered connection while the block lasts.

    Takes the options of `towline.host.attach`. The `Host` may be called from any thread, except `suspend`, which is for
    the loop's thread.
    """
    if connection._portal is None:
        raise ForbiddenRequest("attaching", "not entered", "use `with Connection(...)`, and attach inside the block")
    with ExitStack() as stack:
        attached = attach_async(connection._line, **options)
        host = stack.enter_context(connection._portal.wrap_async_context_manager(attached))
        try:
            yield host
        finally:
            if connection._is_forked():
                stack.pop_all()  # as for the connection's own block


def _is_async(provider: Callable[[], Any]) -> bool:
    return inspect.iscoroutinefunction(provider) or inspect.iscoroutinefunction(getattr(provider, "__call__", None))  # noqa: B004 - not whether it is callable, but how


def _in_thread(provider: Callable[[], Any]) -> TokenProvider:
    async def provided() -> Any:
        return await anyio.to_thread.run_sync(provider)

    return provided
