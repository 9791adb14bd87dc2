"""Several workers of other people's servers on one SQLite file: refused at once, with what to do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

APPLICATION = """
from towline.server import Hub
app = Hub("hub.db")
"""
SERVERS = {
    "uvicorn": ["uvicorn", "--workers", "2", "--no-access-log", "--port", "{port}", "app:app"],
    "gunicorn": ["gunicorn", "-w", "2", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}", "app:app"],
    "hypercorn": ["hypercorn", "--workers", "2", "--bind", "127.0.0.1:{port}", "app:app"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_two_workers_on_sqlite_are_refused_at_once(
    server: str, tmp_path: Path, free_port: Any, eventually: Any
) -> None:
    pytest.importorskip(server, reason=f"{server} is not installed (make test-system)")
    if server == "gunicorn":
        pytest.importorskip("uvicorn_worker", reason="uvicorn-worker is not installed (make test-system)")
    (tmp_path / "app.py").write_text(APPLICATION)
    command = [part.format(port=free_port()) for part in SERVERS[server]]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, stdout=file, stderr=file, start_new_session=True
        )
    try:
        eventually(lambda: (tmp_path / "hub.db").exists())
        began = time.monotonic()
        eventually(lambda: "gunicorn -w 1, uvicorn --workers 1" in output.read_text())
        assert time.monotonic() - began < 8  # it used to be ten seconds, and two workers need a while to import
        assert "another worker of the same server" in output.read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
