"""The long figures on real sockets: a real hub in a process of its own, faults by the proxy, each figure printed.

`TOWLINE_SOAK_DIVISOR=50` makes a quick try of it.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import towline
from towline.statemachine import Backoff, Policy
from towline.testing import Detour, Ending, FaultProxy, audit_updates
from towline.transport import JobCalls, Upload

pytestmark = [pytest.mark.timeout(3000), pytest.mark.parametrize("backend", ["asyncio", "trio"])]

DIVISOR = int(os.environ.get("TOWLINE_SOAK_DIVISOR", "1"))
#: The engine's own pace would make a thousand faults take hours; what is to be shown does not depend on it.
HASTY = Policy(
    dial_spacing=0.01,
    dials_per_window=100_000,
    backoff=Backoff(base=0.01, cap=0.02, floor=0.001, shared_window=0.02),
    fetch_waits=(0.01, 0.02, 0.04),
)
WATCHERS = 8


def count(full: int) -> int:
    return max(4, full // DIVISOR)


@dataclass(frozen=True)
class Hub:
    port: int
    job: str
    token: str

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/progress"

    def follow(self, proxy: FaultProxy, policy: Policy = HASTY) -> towline.Connection:
        return towline.Connection(self.url, job=self.job, token=self.token, network=Detour(proxy), policy=policy)


def run_hub(folder: Path, rows: int, row_delay: float) -> Iterator[Hub]:
    command = [sys.executable, "-P", "-m", "towline", "serve", "--port", "0"]
    command += ["--database", str(folder / "hub.db"), "--row-delay", str(row_delay)]
    csv = ("title,author,isbn\n" + "Emma,Jane Austen,9780141439587\n" * rows).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield csv

    async def start(port: int) -> tuple[str, str]:
        calls = JobCalls(f"ws://127.0.0.1:{port}")
        job = await calls.start_job("/api/imports/csv", Upload(pieces(), len(csv)))
        return job.job, job.token.reveal()

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        yield Hub(port, *anyio.run(start, port))
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub whose job ends at once: each follower gets the whole log by replay."""
    yield from run_hub(tmp_path_factory.mktemp("ended"), 60, 0)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Hub]:
    """A hub whose job goes on."""
    yield from run_hub(tmp_path, 4000, 0.05)


Tell = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], backend: str) -> Tell:
    def say(figure: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{backend}: {figure}\n")

    return say


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


def memory() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_cuts_at_random_bytes(backend: str, ended: Hub, tell: Tell) -> None:
    chance, runs = random.Random(1), count(1000)
    wrong: list[str] = []

    async def one(seed: int) -> None:
        cuts = [(chance.randint(0, 12_000), chance.choice(("up", "down", "down", "down"))) for _ in range(2)]
        async with FaultProxy("127.0.0.1", ended.port, seed=seed) as proxy:
            for at, direction in cuts:
                ending: Ending = "fin" if chance.random() < 0.5 else "rst"
                proxy.cut_after(
                    at if direction == "down" else at // 20, "down" if direction == "down" else "up", ending
                )
            async with ended.follow(proxy) as line:
                updates = [update async for update in line]
        found = audit_updates(updates)
        wrong.extend(f"{cuts}: {what}" for what in found)

    async def watcher(numbers: Iterator[int]) -> None:
        for number in numbers:
            with anyio.fail_after(60):
                await one(number)

    async def main() -> None:
        numbers = iter(range(runs))
        async with anyio.create_task_group() as tasks:
            for _ in range(WATCHERS):
                tasks.start_soon(watcher, numbers)

    anyio.run(main, backend=backend)
    tell(f"L1, L4: {runs} followers, each with two cuts at random bytes: {len(wrong)} wrong")
    assert not wrong


def test_a_dead_link_is_noticed_in_time(backend: str, running: Hub, tell: Tell) -> None:
    policy = Policy(ping_after=1.0, lost_after=2.0)
    rounds, took = count(200), list[float]()

    async def one() -> None:
        async with FaultProxy("127.0.0.1", running.port) as proxy, running.follow(proxy, policy) as line:
            await line.wait_for(towline.State.CONNECTED, timeout=20)
            proxy.black_hole()
            begun = anyio.current_time()
            await line.wait_for(towline.State.RECONNECTING, timeout=20)
            took.append(anyio.current_time() - begun)
            line.cancel()

    async def watcher(numbers: Iterator[int]) -> None:
        for _ in numbers:
            await one()

    async def main() -> None:
        numbers = iter(range(rounds))
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(watcher, numbers)

    anyio.run(main, backend=backend)
    late = [seconds for seconds in took if seconds > policy.lost_after * 1.1]
    tell(
        f"L5: {len(took)} black holes, noticed after {statistics.median(took):.2f} s (limit {policy.lost_after:g} s), "
        f"at the latest {max(took):.2f} s: {len(late)} late"
    )
    assert len(took) == rounds
    assert not late


def test_cancelling_at_random_moments_leaves_nothing(backend: str, running: Hub, tell: Tell) -> None:
    chance, rounds = random.Random(2), count(2000)
    slowest = 0.0
    left = 0

    async def one(proxy: FaultProxy) -> None:
        nonlocal slowest
        async with running.follow(proxy) as line:
            await anyio.sleep(chance.uniform(0, 0.15))
            if chance.random() < 0.3:
                proxy.black_hole()
            line.cancel()
            begun = anyio.current_time()
        slowest = max(slowest, anyio.current_time() - begun)
        await proxy.heal()

    async def watcher(numbers: Iterator[int]) -> None:
        async with FaultProxy("127.0.0.1", running.port) as proxy:
            for _ in numbers:
                await one(proxy)

    async def main() -> None:
        nonlocal left
        await watcher(iter(range(1)))
        before = open_files()
        numbers = iter(range(rounds))
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(watcher, numbers)
        left = open_files() - before

    anyio.run(main, backend=backend)
    tell(f"L7: {rounds} cancellations, the slowest took {slowest:.2f} s; {left} files left")
    assert slowest <= 1.0
    assert left <= 0


def test_nothing_leaks(backend: str, ended: Hub, tell: Tell) -> None:
    cycles = count(5_000)  # on each backend
    files = growth = done = 0

    async def watcher(until: int) -> None:
        nonlocal done
        async with FaultProxy("127.0.0.1", ended.port) as proxy:
            while done < until:
                proxy.cut_after(300, "down", times=8)
                async with ended.follow(proxy) as line:
                    await line.result()
                    done += line.statistics().dials
                await proxy.heal()

    async def run(until: int) -> tuple[int, int]:
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(watcher, until)
        gc.collect()
        return open_files(), memory()

    async def main() -> None:
        nonlocal files, growth
        before = await run(cycles // 5)  # what is made once has been made
        after = await run(cycles)
        files, growth = after[0] - before[0], after[1] - before[1]

    anyio.run(main, backend=backend)
    tell(f"L10: {done} connect-fault cycles: {files:+d} files, {growth / 2**20:+.1f} MiB")
    assert files <= 0
    assert growth < 5 * 2**20
