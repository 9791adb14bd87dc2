"""Dials in memory: their fates, their record, and thousands of them at once."""

import time
from typing import Any

import anyio
import pytest

from towline._exceptions import ConnectFailed, NameNotResolved
from towline.testing import MemoryLink, MemoryNetwork, NoAnswer, Reach, Unreachable
from towline.transport import Endpoint

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


async def echo(link: MemoryLink) -> None:
    while True:
        await link.server.send(await link.server.receive())


async def test_a_dial_reaches_the_server() -> None:
    async with MemoryNetwork(echo) as network:
        stream = await network.connect(Endpoint("hub", 80))
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        await stream.aclose()
        await anyio.wait_all_tasks_blocked()
        assert not network.links


async def test_the_script_comes_first_then_the_weather() -> None:
    async with MemoryNetwork(echo) as network:
        network.script(Unreachable(), Unreachable(resolved=False), Reach(after=2, latency=1))
        with pytest.raises(ConnectFailed, match="hub port 80"):
            await network.connect(Endpoint("hub", 80))
        with pytest.raises(NameNotResolved):
            await network.connect(Endpoint("hub", 80))
        stream = await network.connect(Endpoint("hub", 80))
        assert anyio.current_time() == pytest.approx(2)
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        assert anyio.current_time() == pytest.approx(4)
        network.weather = NoAnswer()
        with anyio.move_on_after(60) as scope:
            await network.connect(Endpoint("other", 80))
        assert scope.cancelled_caught
        assert [(dial.at, dial.host) for dial in network.dials] == [
            (0, "hub"),
            (0, "hub"),
            (0, "hub"),
            (pytest.approx(4), "other"),
        ]


async def test_waiting_for_dials() -> None:
    async with MemoryNetwork(echo) as network, anyio.create_task_group() as group:

        async def dial_later() -> None:
            for _ in range(3):
                await anyio.sleep(10)
                await network.connect(Endpoint("hub", 80))

        group.start_soon(dial_later)
        await network.wait_dials(3)
        assert anyio.current_time() == pytest.approx(30)


async def test_nothing_is_dialled_outside_the_block() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        await MemoryNetwork(echo).connect(Endpoint("hub", 80))


async def test_a_failing_server_is_not_hidden() -> None:
    async def fail(link: MemoryLink) -> None:
        raise ValueError("a bug of the script")

    with pytest.RaisesGroup(ValueError):
        async with MemoryNetwork(fail) as network:
            await network.connect(Endpoint("hub", 80))
            await anyio.sleep(1)


async def test_a_thousand_connections_and_a_day() -> None:
    heard = 0

    async def client(number: int) -> None:
        nonlocal heard
        await anyio.sleep(number % 60)
        stream = await network.connect(Endpoint("hub", 80))
        for _ in range(3):
            await stream.send(b"tick")
            assert await stream.receive() == b"tick"
            heard += 1
            await anyio.sleep(8 * 3600)
        await stream.aclose()

    real = time.monotonic()
    async with MemoryNetwork(echo) as network:
        async with anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(client, number)
    assert heard == 3000
    assert anyio.current_time() >= 86_400
    assert time.monotonic() - real < 30
