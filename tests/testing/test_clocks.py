"""Virtual time costs no real time and keeps the order of timers, on both backends."""

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest

from towline import testing
from towline._exceptions import InvalidArgument
from towline.testing import VirtualTimeLoop, run_virtual, virtual_time, virtual_time_backends


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


pytestmark = pytest.mark.anyio


async def test_an_hour_takes_no_time() -> None:
    real, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(3600)
    assert anyio.current_time() - virtual == pytest.approx(3600)
    assert time.monotonic() - real < 5


async def test_a_year_of_heartbeats_keeps_the_beat() -> None:
    for beat in range(1, 366):
        await anyio.sleep(86_400)
        assert anyio.current_time() == pytest.approx(beat * 86_400, rel=1e-9)


async def test_the_clock_stands_still_while_there_is_work() -> None:
    before = anyio.current_time()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == before


async def test_deadlines_fire_at_their_time() -> None:
    start = anyio.current_time()
    with anyio.move_on_after(15) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - start == pytest.approx(15)
    with pytest.raises(TimeoutError):
        with anyio.fail_after(10):
            await anyio.sleep(10.5)
    assert anyio.current_time() - start == pytest.approx(25)
    with anyio.fail_after(10):
        await anyio.sleep(9.5)


async def test_timers_fire_in_their_order() -> None:
    fired: list[tuple[str, float]] = []

    async def ring(name: str, after: float) -> None:
        await anyio.sleep(after)
        fired.append((name, round(anyio.current_time(), 6)))

    async with anyio.create_task_group() as group:
        for name, after in [("c", 30), ("a", 0.25), ("d", 86_400), ("b", 1)]:
            group.start_soon(ring, name, after)
    assert fired == [("a", 0.25), ("b", 1), ("c", 30), ("d", 86_400)]


async def test_waiting_for_another_task_is_no_timer() -> None:
    heard = anyio.Event()

    async def speak() -> None:
        await anyio.sleep(120)
        heard.set()

    async with anyio.create_task_group() as group:
        group.start_soon(speak)
        with anyio.fail_after(121):
            await heard.wait()
    assert anyio.current_time() == pytest.approx(120)


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_each_run_begins_at_zero(backend: str) -> None:
    async def main(seconds: float) -> float:
        await anyio.sleep(seconds)
        return anyio.current_time()

    assert run_virtual(main, 60, backend=backend) == pytest.approx(60)
    assert run_virtual(main, 60, backend=backend) == pytest.approx(60)


def test_real_events_are_not_starved() -> None:
    """A socket that is ready is served before the clock jumps."""
    import socket

    loop = VirtualTimeLoop()
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)

        async def main() -> float:
            await loop.sock_sendall(left, b"x")
            assert await asyncio.wait_for(loop.sock_recv(right, 1), 1000) == b"x"
            return loop.time()

        try:
            assert loop.run_until_complete(main()) == 0
        finally:
            loop.close()


def test_a_run_that_ends_waits_in_real_time_for_a_thread_of_the_executor() -> None:
    """asyncio gives the thread 300 s, by the loop's clock (from Python 3.12.2). The clock must not jump over them."""

    async def main() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, time.sleep, 0.05)
        return loop

    assert run_virtual(main).time() < 1


def test_timers_are_real_while_the_threads_of_the_executor_are_joined() -> None:
    loop = VirtualTimeLoop()
    release = threading.Event()
    try:
        loop.run_in_executor(None, release.wait)
        real = time.monotonic()
        loop.call_later(0.02, release.set)
        loop.run_until_complete(loop.shutdown_default_executor())
        assert time.monotonic() - real >= 0.02
        loop.run_until_complete(asyncio.sleep(3600))
        assert time.monotonic() - real < 5
    finally:
        release.set()
        loop.close()


def test_another_backend_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="curio"):
        virtual_time("curio")


def test_all_names_are_exported() -> None:
    assert all(hasattr(testing, name) for name in testing.__all__)
