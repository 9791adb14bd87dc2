"""nginx as it is installed, which passes no WebSocket on: the job is followed over its event stream."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest
from interop.process import Process, free_port

import towline
from towline.protocols import Towline
from towline.server import Hub, JobContext, Upload
from towline.testing import audit_updates

pytestmark = pytest.mark.anyio

if shutil.which("nginx") is None:
    pytest.skip("no nginx on this machine (apt-get install nginx-light)", allow_module_level=True)

STEPS = 50
CONFIG = """
daemon off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{hub}; proxy_set_header Host $http_host; }}
    }}
}}
"""


async def steps(context: JobContext, upload: Upload) -> None:
    """Report fifty steps; the second half waits for the test."""
    for done in range(1, STEPS + 1):
        await context.progress(done, STEPS)
        while done == STEPS // 2 and not await anyio.Path(context.directory / "on").exists():  # noqa: ASYNC110
            await anyio.sleep(0.005)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "hub.db")
    hub.job("steps", path="/start")(steps)
    return hub


async def test_the_job_is_followed_across_a_restart_of_nginx(hub: Hub, tmp_path: Path, serving: Any) -> None:
    port = free_port()
    with serving(hub) as client:
        config = CONFIG.format(port=port, hub=client.url.rpartition(":")[2])
        (tmp_path / "nginx.conf").write_text(config)
        nginx = Process(["nginx", "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"], port, tmp_path, {})
        nginx.start()
        try:
            await anyio.to_thread.run_sync(
                lambda: client.start(b"x", "/start", content_type="application/octet-stream")
            )
            updates = []
            line = towline.Connection(Towline(f"ws://127.0.0.1:{port}/ws/progress", client.job), token=client.token)
            async with line:
                async for update in line:
                    updates.append(update)
                    if isinstance(update, towline.Progress) and update.processed_count == STEPS // 2:
                        await anyio.to_thread.run_sync(nginx.end)
                        await anyio.to_thread.run_sync(nginx.start)
                        await line.wait_for(towline.State.CONNECTED, timeout=30)
                        (hub.directory(client.job) / "on").touch()
        finally:
            nginx.end()
    assert isinstance(line.outcome, towline.JobComplete)
    assert audit_updates(updates) == []
    assert (hub.statistics().sockets_opened, hub.statistics().streams_opened) == (0, 2)
