"""An in-memory network: the transport connects through it, and a server runs behind it.

The engine runs on it unchanged, with thousands of connections at a time, under virtual time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import ByteStream, TaskGroup

from ..._exceptions import ConnectFailed, NameNotResolved
from ...transport import Endpoint, Network
from ._stream import MemoryLink


@dataclass(frozen=True, slots=True)
class Reach:
    """A connection attempt that succeeds after `after` seconds; the link then has that `latency` in each direction."""

    after: float = 0.0
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A connection attempt that fails after `after` seconds: refused, or (`resolved=False`) the name has no address."""

    after: float = 0.0
    resolved: bool = True


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A connection attempt that hangs: a black hole on the way."""


Fate: TypeAlias = Reach | Unreachable | NoAnswer


@dataclass(slots=True)
class DialRecord:
    """One call of `connect`: its time (on the loop's clock), its target, and its result."""

    at: float
    host: str
    port: int
    fate: Fate
    link: MemoryLink | None = field(default=None, repr=False)


class MemoryNetwork(Network, AsyncContextManagerMixin):
    """A `towline.Network` that links every connection to `serve(link)`, which runs in the network's task group.

    `weather` is the fate of every attempt; `script(...)` gives the fates of the next ones, one each. `dials` records
    them all. An exception of `serve` is raised from the block. TLS is not simulated: an endpoint's context is ignored.
    """

    def __init__(self, serve: Callable[[MemoryLink], Awaitable[None]]) -> None:
        super().__init__(allow_insecure=True)
        self.weather: Fate = Reach()
        self.dials: list[DialRecord] = []
        self._serve = serve
        self._script: list[Fate] = []
        self._links: set[MemoryLink] = set()
        self._tasks: TaskGroup | None = None
        self._dial_started = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        failure: Exception | None = None
        async with anyio.create_task_group() as self._tasks:
            try:
                yield self
            except Exception as error:
                # Raised after the task group, which would wrap it: a test's own errors stay as they are.
                failure = error
            self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def script(self, *fates: Fate) -> None:
        """Add fates for the next connection attempts, one each; after them `weather` applies again."""
        self._script += fates

    @property
    def links(self) -> tuple[MemoryLink, ...]:
        """The links that are still being served."""
        return tuple(self._links)

    async def wait_dials(self, count: int) -> None:
        """Wait until `count` connection attempts have started since the network was created."""
        while len(self.dials) < count:
            await self._dial_started.wait()

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        """Connect. Raises `ConnectFailed` or `NameNotResolved` as scripted; `RuntimeError` outside the block."""
        if self._tasks is None:
            raise RuntimeError("the memory network is not running: enter it with `async with`")
        fate = self._script.pop(0) if self._script else self.weather
        dial = DialRecord(anyio.current_time(), endpoint.host, endpoint.port, fate)
        self.dials.append(dial)
        self._dial_started.set()
        self._dial_started = anyio.Event()
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
            pass  # the client's end of the link was closed or cut: stop serving
        finally:
            self._links.discard(link)
