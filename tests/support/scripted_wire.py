"""A server in memory that answers HTTP requests with scripted bytes, for the tests of the sources."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import anyio
import pytest

import towline.sources
import towline.transport
from towline.sources import Access
from towline.testing import MemoryLink, MemoryNetwork
from towline.transport import Limits, Liveness, Network, parse_url

#: Bytes to send, seconds to wait, or what happens to the connection.
Step: TypeAlias = bytes | float | Literal["fin", "rst", "hang"]

#: Seconds since 1970 at the start of each test.
WALL = 1_700_000_000.0

_OURS = tuple(Path(package.__file__ or "").parent for package in (towline.sources, towline.transport))


class Seen(NamedTuple):
    """One request: when it came, on which connection (0, 1 …), its first line, headers and body."""

    at: float
    link: int
    line: str
    headers: dict[str, str]
    body: bytes


class Script:
    """Does the steps of one answer for each request, in order; then reads the next request of the connection.

    After the last answer, requests are read and not answered.
    """

    def __init__(self, *answers: Sequence[Step]) -> None:
        self.seen: list[Seen] = []
        self.links: list[MemoryLink] = []
        self.network = MemoryNetwork(self._serve)
        self._answers = list(answers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve; at the end every connection must have been closed."""
        async with self.network:
            yield self
            for link in self.links:
                with pytest.raises(anyio.ClosedResourceError):
                    await link.client.receive()

    async def _serve(self, link: MemoryLink) -> None:
        number = len(self.links)
        self.links.append(link)
        wire = b""
        while True:
            while b"\r\n\r\n" not in wire:
                wire += await link.server.receive()
            head, _, wire = wire.partition(b"\r\n\r\n")
            line, *rest = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (pair.partition(": ") for pair in rest)}
            size = int(headers.get("content-length", "0"))
            while len(wire) < size:
                wire += await link.server.receive()
            self.seen.append(Seen(anyio.current_time(), number, line, headers, wire[:size]))
            wire = wire[size:]
            for step in self._answers.pop(0) if self._answers else ["hang"]:
                if isinstance(step, bytes):
                    await link.server.send(step)
                elif isinstance(step, str):
                    if step == "hang":
                        await anyio.sleep_forever()
                    if step == "rst":
                        link.cut("rst")
                    return
                else:
                    await anyio.sleep(step)


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A whole response; the names of `headers` have underscores for hyphens."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    """One chunk of a response."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def access(network: MemoryNetwork | None, url: str = "http://localhost/", **changes: Any) -> Access:
    """What the sources need, with the origin of `url` as the only one."""
    started = None

    def wall_time() -> float:
        nonlocal started
        now = anyio.current_time()
        started = now if started is None else started
        return WALL + now - started

    options: dict[str, Any] = {
        "origins": frozenset({parse_url(url, schemes=("http", "https", "ws", "wss"), allow_insecure=True).origin}),
        "limits": Limits(),
        "liveness": Liveness(),
        "connect_deadline": 10.0,
        "network": network or Network(),
        "wall_time": wall_time,
        "random": lambda: 0.0,
    }
    return Access(**(options | changes))


def shown(error: BaseException) -> Iterator[str]:
    """What a crash reporter shows of our frames and of the error, its causes and contexts too."""
    told: traceback.TracebackException | None
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    yield repr(error)
    while told is not None:
        yield "".join(told.format_exception_only())
        for frame in told.stack:
            if any(folder in Path(frame.filename).parents for folder in _OURS):
                yield f"{frame.name}: {frame.locals}"
        told = told.__cause__ or told.__context__
