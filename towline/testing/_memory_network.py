"""A network in memory: what the transport dials with, and a server behind it.

It stands behind the transport's network seam (`towline.transport.Network`), so the engine runs on it unchanged,
thousands of connections at a time, under virtual time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import ByteStream, TaskGroup

from .._exceptions import ConnectFailed, NameNotResolved
from ..transport import Endpoint
from ._memory_stream import MemoryLink


@dataclass(frozen=True, slots=True)
class Reach:
    """A dial that comes through, after `after` seconds; the link then has that `latency` in each direction."""

    after: float = 0.0
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A dial that fails after `after` seconds: refused, or (`resolved=False`) the name has no address."""

    after: float = 0.0
    resolved: bool = True


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A dial that hangs for ever: a black hole on the way."""


Fate: TypeAlias = Reach | Unreachable | NoAnswer


@dataclass(slots=True)
class Dial:
    """One call of `connect`: when (the loop's seconds), where to, and what became of it."""

    at: float
    host: str
    port: int
    fate: Fate
    link: MemoryLink | None = field(default=None, repr=False)


class MemoryNetwork(AsyncContextManagerMixin):
    """A `Network` that links every dial to `serve(link)`, run in the network's own task group until the block ends.

    `weather` is the fate of every dial, `script(...)` that of the next ones, one each. `dials` records them all. An
    exception of `serve` comes out of the block. TLS is not played: an endpoint's context is ignored.
    """

    def __init__(self, serve: Callable[[MemoryLink], Awaitable[None]]) -> None:
        self.weather: Fate = Reach()
        self.dials: list[Dial] = []
        self._serve = serve
        self._script: list[Fate] = []
        self._links: set[MemoryLink] = set()
        self._tasks: TaskGroup | None = None
        self._dialled = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        failure: Exception | None = None
        async with anyio.create_task_group() as self._tasks:
            try:
                yield self
            except Exception as error:
                # Carried past the task group, which would wrap it: a test's own errors come out as they are.
                failure = error
            self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def script(self, *fates: Fate) -> None:
        """Add fates for the next dials, one each; after them the weather counts again."""
        self._script += fates

    @property
    def links(self) -> tuple[MemoryLink, ...]:
        """The links that somebody still serves."""
        return tuple(self._links)

    async def wait_dials(self, count: int) -> None:
        """Wait until `count` dials were begun since the network was made."""
        while len(self.dials) < count:
            await self._dialled.wait()

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        """Dial. Raises `ConnectFailed` or `NameNotResolved` as scripted; `RuntimeError` outside the block."""
        if self._tasks is None:
            raise RuntimeError("the memory network is not running: enter it with `async with`")
        fate = self._script.pop(0) if self._script else self.weather
        dial = Dial(anyio.current_time(), endpoint.host, endpoint.port, fate)
        self.dials.append(dial)
        self._dialled.set()
        self._dialled = anyio.Event()
        if isinstance(fate, NoAnswer):
            await anyio.sleep_forever()
        assert not isinstance(fate, NoAnswer)
        await anyio.sleep(fate.after)
        if isinstance(fate, Unreachable):
            if not fate.resolved:
                raise NameNotResolved(endpoint.host)
            raise ConnectFailed(endpoint.host, endpoint.port, "connection refused")
        dial.link = MemoryLink(latency=fate.latency)
        self._tasks.start_soon(self._run, dial.link)
        return dial.link.client

    async def _run(self, link: MemoryLink) -> None:
        self._links.add(link)
        try:
            async with link.server:
                await self._serve(link)
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass  # the client's end of the link is gone, or was cut: the serving is over
        finally:
            self._links.discard(link)
