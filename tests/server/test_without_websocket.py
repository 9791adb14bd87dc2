"""A hub whose server has no WebSockets is followed over its event stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn

import towline
from towline.protocols import Towline
from towline.server import Hub, JobContext, Upload
from towline.testing import FaultProxy, audit_updates

pytestmark = pytest.mark.anyio
STEPS = 40


async def steps(context: JobContext, upload: Upload) -> dict[str, int]:
    """Report each step; the last ones, and the end, wait for the test."""

    async def wait(name: str) -> None:
        while not await anyio.Path(context.directory / name).exists():  # noqa: ASYNC110 - put there by the test
            await anyio.sleep(0.005)

    for done in range(1, STEPS + 1):
        if done == STEPS // 2:
            await wait("on")
        await context.progress(done, STEPS)
    await wait("end")
    return {"done": STEPS}


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "hub.db")
    hub.job("steps", path="/start")(steps)
    return hub


@pytest.fixture
def port(hub: Hub) -> Iterator[int]:
    """The port of a server that answers an upgrade like any other request."""
    server = uvicorn.Server(uvicorn.Config(hub, port=0, ws="none", log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


async def test_every_update_arrives_once_across_a_cut(hub: Hub, port: int, client_of: Any) -> None:
    with client_of(f"http://127.0.0.1:{port}") as client:
        await anyio.to_thread.run_sync(lambda: client.start(b"x", "/start", content_type="application/octet-stream"))
        job, token = client.job, client.token
    async with FaultProxy("127.0.0.1", port) as proxy:
        line = towline.Connection(Towline(f"ws://127.0.0.1:{proxy.port}/ws/progress", job), token=token)
        updates = []
        async with line:
            async for update in line:
                updates.append(update)
                # Before half of the steps is reported, the job waits.
                if isinstance(update, towline.Progress) and update.processed_count == STEPS // 2 - 1:
                    await proxy.cut()
                    (hub.directory(job) / "on").touch()
                # An end that comes before the second stream is told by the state, and no stream is opened for it.
                if isinstance(update, towline.Progress) and update.processed_count == STEPS:
                    while hub.statistics().streams_opened < 2:  # noqa: ASYNC110 - it is another thread's
                        await anyio.sleep(0.005)
                    (hub.directory(job) / "end").touch()
        statistics = line.statistics()
    assert isinstance(line.outcome, towline.JobComplete)
    assert line.outcome.result["done"] == STEPS
    assert audit_updates(updates) == []
    assert (hub.statistics().sockets_opened, hub.statistics().streams_opened) == (0, 2)
    # The refused upgrade is a dial, and after the cut there is no other.
    assert statistics.dials == 3
