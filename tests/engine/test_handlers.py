"""A program's own functions: in order, isolated, bounded, and never a reason for the engine to stop."""

from __future__ import annotations

import functools

import anyio
import pytest

from towline import JobStarted, Output, Progress
from towline._tasks import Tasks
from towline.engine.delivery.handlers import WAITING_LIMIT, Handlers

pytestmark = pytest.mark.anyio


async def test_coroutine_functions_are_called_in_order_one_after_the_other() -> None:
    seen: list[str] = []

    async def tell(told: str) -> None:
        seen.append(f"{told} begins")
        await anyio.sleep(1)
        seen.append(f"{told} ends")

    class Callable:
        async def __call__(self, told: str) -> None:
            await tell(told)

    async with Tasks(finish=True) as tasks:
        handlers = Handlers(tasks, max_waiting=1 << 20)
        handlers.call(tell, "a")
        handlers.call(functools.partial(tell), "b")
        handlers.call(Callable(), "c")
        assert seen == []
    assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_one_that_raises_is_counted_and_the_next_is_called(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(told: object) -> None:
        raise ValueError("mine")

    seen: list[object] = []
    async with Tasks(finish=True) as tasks:
        handlers = Handlers(tasks, max_waiting=1 << 20)
        handlers.call(broken, 1)
        handlers.call(lambda told: 1 / 0, 2)
        handlers.call(seen.append, 3)
        handlers.call(None, 4)
    assert seen == [3]
    assert handlers.errors == 2
    assert "mine" in caplog.text


async def test_a_slow_one_gets_joined_updates_and_other_calls_are_dropped_when_too_many_wait() -> None:
    merged: list[int] = []
    text: list[str] = []
    others: list[int] = []

    async def slow(update: Progress | Output) -> None:
        await anyio.sleep(1)
        if isinstance(update, Output):
            text.append(update.value)
        else:
            merged.append(update.merged)

    async def slow_too(told: int) -> None:
        others.append(told)

    async with Tasks(finish=True) as tasks:
        handlers = Handlers(tasks, max_waiting=1 << 20)
        for number in range(1000):
            handlers.call(slow, Progress(job="j", fraction=0.1))
            handlers.call(slow, Output(job="j", key="log", value=f"{number} "))
        assert not handlers.is_full
        for number in range(300):
            handlers.call(slow_too, number)
        assert handlers.skipped == 300 - WAITING_LIMIT
    assert sum(merged) == 1000
    assert "".join(text) == "".join(f"{number} " for number in range(1000))
    assert len(text) < 500
    assert others == list(range(300 - WAITING_LIMIT, 300))


@pytest.mark.parametrize("what", ["updates", "bytes"])
async def test_one_that_cannot_keep_up_is_full_until_it_has_caught_up(what: str) -> None:
    room = 0

    async def slow(update: JobStarted | Output) -> None:
        await anyio.sleep(1)

    def made_room() -> None:
        nonlocal room
        room += not handlers.is_full

    async with Tasks(finish=True) as tasks:
        handlers = Handlers(tasks, made_room=made_room, max_waiting=1000)
        for _ in range(WAITING_LIMIT + 2 if what == "updates" else 11):
            handlers.call(slow, JobStarted(job="j") if what == "updates" else Output(job="j", key="k", value="x" * 100))
        assert handlers.is_full
        assert not room
    assert room
    assert (handlers.is_full, handlers.skipped) == (False, 0)


async def test_giving_up_ends_the_call_under_way_and_forgets_the_rest() -> None:
    seen: list[int] = []

    async def endless(told: int) -> None:
        seen.append(told)
        await anyio.sleep_forever()

    async with Tasks(finish=True) as tasks:
        handlers = Handlers(tasks, max_waiting=1 << 20)
        handlers.call(endless, 1)
        handlers.call(endless, 2)
        handlers.give_up_after(1)
        await anyio.sleep(2)
        handlers.call(endless, 3)
        await handlers.settle(1)
        handlers.call(endless, 4)
    assert seen == [1, 3]
    assert anyio.current_time() == pytest.approx(3)
