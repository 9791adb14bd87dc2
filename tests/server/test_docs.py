"""The programs in the hub's documentation work as they are written there."""

import re
import threading
import types
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn

from towline.protocols import Towline

PAGE = Path(__file__).parents[2] / "docs" / "hub.md"


def test_the_program_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client_of: Any, eventually: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    for program in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(program, str(PAGE), "exec"), module.__dict__)
    server = uvicorn.Server(uvicorn.Config(module.app, port=0, ws="websockets-sansio", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with client_of(f"http://127.0.0.1:{port}/jobs") as client:
            assert client.start(b"a,1\n", "/api/sum").status_code == 403
            assert client.start(b"a,1\nb,20\nc,300\n", "/api/sum", x_user="ann").status_code == 202
            seen = client.follow()
            assert [event["type"] for event in seen.events] == ["job_started", *["job_progress"] * 3, "job_complete"]
            assert seen.events[-1]["payload"]["total"] == 321
            client.start(b"a,1\nb,x\n", "/api/sum", x_user="ann")
            assert client.follow().events[-1]["payload"]["code"] == "NOT_A_NUMBER"
            outcome = anyio.run(module.follow, f"ws://127.0.0.1:{port}/jobs/ws/progress", client.job, client.token)
            assert outcome.code == "NOT_A_NUMBER"
            with httpx.Client() as other:
                described = other.get(f"http://127.0.0.1:{port}/jobs/openapi.json").json()
            calls = Towline("wss://hub/ws/progress", "j")
            assert calls.events_path is not None
            paths = (calls.state_path, calls.refresh_path, calls.cancel_path, calls.result_path, calls.events_path)
            told = {path.replace("{job}", "{job_id}") for path in paths}
            assert {"/api/sum", *told} <= set(described["paths"])
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
