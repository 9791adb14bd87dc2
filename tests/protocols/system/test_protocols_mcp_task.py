"""`MCPTask` on `fastmcp` with its tasks, in memory and with Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from harness import PARAMETERS, PROGRAMS, Job, Record, Server, Stage, play, post

import towline
from towline.protocols import MCPTask

pytestmark = pytest.mark.timeout(600)

_ENDS = {"completed": "JobComplete", "failed": "JobFailed", "cancelled": "JobCancelled"}
_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "a test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
}


async def call(url: str, method: str, name: str, params: dict[str, Any]) -> Any:
    """Make a call as another client of the server would."""
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method, "Mcp-Name": name}
    headers["Accept"] = "application/json, text/event-stream"
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params | {"_meta": _META}}
    return (await post(f"{url}/mcp", body, headers))["result"]


async def start_job(url: str, job: Job) -> str:
    arguments = {"steps": job.steps, "pause": job.pause, "end": job.end}
    return str((await call(url, "tools/call", "work", {"name": "work", "arguments": arguments}))["taskId"])


async def record(url: str, job: str) -> Record:
    task = await call(url, "tasks/get", job, {"taskId": job})
    result = task.get("result", {})
    if result.get("isError"):
        return Record("JobFailed")
    words = result.get("structuredContent", {}).get("result")
    return Record(_ENDS.get(task["status"], ""), None if words is None else words.split())


def pieces(updates: Sequence[Any]) -> list[str]:
    """The status messages of the tool."""
    return [
        update.status for update in updates if isinstance(update, towline.Progress) and update.status[1:].isdecimal()
    ]


def server(backend: str, after_kill: str, **environment: str) -> Server:
    return Server(
        name="mcp_task",
        title=f"mcp_task (fastmcp 4.1.4, {backend.partition(':')[0]})",
        command=lambda port: [str(PROGRAMS / "tasks.py"), str(port), backend],
        start_job=start_job,
        protocol=lambda url, job, **fields: MCPTask(f"{url}/mcp", job, **fields),
        record=record,
        pieces=pieces,
        after_kill=after_kill,
        late_cancel="accepted",
        may_lose=True,
        environment=environment,
    )


MEMORY = server("memory://", after_kill="gone")


@pytest.mark.parametrize(("scene", "backend"), PARAMETERS)
def test_scene(scene: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The promise holds, and nothing more is lost than it allows."""
    play(scene, MEMORY, running(MEMORY), backend)
