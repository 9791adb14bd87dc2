"""What threads put, one task takes: real threads, a real loop, none of it lost or out of order, whatever ends first."""

import gc
import threading

import anyio
import anyio.lowlevel
import pytest

from towline.host._handover import Handover

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_thing_wakes_the_task_that_waits() -> None:
    handover: Handover[str] = Handover()
    waiting = threading.Event()

    def speak() -> None:
        waiting.wait()
        handover.put("now")

    thread = threading.Thread(target=speak)
    thread.start()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:

            async def let_speak() -> None:
                await anyio.wait_all_tasks_blocked()
                waiting.set()

            tasks.start_soon(let_speak)
            assert await handover.take() == "now"
    thread.join()
    handover.close()


async def test_many_threads_lose_nothing_and_each_keeps_its_order() -> None:
    handover: Handover[tuple[int, int]] = Handover()
    begin = threading.Barrier(8)

    def speak(number: int) -> None:
        begin.wait()
        for count in range(500):  # more bytes than the pair holds unheard
            assert handover.put((number, count))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    heard: dict[int, list[int]] = {number: [] for number in range(8)}
    with anyio.fail_after(20):
        for _ in range(8 * 500):
            number, count = await handover.take()
            heard[number].append(count)
    assert all(counts == list(range(500)) for counts in heard.values())
    for thread in threads:
        thread.join()
    handover.close()


async def test_what_nobody_hears_blocks_nobody() -> None:
    handover: Handover[int] = Handover()
    for number in range(5_000):  # more than a socket's buffer holds
        assert handover.put(number)
    assert [await handover.take() for _ in range(5_000)] == list(range(5_000))
    with anyio.move_on_after(0.01) as scope:
        await handover.take()
    assert scope.cancelled_caught
    handover.close()


async def test_of_levels_the_newest_is_enough() -> None:
    handover: Handover[int] = Handover(only_newest=True)
    for number in range(3):
        handover.put(number)
    assert await handover.take() == 2
    handover.put(3)
    assert await handover.take() == 3
    handover.put(4)
    assert handover.close() == [4]


async def test_a_cancelled_wait_loses_nothing() -> None:
    handover: Handover[int] = Handover()
    heard: list[int] = []
    thread = threading.Thread(target=lambda: [handover.put(number) for number in range(2000)])
    thread.start()
    with anyio.fail_after(20):
        while len(heard) < 2000:
            with anyio.move_on_after(0):
                while True:
                    heard.append(await handover.take())
                    await anyio.lowlevel.checkpoint()
    thread.join()
    assert heard == list(range(2000))
    handover.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_threads_go_on_as_the_loop_ends_and_after_it(backend: str) -> None:
    """No error in a thread, no byte to a file that is not ours."""
    errors: list[object] = []

    async def main(handover: Handover[int]) -> None:
        await handover.take()
        handover.close()

    def speak(handover: Handover[int]) -> None:
        try:
            while handover.put(1):
                pass
        except BaseException as error:
            errors.append(error)

    for _ in range(20):
        handover: Handover[int] = Handover(only_newest=True)
        thread = threading.Thread(target=speak, args=(handover,))
        thread.start()
        anyio.run(main, handover, backend=backend)
        thread.join(10)
        assert not thread.is_alive()
        assert handover.put(1) is False
    assert errors == []
    gc.collect()
