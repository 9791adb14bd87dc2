"""Clocks that jump and machines that sleep: no burst, no stall, one reconnect."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import pytest

import towline
import towline.host
from towline import JobComplete, State
from towline.testing import ScriptedServer, audit_updates, controlled, run_virtual, virtual_time_backends

TIMES = 50


@dataclass
class Machine:
    """The clocks of a machine that can sleep: the loop's stands still meanwhile, the wall's can be set."""

    wall_ahead: float = 1_700_000_000.0
    asleep: float = 0.0

    def wall(self) -> float:
        return anyio.current_time() + self.wall_ahead

    def sleep(self, seconds: float) -> None:
        self.asleep += seconds
        self.wall_ahead += seconds


async def night(seed: int) -> list[str]:
    """One job through clock jumps and one sleep; returns what did not hold."""
    draw = random.Random(seed)
    machine = Machine()
    found: list[str] = []
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=100)
        line = towline.Connection(
            "ws://hub/ws",
            job="j1",
            token="t1",
            network=server.network,
        )
        controlled(line, random=draw.random, wall_time=machine.wall)
        updates = []

        async def listen() -> None:
            async for update in line:
                updates.append(update)  # noqa: PERF401 - it is looked at when the time is over

        async with line, anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            tasks.start_soon(
                lambda: towline.host.watch_suspension(line.report_wake, suspended=lambda: machine.asleep),
            )
            await line.wait_for(State.CONNECTED)
            for _ in range(3):
                machine.wall_ahead += draw.choice([-1, 1]) * draw.choice([3600.0, 86_400.0, 3.2e8])
                await anyio.sleep(draw.uniform(1, 60))
                job.progress(0.5, processed=len(job.log))
            if len(server.sockets) != 1:
                found.append(f"{len(server.sockets) - 1} reconnects for a clock that was set")
            # The server has heard nothing for the whole sleep: it has given the socket up, or a router has.
            survives = draw.random() < 0.3
            if not survives:
                server.socket.hold()
            machine.sleep(draw.uniform(60, 80_000))
            job.progress(0.6, processed=len(job.log))
            woken, sockets = anyio.current_time(), len(server.sockets)
            await anyio.sleep(14)
            job.complete({"books": [], "errors": [], "successRate": "1/1"})
            with anyio.move_on_after(1) as waiting:
                outcome = await line.result()
                if not isinstance(outcome, JobComplete):
                    found.append(f"it ended with {outcome}")
            if waiting.cancelled_caught:
                found.append("it had not come back within 14 s of waking")
            dials = [at for at in server.times("upgrade") if at >= woken]
            if len(dials) != (0 if survives else 1):
                found.append(f"{len(dials)} dials after waking, socket {'alive' if survives else 'dead'}")
            if sockets + len(dials) != len(server.sockets):
                found.append("a dial that brought no socket")
            tasks.cancel_scope.cancel()
        found += audit_updates(updates, job.log)
    return [f"seed {seed}: {what}" for what in found]


@pytest.mark.timeout(300)
@pytest.mark.promises("L9", "wall clock jumps, then sleep and wake: no burst, no stall, one reconnect", "50: 0 wrong")
@pytest.mark.parametrize("backend", virtual_time_backends())
def test_nights(backend: str, reached: Callable[..., None]) -> None:
    found = [what for seed in range(TIMES) for what in run_virtual(night, seed, backend=backend)]
    reached(f"{TIMES} nights, each with 3 clock jumps: {len(found)} wrong")
    assert not found
