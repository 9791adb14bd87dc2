"""A session that is cut at byte n, in each direction: whatever n is, nothing is lost and nothing comes twice."""

from functools import cache

import anyio
import pytest

import towline
from towline.testing import Direction, Ending, MemoryLink, ScriptedServer, audit_updates, run_virtual
from towline.transport import Network

#: Every so many bytes. The soak cuts at random ones, on real sockets.
STRIDE = 41


class CutFirst(Network):
    """The server's network, but its first link ends after `count` bytes in one direction."""

    def __init__(self, server: ScriptedServer, count: int | None, direction: Direction, ending: Ending) -> None:
        super().__init__(allow_insecure=True)
        self._network, self._fault = server.network, (count, direction, ending)
        self.link: MemoryLink | None = None

    async def connect(self, endpoint: towline.transport.Endpoint) -> anyio.abc.ByteStream:
        stream = await self._network.connect(endpoint)
        link = self._network.dials[-1].link
        if self.link is None and link is not None:
            self.link = link
            count, direction, ending = self._fault
            if count is not None:
                link.end_after(count, direction, ending)
        return stream


def follow(count: int | None, direction: Direction = "down", ending: Ending = "rst") -> tuple[list[str], int]:
    """Findings, and the bytes that the first link carried in that direction."""

    async def main() -> tuple[list[str], int]:
        async with ScriptedServer() as server:
            job = server.job("j1", token="t1")
            network = CutFirst(server, count, direction, ending)
            job.start(total_count=3)
            updates = []
            async with towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=network) as line:

                async def tell() -> None:
                    for number in range(1, 4):
                        await anyio.sleep(3)
                        job.progress(number / 3, processed=number)
                    job.complete({"books": [], "errors": [], "successRate": "3/3"})

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(tell)
                    with anyio.move_on_after(3600) as waiting:
                        async for update in line:
                            updates.append(update)  # noqa: PERF401 - what came before a hang is wanted
            findings = audit_updates(updates, job.log) + (["hung"] if waiting.cancelled_caught else [])
            assert network.link is not None
            return findings, network.link.carried(direction)

    return run_virtual(main)


@cache
def length(direction: Direction) -> int:
    """How many bytes an undisturbed session takes."""
    findings, carried = follow(None, direction)
    assert not findings
    return carried


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_at_byte_n(direction: Direction, ending: Ending) -> None:
    assert length(direction) > 200
    wrong = {n: found for n in range(0, length(direction), STRIDE) if (found := follow(n, direction, ending)[0])}
    assert not wrong
