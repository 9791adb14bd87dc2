"""Events a second from a job to its watchers, and how old an event is when it arrives; prints one line.

The job, the hub and the watchers share this machine: the hub is a process of its own, the watchers are this one.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
from websockets.asyncio.client import connect

EVENTS = 2000
HUB = f"""
import sys, time
from towline.server import Hub, HubLimits, serve
hub = Hub(sys.argv[1], limits=HubLimits(behind=600))
@hub.job("count", path="/start")
async def count(context, upload):
    await context.start({EVENTS})
    import anyio
    while not (context.directory / "go").exists():
        await anyio.sleep(0.01)
    for done in range(1, {EVENTS} + 1):
        await context.progress(done, item=str(time.time_ns()))
serve(port=0, hub=hub)
"""


async def watch(url: str, token: str, ages: list[float]) -> tuple[float, float]:
    """Take every event; give when the first and the last came."""
    first = 0.0
    async with connect(url, additional_headers={"authorization": f"Bearer {token}"}, proxy=None) as socket:
        await socket.send('{"type":"ready","timestamp":1}')
        async for message in socket:
            frame = json.loads(message)
            if frame["type"] == "job_progress":
                first = first or time.perf_counter()
                ages.append((time.time_ns() - int(frame["payload"]["currentItem"])) / 1e6)
    return first, time.perf_counter()


async def measure(hub: str, started: dict[str, str], files: Path, watchers: int) -> str:
    url = hub.replace("http", "ws", 1) + f"/ws/progress?jobId={started['jobId']}"
    ages: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(watch(url, started["token"], ages)) for _ in range(watchers)]
        await asyncio.sleep(1)
        (files / started["jobId"] / "go").touch()
    seconds = max(run.result()[1] for run in runs) - min(run.result()[0] for run in runs)
    ages.sort()
    assert len(ages) == EVENTS * watchers
    return (
        f"{EVENTS / seconds:.0f} events/s written, {len(ages) / seconds:.0f} frames/s delivered, "
        f"age p50 {ages[len(ages) // 2]:.1f} ms, p99 {ages[len(ages) * 99 // 100]:.1f} ms"
    )


def main() -> None:
    folder, watchers = Path(sys.argv[1]), int(sys.argv[2])
    database = folder / "hub.db"
    hub = subprocess.Popen([sys.executable, "-c", HUB, str(database)], stdout=subprocess.PIPE, text=True)
    try:
        assert hub.stdout is not None
        url = hub.stdout.readline().split()[-1]
        headers = {"content-type": "application/octet-stream"}
        started = httpx.post(f"{url}/start", content=b"x", headers=headers).json()
        print(asyncio.run(measure(url, started, Path(f"{database}.files"), watchers)))  # noqa: T201
    finally:
        hub.kill()
        hub.wait()


if __name__ == "__main__":
    main()
