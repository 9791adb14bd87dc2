"""The hub's figures in full; `make soak` prints them."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import websockets.exceptions
from websockets.asyncio.client import connect

from towline.server import read_events

KILLS = 200
CLIENTS = 1000
JOBS = 20
ROWS = 200
HUB = """
import sys
from towline.server import Hub, HubLimits, csv_import, serve
hub = Hub(sys.argv[2], limits=HubLimits(running_jobs=100, idle_attempts=1000, behind=600), accept_rate=200)
hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=float(sys.argv[3])))
serve(port=int(sys.argv[1]), hub=hub)
"""


def csv(rows: int) -> bytes:
    return b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(rows))


def check(database: Path, job: str, seen: list[dict[str, Any]], rows: int) -> list[str]:
    """What is wrong with what one client saw."""
    log = read_events(database, job)
    wrong = []
    if [(e["seq"], e["epoch"], e["type"]) for e in seen] != [(e.seq, e.epoch, e.type) for e in log]:
        wrong.append("what was seen is not the log")
    if [e["seq"] for e in seen] != list(range(1, len(log) + 1)):
        wrong.append("a gap or a repeat")
    if [e["payload"]["processedCount"] for e in seen if e["type"] == "job_progress"] != list(range(1, rows + 1)):
        wrong.append("a count twice, left out or going back")
    if [e["type"] for e in seen].count("job_complete") != 1:
        wrong.append("not one end")
    elif seen[-1]["payload"]["successRate"] != f"{rows}/{rows}":
        wrong.append("a wrong result")
    return wrong


@pytest.mark.timeout(3000)
@pytest.mark.promises("hub", "kill -9 in mid-job: what was seen is the log, once", "200 kills: 0 wrong")
def test_kills_in_mid_job(
    hub_process: Any, ready: Any, following: Any, count: Callable[[int], int], reached: Callable[..., None]
) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    begun = time.monotonic()
    kills = jobs = 0
    wrong: list[str] = []
    hub = hub_process(row_delay=0.004, program=HUB)
    client = hub.start()
    while kills < count(KILLS):
        rows = chance.randrange(100, 1000)
        client.start(csv(rows))
        jobs += 1
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["type"] != "job_complete":
            with client.socket() as socket:
                ready(socket, {"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]} if seen else None)
                stop = (seen[-1]["seq"] if seen else 0) + chance.randrange(1, 80)
                seen += following(socket, lambda frame, stop=stop: frame["seq"] >= stop).events
                if seen[-1]["type"] != "job_complete":
                    time.sleep(chance.random() * 0.05)
                    hub.kill()
                    kills += 1
                    seen += following(socket).events
                    hub.start()
        wrong += check(hub.database, client.job, seen, rows)
    reached(f"{kills} kills in {jobs} jobs (seed {seed}), {time.monotonic() - begun:.0f} s: {len(wrong)} wrong")
    assert not wrong, seed


class Watcher:
    """One client that comes back until the end; some say `ready` only after the hub has begun by itself."""

    def __init__(self, url: str, job: str, token: str) -> None:
        self.job = job
        self.dials = 0
        self.seen: list[dict[str, Any]] = []
        self.away: list[float] = []
        self.closes: Counter[int] = Counter()
        self.early = 0
        self._url = url.replace("http", "ws", 1) + f"/ws/progress?jobId={job}"
        self._headers = {"authorization": f"Bearer {token}"}

    async def run(self) -> None:
        lost: float | None = None
        wait = random.random()
        while not self.seen or self.seen[-1]["type"] != "job_complete":
            self.dials += 1
            try:
                async with connect(self._url, additional_headers=self._headers, proxy=None) as socket:
                    if lost is not None:
                        self.away.append(time.monotonic() - lost)
                    cursor = {"epoch": self.seen[-1]["epoch"], "seq": self.seen[-1]["seq"]} if self.seen else {}
                    if random.random() < 0.1:
                        await asyncio.sleep(2.5)
                    await socket.send(json.dumps({"type": "ready", "timestamp": 1, **cursor}))
                    acknowledged = False
                    async for message in socket:
                        frame = json.loads(message)
                        if frame["type"] == "ready_ack":
                            acknowledged = True
                            continue
                        self.early += not acknowledged
                        if acknowledged or frame["seq"] > cursor.get("seq", 0):  # see docs/wire.md
                            self.seen.append(frame)
                close = socket.protocol.close_rcvd
            except websockets.exceptions.ConnectionClosed as closed:
                close = closed.rcvd
            except (OSError, websockets.exceptions.InvalidHandshake, EOFError):
                await asyncio.sleep(wait + random.random())
                continue
            lost = time.monotonic()
            self.closes[close.code if close else 1006] += 1
            if close and close.code == 1012:
                advice = json.loads(close.reason)
                await asyncio.sleep(advice["retry_in"] + random.random() * advice["spread"])


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("herd")
@pytest.mark.promises("hub", "1,000 plain clients through a restart", "each sees the log, once")
@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_many_clients_through_a_restart(
    hub_process: Any, how: str, count: Callable[[int], int], reached: Callable[..., None]
) -> None:
    hub = hub_process(row_delay=0.12, program=HUB)
    client = hub.start()
    watchers: list[Watcher] = []
    clients = max(JOBS, count(CLIENTS))
    for _ in range(JOBS):
        assert client.start(csv(ROWS)).status_code == 202
        watchers += [Watcher(client.url, client.job, client.token) for _ in range(clients // JOBS)]

    async def restart() -> float:
        while sum(bool(watcher.seen) for watcher in watchers) < len(watchers):  # noqa: ASYNC110 - plain to read
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        await asyncio.to_thread(getattr(hub, how))
        down = time.monotonic()
        await asyncio.to_thread(hub.start)
        return time.monotonic() - down

    async def run() -> float:
        async with asyncio.TaskGroup() as tasks:
            for watcher in watchers:
                tasks.create_task(watcher.run())
            restarted = tasks.create_task(restart())
        return restarted.result()

    begun = time.monotonic()
    down = asyncio.run(run())
    wrong = Counter(problem for w in watchers for problem in check(hub.database, w.job, w.seen, ROWS))
    away = sorted(seconds for watcher in watchers for seconds in watcher.away)
    closes = sum((watcher.closes for watcher in watchers), Counter[int]())
    reached(
        f"{len(watchers)} clients of {JOBS} jobs, {sum(len(w.seen) for w in watchers):,} events, "
        f"down {down:.1f} s, back after p50 {away[len(away) // 2]:.1f} s p99 {away[len(away) * 99 // 100]:.1f} s, "
        f"{sum(w.dials for w in watchers)} dials, {sum(w.early for w in watchers)} events ahead of a late `ready`, "
        f"closes {dict(closes)}, {time.monotonic() - begun:.0f} s: "
        f"{sum(wrong.values())} wrong"
    )
    assert not wrong
    assert len(away) >= len(watchers)


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("herd")
@pytest.mark.promises("hub", "events a second, to watchers of one job", "told, not promised")
@pytest.mark.parametrize("watchers", [1, 50])
def test_events_a_second(watchers: int, tmp_path: Path, reached: Callable[..., None]) -> None:
    """What one hub writes and sends, beside whatever else runs."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), str(tmp_path), str(watchers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    reached(done.stdout.strip())
