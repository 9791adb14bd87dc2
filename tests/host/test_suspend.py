"""A sleep that nobody announced is noticed on waking, and costs nothing while the connection is at rest."""

import anyio
import pytest

from towline.host import suspended_seconds, watch_suspension
from towline.testing import run_virtual, virtual_time_backends


class SleepyMachine:
    """Its suspended clock is set by the test."""

    def __init__(self) -> None:
        self.suspended = 1000.0
        self.looks = 0
        self.wakes: list[float] = []
        self.awake = anyio.Event()
        self.awake.set()

    def read(self) -> float:
        self.looks += 1
        return self.suspended

    def woke(self) -> None:
        self.wakes.append(anyio.current_time())

    async def wait_awake(self) -> None:
        await self.awake.wait()

    async def watch(self) -> None:
        await watch_suspension(self.woke, wait_awake=self.wait_awake, suspended=self.read)


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_a_sleep_is_told_once_within_two_seconds(backend: str) -> None:
    async def main() -> None:
        machine = SleepyMachine()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.watch)
            await anyio.sleep(101)
            assert machine.wakes == []
            machine.suspended += 3600
            await anyio.sleep(100)
            assert len(machine.wakes) == 1
            assert 101 < machine.wakes[0] <= 103
            machine.suspended += 4.9  # too short to matter
            await anyio.sleep(100)
            assert len(machine.wakes) == 1
            tasks.cancel_scope.cancel()

    run_virtual(main, backend=backend)


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_at_rest_nothing_wakes(backend: str) -> None:
    async def main() -> None:
        machine = SleepyMachine()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.watch)
            await anyio.sleep(9)
            machine.awake = anyio.Event()
            await anyio.sleep(3)
            looks = machine.looks
            await anyio.sleep(86_400)
            assert machine.looks == looks
            machine.awake.set()
            await anyio.sleep(3)
            assert machine.looks > looks
            tasks.cancel_scope.cancel()

    run_virtual(main, backend=backend)


def test_the_real_clock_stands_still_while_we_are_awake() -> None:
    assert suspended_seconds() == pytest.approx(suspended_seconds(), abs=0.5)
