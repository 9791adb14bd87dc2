"""A dead link is noticed within the liveness limit, by the policy that users have; a bad one is not taken for dead."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from namespaces import BadWire, Uplinks, skip_unless_possible

import towline
from towline.statemachine import Policy
from towline.testing import Detour, FaultProxy

pytestmark = pytest.mark.timeout(1500)
LIMIT = Policy().lost_after
LINKS = 200


@pytest.mark.promises("L5", "dead links noticed within 25 s + 10 %", "200 of 200")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("death", ["black hole", "stopped server"])
def test_a_dead_link_is_noticed_in_time(
    backend: str,
    death: str,
    ample_hub: Any,
    books: Callable[[int], bytes],
    count: Callable[[int], int],
    reached: Callable[..., None],
) -> None:
    """All at once on one loop, each link behind a proxy of its own: so 200 take no longer than one."""
    hub = ample_hub(row_delay=0.5)
    hub.client.start(books(2000))
    job, token, port = hub.client.job, hub.client.token, int(hub.client.url.rpartition(":")[2])
    links, took = count(LINKS), list[float]()

    async def main() -> None:
        joined = 0
        all_joined, dead = anyio.Event(), anyio.Event()

        async def follow(proxy: FaultProxy) -> None:
            nonlocal joined
            url = f"ws://127.0.0.1:{port}/ws/progress"
            async with towline.Connection(url, job=job, token=token, network=Detour(proxy)) as line:
                await line.wait_for(towline.State.CONNECTED, timeout=60)
                joined += 1
                if joined == links:
                    all_joined.set()
                await dead.wait()
                begun = anyio.current_time()
                await line.wait_for(towline.State.RECONNECTING, timeout=3 * LIMIT)
                took.append(anyio.current_time() - begun)
                line.cancel()

        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(FaultProxy("127.0.0.1", port)) for _ in range(links)]
            async with anyio.create_task_group() as tasks:
                for proxy in proxies:
                    tasks.start_soon(follow, proxy)
                    await anyio.sleep(0.02)
                await all_joined.wait()
                if death == "stopped server":
                    os.kill(hub.process_id, signal.SIGSTOP)
                else:
                    for proxy in proxies:
                        proxy.black_hole()
                dead.set()

    anyio.run(main, backend=backend)
    late = [seconds for seconds in took if seconds > LIMIT * 1.1]
    reached(
        f"{len(took)} of {links}, after {statistics.median(took):.1f} s, at the latest {max(took):.1f} s: "
        f"{len(late)} late"
    )
    assert len(took) == links
    assert not late


@pytest.mark.promises("L5", "source address gone, no path events (namespaces)", "200 of 200")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_link_without_its_address_is_noticed_in_time(
    backend: str,
    books: Callable[[int], bytes],
    count: Callable[[int], int],
    reached: Callable[..., None],
) -> None:
    skip_unless_possible()
    links = min(50, count(LINKS))  # what one hub lets watch one job is 64
    with Uplinks(row_delay=0.5) as machines:
        followers = [
            machines.follow(machines.start_job(books(400)), backend=backend, path=False, links=links)
            for _ in range(count(LINKS) // links)
        ]
        for follower in followers:
            for _ in range(links):
                follower.wait_for(120, state="connected")
        machines.lose_address("wifi")
        begun = time.monotonic()
        took = [follower.wait_for(60, state="reconnecting") - begun for follower in followers for _ in range(links)]
    late = [seconds for seconds in took if seconds > LIMIT * 1.1]
    reached(
        f"{len(took)} of {count(LINKS)}, after {statistics.median(took):.1f} s, at the latest {max(took):.1f} s: "
        f"{len(late)} late"
    )
    assert not late


@pytest.mark.xdist_group("wire")
@pytest.mark.promises("L5", "no false alarm: 20 % of packets lost each way, 200 ms there and back", "10 min: 0")
def test_a_bad_link_is_not_taken_for_dead(
    books: Callable[[int], bytes], count: Callable[[int], int], reached: Any
) -> None:
    """One follower on each backend, of a job that speaks every second. (The kernel here may have no netem.)"""
    skip_unless_possible(tun=True)
    seconds = count(600)
    with BadWire(latency=0.1, loss=0.2, seed=1) as wire:
        job = wire.start_job(books(2 * seconds + 100))
        followers = [wire.follow(job, backend=backend, seconds=seconds + 60) for backend in ("asyncio", "trio")]
        for follower in followers:
            follower.wait_for(60, state="connected")
        time.sleep(seconds)
        for follower in followers:
            follower.hear()
        packets, lost = wire.carried + wire.lost, wire.lost
    losses = [loss for follower in followers for loss in follower.losses]
    alarms = [loss for loss in losses if loss["code"] == "timeout"]  # the others are the server's own impatience
    reached(
        f"{seconds} s, {packets:,} packets, {lost / packets:.0%} of them lost, "
        f"{sum(len(follower.updates) for follower in followers):,} updates: {len(alarms)} false alarms "
        f"({len(losses) - len(alarms)} links ended by the server's keepalive)"
    )
    assert not alarms
