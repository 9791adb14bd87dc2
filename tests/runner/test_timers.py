"""The timers alone: deadlines on the loop's clock, tickets, and no task while they wait."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from towline._loop import Loop
from towline._tasks import Tasks
from towline.runner._timers import Timers

pytestmark = pytest.mark.anyio


class Clocked:
    """Timers whose expiries are kept with their time; `then` is what an expiry does."""

    def __init__(self, tasks: Tasks) -> None:
        self.expiries: list[tuple[float, str, int]] = []
        self.then: dict[str, Callable[[], object]] = {}
        self.timers = Timers(tasks, self._expired)
        self._tasks = tasks

    def _expired(self, timer: str, ticket: int) -> None:
        self.expiries.append((round(anyio.current_time(), 6), timer, ticket))
        self.then.get(timer, lambda: None)()

    @property
    def tasks(self) -> int:
        return len(self._tasks._running)


@asynccontextmanager
async def clocked() -> AsyncIterator[Clocked]:
    async with Tasks() as tasks:
        yield Clocked(tasks)


async def test_each_deadline_expires_once_in_order_with_its_ticket() -> None:
    async with clocked() as at:
        at.timers.arm("late", 1, 20)
        at.timers.arm("early", 2, 10)
        at.timers.arm("now", 3, 0)
        at.timers.arm("overdue", 4, -5)
        await anyio.sleep(100)
        assert at.expiries == [(0, "overdue", 4), (0, "now", 3), (10, "early", 2), (20, "late", 1)]


async def test_two_at_the_same_time_both_expire() -> None:
    async with clocked() as at:
        at.timers.arm("a", 1, 10)
        at.timers.arm("b", 2, 10)
        await anyio.sleep(11)
        assert at.expiries == [(10, "a", 1), (10, "b", 2)]


@pytest.mark.parametrize("seconds", [1, 30])
async def test_a_timer_that_is_armed_again_forgets_its_first_deadline(seconds: float) -> None:
    async with clocked() as at:
        at.timers.arm("a", 1, 10)
        await anyio.sleep(5)
        at.timers.arm("a", 2, seconds)
        await anyio.sleep(100)
        assert at.expiries == [(5 + seconds, "a", 2)]


async def test_a_disarmed_timer_never_expires_and_leaves_the_others() -> None:
    async with clocked() as at:
        at.timers.arm("a", 1, 10)
        at.timers.arm("b", 2, 20)
        await anyio.sleep(5)
        at.timers.disarm("a")
        at.timers.disarm("unknown")
        await anyio.sleep(100)
        assert at.expiries == [(20, "b", 2)]


async def test_one_armed_and_disarmed_before_the_loop_runs_never_expires() -> None:
    async with clocked() as at:
        at.timers.arm("a", 1, 10)
        at.timers.disarm("a")
        await anyio.sleep(100)
        assert at.expiries == []
        assert at.tasks == 0


async def test_an_expiry_may_arm_its_timer_again() -> None:
    async with clocked() as at:
        at.then["a"] = lambda: at.timers.arm("a", len(at.expiries) + 1, 10)
        at.timers.arm("a", 1, 10)
        await anyio.sleep(35)
        assert at.expiries == [(10, "a", 1), (20, "a", 2), (30, "a", 3)]


async def test_an_expiry_may_disarm_and_re_arm_another_of_the_same_time() -> None:
    async with clocked() as at:
        at.then["a"] = lambda: (at.timers.disarm("b"), at.timers.arm("c", 9, 5))
        for ticket, timer in enumerate("abc"):
            at.timers.arm(timer, ticket, 10)
        await anyio.sleep(100)
        assert at.expiries == [(10, "a", 0), (15, "c", 9)]


async def test_there_is_no_task_while_a_timer_waits() -> None:
    async with clocked() as at:
        at.then["a"] = lambda: running.append(at.tasks)
        running: list[int] = []
        at.timers.arm("a", 1, 10)
        at.timers.arm("b", 2, 20)
        await anyio.sleep(5)
        assert at.tasks == 0
        await anyio.sleep(6)
        assert (running, at.tasks) == ([1], 0)


async def test_a_timer_armed_for_later_than_a_disarmed_one_expires_in_time() -> None:
    async with clocked() as at:
        at.timers.arm("a", 1, 10)
        at.timers.arm("b", 2, 15)
        await anyio.sleep(5)
        at.timers.disarm("a")
        at.timers.arm("a", 3, 20)
        await anyio.sleep(100)
        assert at.expiries == [(15, "b", 2), (25, "a", 3)]


async def test_leaving_the_block_stops_every_timer_and_keeps_none() -> None:
    async with Tasks() as tasks:
        at = Clocked(tasks)
        at.timers.arm("a", 1, 10)
        at.timers.arm("b", 2, 20)
        await anyio.sleep(15)
    left, expiries = weakref.ref(at), at.expiries
    del at, tasks
    await anyio.lowlevel.checkpoint()
    gc.collect()
    assert left() is None
    await anyio.sleep(100)
    assert expiries == [(10, "a", 1)]


async def test_an_expiry_that_raises_does_not_stop_the_timers_armed_later() -> None:
    failures: list[str] = []
    async with Tasks() as tasks:
        tasks.unforeseen = lambda failure: failures.append(str(failure))
        at = Clocked(tasks)
        at.then["a"] = lambda: 1 / 0
        at.timers.arm("a", 1, 10)
        await anyio.sleep(11)
        at.timers.arm("b", 2, 10)
        await anyio.sleep(11)
        assert at.expiries == [(10, "a", 1), (21, "b", 2)]
    assert failures == ["towline timers raised ZeroDivisionError"]


async def test_a_call_that_is_prevented_at_its_moment_is_not_made_afterwards() -> None:
    for _ in range(50):  # the loop may choose which of the two comes first
        calls: list[float] = []
        moment = anyio.current_time() + 10
        prevent = Loop().at(moment, lambda calls=calls: calls.append(anyio.current_time()))
        await anyio.sleep_until(moment)
        before = calls[:]
        prevent()
        await anyio.sleep(1)
        assert calls == before


async def test_an_alarm_that_rings_a_step_of_the_clock_early_expires_its_timer() -> None:
    class Early(Loop):
        rung = 0

        def at(self, moment: float, call: Callable[[], object]) -> Callable[[], object]:
            self.rung += 1
            assert self.rung == 1
            return super().at(moment - 1e-9, call)

    async with Tasks() as tasks:
        tasks.loop = Early()
        at = Clocked(tasks)
        at.timers.arm("a", 1, 10)
        await anyio.sleep(100)
        assert at.expiries == [(10, "a", 1)]
