"""The programs in the hub's documentation work as they are written there."""

import re
import shutil
import subprocess
import threading
import types
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn

from towline.protocols import Towline
from towline.server import Hub, JobContext, Upload

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


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3 on this machine (apt-get install sqlite3)")
def test_a_backup_of_a_running_hub_is_restored(tmp_path: Path, serving: Any, eventually: Any) -> None:
    """The page's own commands, in the middle of a job; the hub on the backup continues it from its checkpoint."""
    script = PAGE.read_text().partition("```sh\numask")[2].partition("```")[0]

    def make_hub(folder: Path) -> tuple[Hub, list[object]]:
        hub = Hub(folder / "hub.db")
        found: list[object] = []

        @hub.job("steps", path="/start")
        async def steps(context: JobContext, upload: Upload) -> dict[str, str]:
            found.append(context.checkpoint)
            if context.checkpoint is None:
                await context.progress(1, 2, checkpoint={"half": True})
                found.append("kept")
                await anyio.sleep_forever()
            return {"text": upload.path.read_text()}

        return hub, found

    hub, found = make_hub(tmp_path)
    with serving(hub) as client:
        assert client.start(b"hello", "/start", content_type="application/octet-stream").status_code == 202
        eventually(lambda: "kept" in found)
        subprocess.run(["/bin/sh", "-ec", f"umask {script}"], cwd=tmp_path, check=True, timeout=120)
        job, token = client.job, client.token
    folder = tmp_path / "restored"
    folder.mkdir()
    (tmp_path / "backup.db").rename(folder / "hub.db")
    (tmp_path / "backup.db.files").rename(folder / "hub.db.files")
    hub, found = make_hub(folder)
    with serving(hub) as client:
        client.job, client.token = job, token
        events = client.follow().events
        assert [event["type"] for event in events] == ["job_started", "job_progress", "job_complete"]
        assert events[-1]["payload"]["text"] == "hello"
        assert found == [{"half": True}]
