"""Polling through nginx, which closes a kept connection after two requests, or after a second without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from interop.process import Process, free_port

from towline.transport import HTTPClient

pytestmark = pytest.mark.anyio

if shutil.which("nginx") is None:
    pytest.skip("no nginx on this machine (apt-get install nginx-light)", allow_module_level=True)

CONFIG = """
daemon off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    keepalive_requests 2; keepalive_timeout 1s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "$connection"; }}
    }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    (tmp_path / "nginx.conf").write_text(CONFIG.format(port=port))
    process = Process(["nginx", "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"], port, tmp_path, {})
    process.start()
    yield f"http://127.0.0.1:{port}/"
    process.end()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_two_requests_a_connection(nginx: str, method: str) -> None:
    async with HTTPClient(nginx) as client:
        connections = [(await client.request(method, nginx)).body for _ in range(6)]
    assert connections[::2] == connections[1::2]
    assert len(set(connections)) == 3


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_nginx_closed_meanwhile(nginx: str, method: str) -> None:
    """A real second and a half passes here: nginx has only the real clock."""
    async with HTTPClient(nginx) as client:
        first = await client.request(method, nginx)
        await anyio.sleep(1.5)
        second = await client.request(method, nginx)
    assert (first.status, second.status) == (200, 200)
    assert first.body != second.body
