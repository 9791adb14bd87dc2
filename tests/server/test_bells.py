"""Bells: nothing that rings is missed, by a reader or by who waits only for the end."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from towline.server.log._bells import Bell, Bells

pytestmark = pytest.mark.anyio


async def test_a_ring_before_the_wait_counts_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.rung
    with anyio.fail_after(5):
        await bell.wait_ring()
    assert not bell.rung
    with anyio.move_on_after(0) as scope:
        await bell.wait_ring()
    assert scope.cancelled_caught


async def test_a_ring_wakes_the_task_that_waits() -> None:
    bell = Bell()
    woken = 0

    async def read() -> None:
        nonlocal woken
        while woken < 3:
            await bell.wait_ring()
            woken += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        for expected in (1, 2, 3):
            await anyio.wait_all_tasks_blocked()
            assert woken == expected - 1
            bell.ring()
    assert woken == 3


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_ring_beside_a_cancellation_is_kept(cancel_first: bool) -> None:
    """The wait may end by either; the ring is still there for the next one."""
    bell = Bell()
    scope = anyio.CancelScope()

    async def wait() -> None:
        with scope:
            await bell.wait_ring()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        for act in (scope.cancel, bell.ring) if cancel_first else (bell.ring, scope.cancel):
            act()
    if scope.cancelled_caught:
        assert bell.rung
    with anyio.move_on_after(0):
        await bell.wait_ring()
    assert not bell.rung
    bell.ring()
    with anyio.fail_after(5):
        await bell.wait_ring()


def test_a_bell_rings_where_trio_is_a_guest_of_asyncio() -> None:
    async def ring() -> str:
        bell = Bell()
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bell.wait_ring)
            await trio.testing.wait_all_tasks_blocked()
            bell.ring()
        return "woken"

    async def host() -> str:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            ring, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result
        )
        return str((await ended).unwrap())

    assert asyncio.run(host()) == "woken"


async def test_who_waits_for_the_end_is_woken_by_nothing_else() -> None:
    bells = Bells()
    with bells.subscribe("a") as reader, bells.subscribe("a", ends_only=True) as waiter, bells.subscribe("b") as other:
        assert bells.count("a") == 1
        bells.ring("a", ended=False)
        assert (reader.rung, waiter.rung, other.rung) == (True, False, False)
        bells.ring("a", ended=True)
        assert (waiter.rung, other.rung) == (True, False)


async def test_all_are_woken_where_events_may_have_been_missed() -> None:
    bells = Bells()
    with bells.subscribe("a") as reader, bells.subscribe("b", ends_only=True) as waiter:
        bells.ring_all()
        assert reader.rung
        assert waiter.rung


async def test_a_bell_that_is_given_back_is_forgotten() -> None:
    bells = Bells()
    with bells.subscribe("a") as first, bells.subscribe("a", ends_only=True):
        pass
    bells.ring("a", ended=True)
    assert not first.rung
    assert bells.count("a") == 0
