"""`towline watch` follows the original backend's job; killed, it is resumed by the job's id alone."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.from_thread import start_blocking_portal
from recordings import JOB
from stand_in import Socket, StandIn

from towline.protocols import Bookstrack
from towline.protocols._shared.recording import load_lines
from towline.transport import Endpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
PATIENCE = 40.0


class PatientStandIn(StandIn):
    """Sends the first half of the job to the first follower, and the rest to the second, once each is there."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.port = 0
        self.ready = (anyio.Event(), anyio.Event())

    async def _receive_message(self, socket: Socket, message: str | bytes | bytearray) -> None:
        await super()._receive_message(socket, message)
        self.ready[min(self.sockets.index(socket), 1)].set()

    async def _run_job(self) -> None:
        for number, (_, text) in enumerate(self._story):
            await self.ready[number >= len(self._story) // 2].wait()
            sent = self.current is not None and await self._send(self.current, text)
            (self.sent if sent else self.lost).append(text)
        self.ended = True
        if self.current is not None:
            await self._close(self.current, self.recording.closed["code"], self.recording.closed["reason"])
        self.token_deleted = True


@asynccontextmanager
async def listening(name: str) -> AsyncIterator[PatientStandIn]:
    """The stand-in on a port of this machine."""

    async def pump(source: ByteStream | Any, target: ByteStream | Any) -> None:
        try:
            while True:
                await target.send(await source.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await source.aclose()
            await target.aclose()

    async def serve(stream: SocketStream) -> None:
        link = await server.network.connect(Endpoint("backend", 80))
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(pump, stream, link)
            tasks.start_soon(pump, link, stream)

    async with PatientStandIn(name) as server, await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        server.port = listener.extra(SocketAttribute.local_port)
        server.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield server
            tasks.cancel_scope.cancel()


@pytest.fixture(params=["asyncio", "trio"])
def server(request: pytest.FixtureRequest) -> Iterator[PatientStandIn]:
    with (
        start_blocking_portal(request.param) as portal,
        portal.wrap_async_context_manager(listening("newest-batch")) as server,
    ):
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "TOWLINE_KEY": base64.b64encode(bytes(range(32))).decode(),
        "TOWLINE_STORE": str(tmp_path / "tokens"),
    }


def towline(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "towline", *arguments]


def test_killed_and_resumed(server: PatientStandIn, environment: dict[str, str], tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{server.port}/ws/progress"
    first = towline("watch", JOB, "--protocol", "bookstrack", "--url", url, "--json")
    with subprocess.Popen(
        first, env={**environment, "TOWLINE_TOKEN": server.token}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            counts = (json.loads(line).get("processed_count") for line in process.stdout)
            assert next(count for count in counts if count) == 1
            wait_for_record(tmp_path / "tokens")
        finally:
            process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
    recording = tmp_path / "recording.jsonl"
    recording.touch(0o644)
    command = towline("watch", JOB, "--json", "--record", str(recording))
    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    shown_last = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert [line["type"] for line in shown_last].count("job_complete") == 1
    assert server.token not in resumed.stdout
    assert server.complaints == []
    assert len(server.sockets) == 2
    check_recording(recording, server)


def wait_for_record(folder: Path) -> None:
    """Wait until the other process has written it."""
    give_up = time.monotonic() + PATIENCE
    while not list(folder.glob("*.tok")):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def check_recording(path: Path, server: PatientStandIn) -> None:
    """It is private, holds no token, and leads to the same end."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text(encoding="utf-8")
    assert server.token not in text
    protocol = Bookstrack("ws://backend/ws/progress", JOB)
    facts = [fact for want, received in load_lines(text.splitlines()) for fact in protocol.read(want, received)]
    assert [type(fact.outcome).__name__ for fact in facts if hasattr(fact, "outcome")] == ["JobComplete"]
