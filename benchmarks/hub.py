"""Measure the hub: events per second from jobs to followers, and their age on arrival, by number of hubs and storage.

    python benchmarks/hub.py            # prints two Markdown tables; about three minutes
    python benchmarks/hub.py ages       # only the second one: ages next to a fan-out without replay

Jobs, hubs, Redis and followers share this machine. Each hub is one process, and the followers are split over two, so
the result is for the whole system instead of a single hub. SQLite writes with `synchronous=FULL`, Redis with
`appendfsync always`.

For events and frames per second every job reports as fast as it can. The time runs from the first message at a follower
to the last message at all of them; no event is merged or dropped. The ages are measured at 200 events per second in
total, from the job's call until the follower has the message.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import connect

JOBS = 8
EVENTS = 600  # of each job, at full speed
PACE = 200.0  # events per second of all jobs, at the measured pace
SECONDS = 6.0
CLIENT_PROCESSES = 2
AGES = [(1, 200), (20, 10)]  # jobs, followers of each
AGES_PACE = 50.0  # events per second of each job
ROUNDS = 3
HUB = """
import sys, time
from pathlib import Path
import anyio
from towline.server import Hub, HubLimits, serve

limits = HubLimits(running_jobs=64, calls=100_000, watchers=1000, behind=600)
hub = Hub(sys.argv[1], files=Path(sys.argv[2]), limits=limits)

@hub.job("count", path="/start")
async def count(context, upload):
    events, pause = upload.path.read_text().split()
    await context.start(int(events))
    while not (context.directory / "go").exists():
        await anyio.sleep(0.01)
    for done in range(1, int(events) + 1):
        await context.progress(done, item=str(time.time_ns()))
        if float(pause):
            await anyio.sleep(float(pause))

serve(port=0, hub=hub)
"""


@dataclass(frozen=True)
class Case:
    """One case: a storage, a number of hubs, and a number of followers of each job."""

    storage: str
    hubs: int
    jobs: int
    watchers: int


CASES = [
    Case("SQLite", 1, 1, 1),
    Case("SQLite", 1, JOBS, 1),
    Case("SQLite", 1, JOBS, 8),
    Case("Redis", 1, JOBS, 8),
    Case("Redis", 2, JOBS, 8),
    Case("Redis", 4, JOBS, 8),
]


class Payload(msgspec.Struct, rename="camel"):
    current_item: str = ""


class Frame(msgspec.Struct):
    type: str
    payload: Payload = msgspec.field(default_factory=Payload)


# --- the watchers, in processes of their own ---------------------------------------------------------------------


async def watch(url: str, token: str, connected: asyncio.Semaphore, ages: list[float], times: list[float]) -> None:
    decode = msgspec.json.Decoder(Frame).decode
    async with connect(url, additional_headers={"authorization": f"Bearer {token}"}, proxy=None) as socket:
        await socket.send('{"type":"ready","timestamp":1}')
        async for message in socket:
            now = time.time_ns()
            frame = decode(message)
            if frame.type == "job_started":
                connected.release()
            elif frame.type == "job_progress":
                ages.append((now - int(frame.payload.current_item)) / 1e6)
                times.append(now / 1e9)


async def watch_all(targets: list[tuple[str, str]]) -> None:
    connected = asyncio.Semaphore(0)
    ages: list[float] = []
    times: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        for url, token in targets:
            tasks.create_task(watch(url, token, connected, ages, times))
        for _ in targets:
            await connected.acquire()
        print("connected", flush=True)
    print(json.dumps({"first": min(times), "last": max(times), "ages": ages}), flush=True)


# --- one measurement ---------------------------------------------------------------------------------------------


def measure(urls: list[str], files: Path, case: Case, events: int, pause: float) -> dict[str, Any]:
    """Start the jobs and followers, spread over the hubs, release them, and collect the followers' measurements."""
    started = []
    for number in range(case.jobs):
        answer = httpx.post(
            f"{urls[number % len(urls)]}/start",
            content=f"{events} {pause}",
            headers={"content-type": "application/octet-stream"},
        )
        started.append(answer.raise_for_status().json())
    # The followers of a job are spread over all hubs, so most of them are on another hub than the job.
    targets = []
    for job in started:
        for number in range(case.watchers):
            url = urls[number % len(urls)].replace("http", "ws", 1)
            targets.append((f"{url}/ws/progress?jobId={job['jobId']}", job["token"]))
    halves = [half for half in (targets[n::CLIENT_PROCESSES] for n in range(CLIENT_PROCESSES)) if half]
    watchers = [
        subprocess.Popen([sys.executable, __file__, "watch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in halves
    ]
    for watcher, half in zip(watchers, halves, strict=True):
        assert watcher.stdin is not None
        watcher.stdin.write(json.dumps(half))
        watcher.stdin.close()
    for watcher in watchers:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "connected\n"
    for job in started:
        (files / job["jobId"] / "go").touch()
    seen = []
    for watcher in watchers:
        assert watcher.stdout is not None
        seen.append(json.loads(watcher.stdout.read()))
        assert watcher.wait() == 0
    ages = sorted(age for one in seen for age in one["ages"])
    assert len(ages) == events * len(targets), "an event was lost or delivered twice"
    seconds = max(one["last"] for one in seen) - min(one["first"] for one in seen)
    return {
        "events": events * case.jobs / seconds,
        "frames": len(ages) / seconds,
        "p50": ages[len(ages) // 2],
        "p99": ages[len(ages) * 99 // 100],
    }


def start_redis(folder: Path) -> subprocess.Popen[str]:
    settings = ["--port", "0", "--unixsocket", str(folder / "redis.sock"), "--dir", str(folder), "--save", ""]
    settings += ["--appendonly", "yes", "--appendfsync", "always"]
    process = subprocess.Popen(["redis-server", *settings], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "ready to accept connections" in line.lower():
            break
    return process


def run(case: Case) -> str:
    """Measure one case and return its row of the table."""
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="towline") as name:
        folder = Path(name)
        files = folder / "files"
        try:
            database = str(folder / "hub.db")
            if case.storage == "Redis":
                processes.append(start_redis(folder))
                database = f"unix://{folder / 'redis.sock'}"
            urls = []
            for _ in range(case.hubs):
                hub = subprocess.Popen(
                    [sys.executable, "-c", HUB, database, str(files)], stdout=subprocess.PIPE, text=True
                )
                processes.append(hub)
                assert hub.stdout is not None
                urls.append(hub.stdout.readline().split()[-1])
            flat_out = measure(urls, files, case, EVENTS, 0)
            paced = measure(urls, files, case, round(PACE / case.jobs * SECONDS), case.jobs / PACE)
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()
    return (
        f"| {case.storage} | {case.hubs} | {case.jobs} | {case.watchers} | {flat_out['events']:,.0f} | "
        f"{flat_out['frames']:,.0f} | {paced['p50']:.1f} | {paced['p99']:.1f} |"
    )


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """The processor time of a process so far (proc(5): fields 14 and 15 of `stat`)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(kind: str, jobs: int, watchers: int) -> dict[str, float]:
    """Measure the ages at a hub, or at the fan-out, and the server's processor time for each frame in µs."""
    with tempfile.TemporaryDirectory(prefix="towline") as name:
        files = Path(name) / "files"
        program = ["-c", HUB, str(Path(name) / "hub.db"), str(files)]
        if kind == "fan-out":
            program = [str(Path(__file__).with_name("fan_out.py")), str(files)]
        server = subprocess.Popen([sys.executable, *program], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            before = cpu_seconds(server)
            events = round(AGES_PACE * SECONDS)
            measured = measure([url], files, Case(kind, 1, jobs, watchers), events, 1 / AGES_PACE)
            used = cpu_seconds(server) - before
        finally:
            server.kill()
            server.wait()
    return {"p50": measured["p50"], "p99": measured["p99"], "cpu": used * 1e6 / (events * jobs * watchers)}


def print_ages() -> None:
    """Print the ages at both, measured in turns; each figure is the median of the rounds."""
    print("| jobs | followers of each | server | age p50, ms | age p99, ms | processor time per frame, µs |")
    print("|---|---|---|---|---|---|", flush=True)
    for jobs, watchers in AGES:
        rounds = [{kind: compare(kind, jobs, watchers) for kind in ("fan-out", "hub")} for _ in range(ROUNDS)]
        for kind in ("fan-out", "hub"):
            figures = [statistics.median(one[kind][name] for one in rounds) for name in ("p50", "p99", "cpu")]
            row = f"{figures[0]:.1f} | {figures[1]:.1f} | {figures[2]:.0f}"
            print(f"| {jobs} | {watchers} | {kind} | {row} |", flush=True)
        ratios = ", ".join(f"{one['hub']['p99'] / one['fan-out']['p99']:.1f}" for one in rounds)
        print(f"p99 of the hub, in p99s of the fan-out, by round: {ratios}", file=sys.stderr, flush=True)


def main() -> None:
    if sys.argv[1:] == ["watch"]:
        asyncio.run(watch_all(json.load(sys.stdin)))
        return
    if sys.argv[1:] == ["ages"]:
        print_ages()
        return
    print("| storage | hubs | jobs | followers of each | events/s | frames/s | age p50, ms | age p99, ms |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        if case.storage == "Redis" and shutil.which("redis-server") is None:
            sys.exit("redis-server is not installed: apt-get install redis-server")
        print(run(case), flush=True)
    print()
    print_ages()
    print(f"\n{os.cpu_count()} cores; load before: {os.getloadavg()[2]:.1f} (15 min)")


if __name__ == "__main__":
    main()
