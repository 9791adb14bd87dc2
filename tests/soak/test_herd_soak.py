"""What a thousand clients do to a server that restarts, and to one that hangs up on them."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

import towline
from towline import State, StateChange
from towline.testing import Accept, ScriptedServer, run_virtual, virtual_time_backends
from towline.transport import Endpoint, Network

CLIENTS = 1000
#: The hub's accept rate is 20 a second, so it tells a thousand clients to spread over 50 s.
ACCEPTS = 20


@pytest.fixture
def in_haste() -> Iterator[None]:
    """A real crowd has a machine each. This one has a process, so a dial that is due would wait for other work: it logs
    no detail, and goes before what runs beside it where that is allowed."""
    log = logging.getLogger("towline")
    level, nice = log.level, os.getpriority(os.PRIO_PROCESS, 0)
    log.setLevel(logging.WARNING)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, nice - 15)
    yield
    log.setLevel(level)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("in_haste")
@pytest.mark.xdist_group("herd")
@pytest.mark.promises("L6", "1,000 clients after a restart, spread told by the hub", "no second over 3 x the mean")
def test_a_restart_brings_no_herd(
    ample_hub: Any, books: Callable[[int], bytes], count: Callable[[int], int], reached: Callable[..., None]
) -> None:
    """A real hub, real sockets, the policy that users have: what the hub sees of dials, second by second."""
    hub = ample_hub(row_delay=1.0)
    hub.client.start(books(10_000))
    url = hub.client.url.replace("http", "ws", 1) + "/ws/progress"
    job, token = hub.client.job, hub.client.token
    clients = count(CLIENTS)
    dials: list[float] = []
    #: The one look at the state that each takes on losing its link, for the job may have ended.
    looks: list[float] = []
    back = 0

    late = 0.0

    async def main() -> tuple[float, float]:
        nonlocal late
        joined, away = 0, False
        all_joined, all_back = anyio.Event(), anyio.Event()

        async def follow() -> None:
            nonlocal joined, back

            class Counting(Network):
                """The system's network, and when each socket was asked of it."""

                async def connect(self, endpoint: Endpoint) -> ByteStream:
                    if away and line.state is State.CONNECTING:
                        dials.append(anyio.current_time())
                    elif away and line.state is State.RECONNECTING:
                        looks.append(anyio.current_time())
                    return await Network().connect(endpoint)

            async with towline.Connection(url, job=job, token=token, network=Counting()) as line:
                await line.wait_for(State.CONNECTED)
                joined += 1
                if joined == clients:
                    all_joined.set()
                await line.wait_for(State.RECONNECTING)
                await line.wait_for(State.CONNECTED)
                back += 1
                if back == clients:
                    all_back.set()
                await all_back.wait()
                line.cancel()

        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(follow)
                await anyio.sleep(0.02)
            await all_joined.wait()
            away, begun = True, anyio.current_time()
            await anyio.to_thread.run_sync(hub.terminate)
            await anyio.to_thread.run_sync(hub.start)
            down = anyio.current_time() - begun
            with anyio.fail_after(600):
                while not all_back.is_set():
                    due = anyio.current_time() + 0.05
                    await anyio.sleep_until(due)
                    late = max(late, anyio.current_time() - due)
        return begun, down

    begun, down = anyio.run(main)
    spread = max(1.0, clients / ACCEPTS)
    mean = clients / spread
    seconds = Counter(math.floor(at - begun) for at in dials)
    busiest = max(seconds.values())
    looked = Counter(math.floor(at - begun) for at in looks)
    reached(
        f"{clients} clients over {spread:.0f} s, down for {down:.1f} s: {len(dials)} dials, mean {mean:.0f} a second, "
        f"busiest {busiest} ({busiest / mean:.1f} x), {back} back, their own loop late by {late:.1f} s at most; "
        f"beside it {len(looks)} looks at the state, {max(looked.values(), default=0)} in the busiest second"
    )
    assert back == clients
    assert busiest <= 3 * mean


@pytest.mark.timeout(1800)
@pytest.mark.promises("L6", "a server that accepts and closes, real engines, simulated", "<= 10 dials a minute at p99")
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_a_flapping_server_is_not_hammered(
    backend: str, count: Callable[[int], int], reached: Callable[..., None]
) -> None:
    clients = count(CLIENTS) // 2
    minutes: list[int] = []

    async def main() -> None:
        async with ScriptedServer() as server:
            server.always("upgrade", Accept(close_after=0.05, close_code=1012))
            server.job("j1", token="t1").start(total_count=1)

            async def follow() -> None:
                dials: list[float] = []

                def changed(change: StateChange) -> None:
                    if change.state is State.CONNECTING:
                        dials.append(change.at)

                line = towline.Connection(
                    "ws://hub/ws",
                    job="j1",
                    token="t1",
                    network=server.network,
                    on_state=changed,
                )
                async with line:
                    await anyio.sleep(300)
                    line.cancel()
                minutes.append(max(sum(at <= other < at + 60 for other in dials) for at in dials))

            async with anyio.create_task_group() as tasks:
                for _ in range(clients):
                    tasks.start_soon(follow)

    run_virtual(main, backend=backend)
    minutes.sort()
    p99 = minutes[math.ceil(len(minutes) * 0.99) - 1]
    reached(f"{clients} clients for 5 min: {p99} in the busiest minute at p99, {minutes[-1]} at most")
    assert p99 <= 10
