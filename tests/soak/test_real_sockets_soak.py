"""The long figures on real sockets: a real hub in a process of its own, and faults by the proxy."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import towline
from towline.server import read_events
from towline.statemachine import Backoff, Policy
from towline.testing import Detour, FaultProxy, LoggedEvent, RandomSteps, StormScript, audit_updates, rehearse

pytestmark = [pytest.mark.timeout(3000), pytest.mark.parametrize("backend", ["asyncio", "trio"])]

#: The engine's own pace would make a thousand faults take hours; what is to be shown does not depend on it.
HASTY = Policy(
    dial_spacing=0.01,
    dials_per_window=100_000,
    backoff=Backoff(base=0.01, cap=0.02, floor=0.001, shared_window=0.02, attempts=10_000),
    fetch_waits=(0.01, 0.02, 0.04),
    ping_after=0.7,
    lost_after=1.5,
    connect_deadline=1.5,
    fetch_deadline=1.5,
    status_deadline=1.5,
)
AT_ONCE = 8

Count = Callable[[int], int]
Tell = Callable[..., None]


def websocket(hub: Any) -> str:
    return hub.client.url.replace("http", "ws", 1) + "/ws/progress"


def proxied(hub: Any) -> FaultProxy:
    return FaultProxy("127.0.0.1", int(hub.client.url.rpartition(":")[2]))


def follow(hub: Any, proxy: FaultProxy, job: str, token: str) -> towline.Connection:
    return towline.Connection(websocket(hub), job=job, token=token, network=Detour(proxy), policy=HASTY)


def seeds(more: Callable[[], bool]) -> Iterator[int]:
    """Numbers, as long as more are wanted."""
    return itertools.takewhile(lambda _: more(), itertools.count())


async def all_of(numbers: Iterator[Any], do: Callable[[Any], Awaitable[None]], at_once: int = AT_ONCE) -> None:
    """Do something with each, some at once."""

    async def work() -> None:
        for number in numbers:
            await do(number)

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(work)


def left_open() -> tuple[int, int]:
    """Open files (sockets are files), and tasks."""
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir()))
    try:
        return files, len(asyncio.all_tasks())
    except RuntimeError:
        return files, trio.lowlevel.current_statistics().tasks_living


def memory() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def started(hub: Any, csv: bytes) -> tuple[str, str]:
    """A new job of the hub, and its token."""
    assert hub.client.start(csv).status_code == 202
    return hub.client.job, hub.client.token


@pytest.mark.promises("L1", "one end, on real sockets, through every fault of the proxy", "1,000 faults: 0 wrong")
@pytest.mark.promises("L2", "nothing after the end, same runs", "0")
def test_a_thousand_faults(backend: str, ample_hub: Any, books: Any, count: Count, reached: Tell) -> None:
    hub = ample_hub(row_delay=0.05)
    wrong: list[str] = []
    faults: Counter[str] = Counter()

    async def one(seed: int) -> None:
        job, token = started(hub, books(60))
        script = StormScript(seed=seed, random=RandomSteps(steps=1000, between=(0.0, 0.2)))
        with anyio.fail_after(120):
            run = await rehearse(websocket(hub), script, job=job, token=token, policy=HASTY)
        faults.update(entry.what.split()[0] for entry in run.entries if entry.state is None and entry.what != "heal")
        wrong.extend(f"seed {seed}: {what}" for what in run.findings)

    # A fault lasts for up to 4 s, so many stories are told at once.
    anyio.run(all_of, seeds(lambda: faults.total() < count(1000)), one, 3 * AT_ONCE, backend=backend)
    reached(f"{faults.total():,} faults of {len(faults)} kinds: {len(wrong)} wrong")
    assert not wrong


@pytest.mark.promises("L4", "after a cut at a random byte: no gap, no repeat against the log", "1,000 cuts: 0 wrong")
def test_cuts_at_random_bytes(backend: str, ample_hub: Any, books: Any, count: Count, reached: Tell) -> None:
    hub = ample_hub()
    job, token = started(hub, books(60))
    log = wait_ended(hub, job)
    chance, cuts, followers = random.Random(1), 0, 0
    wrong: list[str] = []

    async def one(seed: int) -> None:
        nonlocal cuts, followers
        async with proxied(hub) as proxy:
            for _ in range(2):
                # The way up is some 600 bytes long, the way down some 12,000.
                if chance.random() < 0.25:
                    proxy.cut_after(chance.randint(0, 600), "up", chance.choice(("fin", "rst")))
                else:
                    proxy.cut_after(chance.randint(0, 12_000), "down", chance.choice(("fin", "rst")))
            with anyio.fail_after(60):
                async with follow(hub, proxy, job, token) as line:
                    updates = [update async for update in line]
            cuts += proxy.statistics().cuts
        followers += 1
        wrong.extend(f"follower {seed}: {what}" for what in audit_updates(updates, log))

    anyio.run(all_of, seeds(lambda: cuts < count(1000)), one, backend=backend)
    reached(f"{cuts:,} cuts of {followers:,} followers: {len(wrong)} wrong")
    assert not wrong


def wait_ended(hub: Any, job: str) -> list[LoggedEvent]:
    """The whole log of a job, as the hub has it on disk."""
    while True:
        log = read_events(hub.database, job)
        if log and log[-1].type in ("job_complete", "error", "job_canceled"):
            return [LoggedEvent(event.epoch, event.seq, 0.0, event.type, "") for event in log]
        time.sleep(0.02)


@pytest.mark.promises("L7", "cancel at a random moment, real sockets: at most 1 s, nothing left", "2,000: 0 left")
def test_cancelling_leaves_nothing(backend: str, ample_hub: Any, books: Any, count: Count, reached: Tell) -> None:
    hub = ample_hub(row_delay=0.05)
    job, token = started(hub, books(20_000))
    chance, slowest, left = random.Random(2), 0.0, (0, 0)
    states: Counter[str] = Counter()

    async def one(_: int) -> None:
        nonlocal slowest
        async with proxied(hub) as proxy:
            async with follow(hub, proxy, job, token) as line:
                await anyio.sleep(chance.choice([0.0, chance.uniform(0, 0.02), chance.uniform(0, 0.3)]))
                fault = chance.random()
                if fault < 0.3:
                    proxy.black_hole()
                elif fault < 0.5:
                    await proxy.refuse()
                    await proxy.cut("rst")
                    await anyio.sleep(chance.uniform(0, 0.03))
                elif fault < 0.6:
                    line.background(grace=0.0)
                    await anyio.sleep(chance.uniform(0, 0.03))
                states[line.state.value] += 1
                line.cancel()
                begun = anyio.current_time()
            slowest = max(slowest, anyio.current_time() - begun)

    async def main() -> None:
        nonlocal left
        await one(0)
        before = left_open()
        await all_of(iter(range(count(2000))), one)
        after = left_open()
        left = after[0] - before[0], after[1] - before[1]

    anyio.run(main, backend=backend)
    reached(
        f"{states.total():,} cancels in {', '.join(sorted(states))}; the slowest took {slowest:.2f} s; "
        f"{left[0]} files and sockets, {left[1]} tasks left"
    )
    assert slowest <= 1.0
    assert left == (0, 0)


@pytest.mark.promises("L8", "`cancel_job()` racing completion: both sides told the same", "2,000 in all: 0 wrong")
def test_cancel_racing_completion(backend: str, ample_hub: Any, books: Any, count: Count, reached: Tell) -> None:
    hub = ample_hub(row_delay=0.004)
    chance, answers = random.Random(3), Counter[str]()
    wrong: list[str] = []
    kinds = {"JobComplete": "job_complete", "JobCancelled": "job_canceled"}

    async def one(number: int) -> None:
        async with proxied(hub) as proxy:
            job, token = started(hub, books(8))
            async with follow(hub, proxy, job, token) as line:
                # Eight rows take some 40 ms.
                await anyio.sleep(chance.uniform(0, 0.08))
                answer = await line.cancel_job()
                with anyio.fail_after(30):
                    outcome = await line.result()
        answers[answer] += 1
        logged = [event.type for event in read_events(hub.database, job) if event.type in kinds.values()]
        told = kinds.get(type(outcome).__name__)
        if logged != [told] or (answer == "accepted") != (told == "job_canceled"):
            wrong.append(f"race {number}: answered {answer}, told {told}, logged {logged}")

    anyio.run(all_of, iter(range(count(1000))), one, backend=backend)
    reached(f"{answers.total():,} races ({dict(sorted(answers.items()))}): {len(wrong)} wrong")
    assert not wrong
    assert len(answers) == 2, "each side wins some"


@pytest.mark.promises("L10", "connect-fault cycles (10,000 in all)", "files equal, tasks 0, growth < 5 MiB")
def test_nothing_leaks(backend: str, ample_hub: Any, books: Any, count: Count, reached: Tell) -> None:
    hub = ample_hub()
    job, token = started(hub, books(10))
    wait_ended(hub, job)
    cycles = 0

    async def one(_: int) -> None:
        nonlocal cycles
        async with proxied(hub) as proxy:
            # Within the handshake, within the replay, at the end: each link is lost before it has told all.
            proxy.cut_after(300, "down", times=8)
            async with follow(hub, proxy, job, token) as line:
                await line.result()
            cycles += proxy.statistics().cuts

    async def run(until: int) -> tuple[tuple[int, int], int]:
        await all_of(seeds(lambda: cycles < until), one, at_once=4)
        return left_open(), memory()

    async def main() -> tuple[int, int, int]:
        before, memory_before = await run(count(5000) // 5)  # what is made once has been made
        after, memory_after = await run(count(5000) + count(5000) // 5)
        return after[0] - before[0], after[1] - before[1], memory_after - memory_before

    files, tasks, growth = anyio.run(main, backend=backend)
    reached(f"{cycles:,} cycles: {files:+d} files, {tasks:+d} tasks, {growth / 2**20:+.1f} MiB")
    assert (files, tasks) == (0, 0)
    assert growth < 5 * 2**20
