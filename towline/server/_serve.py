"""The hub as a server, on uvicorn; asyncio only, because uvicorn is.

uvicorn's WebSocket implementation is `websockets-sansio`: it answers a refused upgrade with any status, waits for a
slow peer in `send`, and sends protocol pings, which let a dead peer be noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Final

import anyio
import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from .._exceptions import InvalidArgument
from ._descriptors import QuietAccept, raise_limit
from ._keeping import match_files
from ._processes import run_processes
from .pipelines._csv_import import MEDIA_TYPES, csv_import
from .web._application import Hub

logger: Final = logging.getLogger("towline.server")

_PING_EVERY: Final = 20.0
_PONG_WITHIN: Final = 20.0
_STOP_WITHIN: Final = 5
_BACKLOG: Final = 2048
#: TCP_USER_TIMEOUT as a multiple of `HubLimits.send_wait`. A server's `close` waits for a peer that takes nothing, and
#: keeps its file descriptor, so the system ends the connection (RFC 5482, tcp(7)). It also finds a peer that is gone
#: without a word, which an event stream cannot ping.
_TAKEN_WITHIN: Final = 2


class _Server(uvicorn.Server):
    """Serves one hub on one listening socket, says where, and lets the hub say goodbye before connections are cut."""

    def __init__(
        self,
        config: uvicorn.Config,
        hub: Hub,
        listener: socket.socket,
        announce: Callable[[str], None],
        ready: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(config)
        self._hub = hub
        self._listener = listener
        self._announce = announce
        self._ready = ready
        self._ignored: set[int] = set()
        self._capturing = False
        self._start: anyio.CancelScope | None = None  # while the hub starts

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        anyio.run(self._run_hub)

    async def _run_hub(self) -> None:
        # The hub is entered here and not by ASGI's lifespan, so that its errors come out as they are.
        # Signals are heard before that, so that a stop while the hub starts is a stop.
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(QuietAccept())
        with self._listener, self.capture_signals(), anyio.CancelScope() as self._start:
            async with self._hub:
                self._start = None
                if not self.should_exit:
                    await self.serve(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce(_url(self._listener))
        if self._ready is not None:
            await self._ready(_url(self._listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._hub.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again at the end, so that a stop looks like a crash; here it is a plain return.
        if not self._capturing:  # `serve` does it again
            self._ignored = {number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
        self._capturing = True
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # What the parent of this process had it ignore stays ignored: a shell does that for `command &` in a script.
        if sig in self._ignored:
            return
        self._stop(signal.SIGINT if self.should_exit else sig, frame)

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._start is not None:
            self._loop.call_soon_threadsafe(self._start.cancel)


class _Worker(_Server):
    """One of several processes. It may get the signal to stop twice, from its parent and from a service manager that
    signals every process: only SIGINT, which its parent sends, hurries it. Neither is ignored.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop(sig, frame)


def announce_on_stdout(url: str) -> None:
    """Print the line from which the program that started the process learns the port."""
    print(f"towline hub listening on {url}", flush=True)  # noqa: T201


def serve(
    host: str = "127.0.0.1",
    port: int = 8470,
    database: Path | str = "towline-hub.db",
    *,
    files: Path | None = None,
    row_delay: float = 0,
    hub: Hub | Callable[[], Hub] | None = None,
    workers: int = 1,
    uds: Path | None = None,
    fd: int | None = None,
    announce: Callable[[str], None] = announce_on_stdout,
) -> None:
    """Serve a hub with the `csv_import` pipeline (or the `hub` given) until SIGTERM or SIGINT; blocks.

    `database` and `files` are as for `Hub`. Port 0 takes a free one. With `uds` (a path) the hub listens on a Unix
    socket instead, which every user of the machine may use who can reach its folder; with `fd` on the listening socket
    that this process got as that file descriptor. `announce` is called with the hub's URL once it listens, `unix:PATH`
    for a Unix socket. `row_delay` is a pause after each row of a CSV file, in seconds. The process's limit of open
    files is raised to the hard limit. At a stop, sockets are closed with a reason that says when to reconnect, and jobs
    stay in the database for the next start.

    With more than one of `workers` so many processes serve the one port, each a hub on the same Redis; one that dies is
    replaced. Each imports your program again, so call this below `if __name__ == "__main__":`. A `hub` of your own is
    then a function that makes it, which can be pickled.

    Raises `OSError` where the address cannot be had, `HubStorageError` where the database or the folder cannot be used,
    and `InvalidArgument` for several workers on one SQLite file or of one `hub`, or an `fd` that does not listen.
    """
    raise_limit()
    if workers < 1 or (workers > 1 and isinstance(hub, Hub)):
        raise InvalidArgument("workers", "must be above zero, and is 1 for a hub: pass a function that makes it")
    if isinstance(hub, Hub):
        made = hub
    else:
        make = hub or partial(csv_hub, database, files, row_delay)
        made = make()
    if workers > 1:
        if not made.log.shared:
            raise InvalidArgument("workers", "must be 1 with an SQLite file; use a log in Redis for several workers")
        anyio.run(_check, made)
    listener = _listen(made, host, port, uds, fd)
    try:
        if workers == 1:
            return _Server(_config(made), made, listener, announce).run()
        with listener:
            announce(_url(listener))
            run_processes(workers, partial(_serve_one, make), listener)
    finally:
        if uds is not None:
            uds.unlink(missing_ok=True)
    return None


def csv_hub(database: Path | str, files: Path | None, row_delay: float) -> Hub:
    """Make a hub with the `csv_import` pipeline, and with metrics where their extra is installed."""
    hub = Hub(database, files=files, metrics=find_spec("prometheus_client") is not None)
    hub.job("csv_import", path="/api/imports/csv", media_types=MEDIA_TYPES)(csv_import(row_delay=row_delay))
    return hub


async def _check(hub: Hub) -> None:
    """Find out in the parent what would fail in all of its children."""
    await hub.check_folder()
    async with hub.log:
        await match_files(hub.log, hub.files)


def _serve_one(make: Callable[[], Hub], listener: socket.socket) -> None:
    """One of several processes."""
    hub = make()
    _Worker(_config(hub), hub, listener, lambda url: None).run()


def make_server(
    hub: Hub,
    host: str,
    port: int,
    announce: Callable[[str], None],
    ready: Callable[[str], Awaitable[None]] | None = None,
) -> uvicorn.Server:
    """Make the server of a hub; setting its `should_exit` stops it as a signal does.

    `announce` and then `ready` are called with the hub's URL once it listens. An error of `ready` stops the server.
    """
    return _Server(_config(hub), hub, _listen(hub, host, port), announce, ready)


def _is_news(record: logging.LogRecord) -> bool:
    """False for the error that `websockets-sansio` logs after each upgrade that was refused with a status."""
    return record.msg != "ASGI callable returned without completing handshake."


def _config(hub: Hub) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return uvicorn.Config(
        hub,
        ws="websockets-sansio",
        ws_max_size=hub.limits.client_message * 4,
        ws_ping_interval=_PING_EVERY,
        ws_ping_timeout=_PONG_WITHIN,
        ws_per_message_deflate=False,
        lifespan="off",
        # uvicorn's own lines hold whole URLs, which may hold tokens; the hub's hold none.
        log_config=None,
        access_log=False,
        log_level=logging.WARNING,
        timeout_graceful_shutdown=_STOP_WITHIN,
    )


def _url(listener: socket.socket) -> str:
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(hub: Hub, host: str, port: int, uds: Path | None = None, fd: int | None = None) -> socket.socket:
    if fd is not None:
        listener = _inherited(fd)
    else:
        try:
            listener = _bind(host, port) if uds is None else _bind_path(uds)
        except OSError as error:
            place = f"{host}:{port}" if uds is None else uds
            raise OSError(error.errno, f"cannot listen on {place}: {error.strerror or error}") from error
    # The accepted sockets inherit this.
    if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
        taken_within = round(1000 * _TAKEN_WITHIN * hub.limits.send_wait)  # milliseconds
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, taken_within)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


def _inherited(fd: int) -> socket.socket:
    """Take a listening socket from the process's parent: systemd's first is 3 (sd_listen_fds(3))."""
    try:
        listener = socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        raise InvalidArgument("fd", f"{fd} is no socket: {error}") from error
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise InvalidArgument("fd", f"{fd} is a socket that does not listen")
    os.set_inheritable(fd, False)
    return listener


def _bind_path(path: Path) -> socket.socket:
    """Listen on a Unix socket, in the place of one that no process listens on any more."""
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidArgument("uds", "Python has no Unix sockets on this system")
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as other:
            try:
                other.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        # A proxy is another user. Who may come this far is up to the folder, as for the port of a machine.
        path.chmod(0o666)
        listener.listen(_BACKLOG)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    return listener
