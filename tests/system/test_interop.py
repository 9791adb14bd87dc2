"""The engine against other people's servers: undisturbed, stopped, killed, frozen. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest

import towline
from towline.statemachine import Backoff, Policy
from towline.testing import LoggedEvent, audit_updates

HERE = Path(__file__).parent
SERVERS = {
    "uvicorn-websockets": "uvicorn",
    "uvicorn-wsproto": "uvicorn",
    "hypercorn-asyncio": "hypercorn",
    "hypercorn-trio": "hypercorn",
    "daphne": "daphne",
    "granian": "granian",
    "aiohttp": "aiohttp",
    "websockets": "websockets",
    "tornado": "tornado",
}
EVENTS = 40
LOG = [
    LoggedEvent("e1", seq, 0.0, "job_started" if seq == 1 else "job_complete" if seq == EVENTS else "job_progress", "")
    for seq in range(1, EVENTS + 1)
]
POLICY = Policy(dial_spacing=0.2, ping_after=0.7, lost_after=1.5, backoff=Backoff(base=0.2, cap=1, shared_window=0.5))

pytestmark = pytest.mark.timeout(90)


class Server:
    """A server process that can be ended and begun again on the same port."""

    def __init__(self, kind: str, began: Path) -> None:
        self.kind = kind
        self.began = began
        began.write_text(str(time.time()))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process = self.start()
        began.write_text(str(time.time()))  # the job begins when its server is there, however slow this machine is

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "BEGAN": str(self.began), "PYTHONPATH": str(HERE)}
        command = [sys.executable, str(HERE / "servers.py"), self.kind, str(self.port), str(self.began)]
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.05)
        raise AssertionError(f"{self.kind} does not listen")

    def signal(self, number: int) -> None:
        """To the server and its workers."""
        os.killpg(self.process.pid, number)

    def end(self, number: int) -> None:
        try:
            self.signal(number)
            self.process.wait(8)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait(8)
        except ProcessLookupError:
            pass


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[Server]:
    if find_spec(SERVERS[kind]) is None:
        pytest.skip(f"{SERVERS[kind]} is not installed")
    server = Server(kind, folder / "began")
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


async def follow(server: Server, disturb: str) -> list[str]:
    """Follow the job; when it is under way, disturb the server. Returns findings."""
    updates: list[towline.AnyUpdate] = []
    url = f"ws://127.0.0.1:{server.port}/ws/progress"
    under_way = anyio.Event()

    async def act() -> None:
        await under_way.wait()
        if disturb in ("SIGTERM", "SIGKILL"):
            await anyio.to_thread.run_sync(server.end, signal.Signals[disturb])
            server.process = await anyio.to_thread.run_sync(server.start)
        elif disturb == "freeze":
            server.signal(signal.SIGSTOP)
            await anyio.sleep(2.5)
            server.signal(signal.SIGCONT)

    with anyio.fail_after(60):
        async with towline.Connection(url, job="j1", token="t1", policy=POLICY) as line:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(act)
                async for update in line:
                    updates.append(update)
                    if isinstance(update, towline.Progress) and (update.seq or 0) >= 8:
                        under_way.set()
            found = audit_updates(updates, LOG)
            if disturb != "nothing" and line.statistics().connects < 2:
                found.append("the server was never lost")
    return found


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("disturb", "backend"),
    [("nothing", "asyncio"), ("SIGTERM", "trio"), ("SIGKILL", "asyncio"), ("freeze", "trio")],
)
def test_followed_to_its_end(kind: str, disturb: str, backend: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as server:
        assert anyio.run(follow, server, disturb, backend=backend) == []
