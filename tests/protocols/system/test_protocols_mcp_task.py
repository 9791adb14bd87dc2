"""`MCPTask` on `fastmcp` with its tasks, in memory and with Redis."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from harness import PARAMETERS, PROGRAMS, TOKEN, Following, Job, Record, Server, Stage, facts, play, post, program
from interop.process import Process, free_port

import towline
from towline.protocols import MCPTask

pytestmark = pytest.mark.timeout(600)

_ENDS = {"completed": "JobComplete", "failed": "JobFailed", "cancelled": "JobCancelled"}
_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "a test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
}


async def call(url: str, method: str, name: str | None, params: dict[str, Any], **changed: str) -> httpx.Response:
    """Make a call as another client of the server would; a changed header of "" is left out."""
    sent = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method, "Mcp-Name": name or ""}
    sent |= {"Accept": "application/json, text/event-stream"} | changed
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params | {"_meta": _META}}
    return await post(f"{url}/mcp", body, {name: value for name, value in sent.items() if value})


async def tool(url: str, name: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool, which answers a task."""
    answer = await call(url, "tools/call", name, {"name": name, "arguments": arguments})
    task: dict[str, Any] = answer.raise_for_status().json()["result"]
    return task


async def get_task(url: str, task: str) -> dict[str, Any]:
    answer = await call(url, "tasks/get", task, {"taskId": task})
    state: dict[str, Any] = answer.raise_for_status().json()["result"]
    return state


async def start_job(url: str, job: Job) -> str:
    return str((await tool(url, "work", steps=job.steps, pause=job.pause, end=job.end))["taskId"])


async def record(url: str, job: str) -> Record:
    task = await get_task(url, job)
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
        allowed="status messages between two polls",
        environment=environment,
    )


MEMORY = server("memory://", after_kill="gone")


@pytest.mark.parametrize(("scene", "backend"), PARAMETERS)
def test_scene(scene: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The promise holds, and nothing more is lost than it allows."""
    play(scene, MEMORY, running(MEMORY), backend)


# --- the facts of the server, each by its name ---------------------------------------------------------------------


async def until(stage: Stage, job: str, **expected: Any) -> dict[str, Any]:
    """Ask until the task's fields are these."""
    with anyio.fail_after(20):
        while True:
            task = await get_task(stage.direct, job)
            if expected.items() <= task.items():
                return task
            await anyio.sleep(0.1)


def statuses(following: Following) -> list[str]:
    return [update.status for update in following.updates if isinstance(update, towline.Progress)]


async def tools_call_answers_a_task(stage: Stage) -> None:
    task = await tool(stage.direct, "plain")
    assert (task["resultType"], task["ttlMs"], task["pollIntervalMs"]) == ("task", 900_000, 5000)
    assert task["status"] == "working"


async def progress_arrives_only_as_the_status_message_and_the_result_at_completed(stage: Stage) -> None:
    running = await stage.start(Job(steps=60))
    with anyio.fail_after(20):
        while "statusMessage" not in (task := await get_task(stage.direct, running)):  # noqa: ASYNC110 - not ours
            await anyio.sleep(0.1)
    assert (task["status"], task["statusMessage"][0]) == ("working", "w")
    assert "result" not in task
    await call(stage.direct, "tasks/cancel", running, {"taskId": running})
    job = await stage.start(Job(steps=2))
    following = stage.follow(job)
    await following.to_end()
    assert set(statuses(following)) <= {"w0", "w1", "working"}
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobComplete)
    assert outcome.result == (await get_task(stage.direct, job))["result"]
    assert outcome.result["structuredContent"] == {"result": "w0 w1"}


async def a_tool_s_own_error_is_completed_with_is_error(stage: Stage) -> None:
    job = await stage.start(Job(steps=1, pause=0, end="failed"))
    task = await until(stage, job, status="completed")
    assert task["result"]["isError"] is True
    following = stage.follow(job)
    await following.to_end()
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobFailed)
    assert outcome.message == "Error calling tool 'work': the tool broke"


async def failed_is_for_errors_of_the_protocol_only(stage: Stage) -> None:
    job = (await tool(stage.direct, "broken"))["taskId"]
    await until(stage, job, status="failed")
    following = stage.follow(job)
    await following.to_end()
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobFailed)
    assert (outcome.code, outcome.message) == ("-32603", "the protocol broke")


async def a_cancel_is_acknowledged_with_an_empty_result_twice_as_well(stage: Stage) -> None:
    job = await stage.start(Job(steps=60))
    for _ in range(2):
        answer = await call(stage.direct, "tasks/cancel", job, {"taskId": job})
        assert (answer.status_code, answer.json()["result"].keys() - {"_meta"}) == (200, {"resultType"})
    await until(stage, job, status="cancelled")


async def a_late_cancel_gets_the_same_answer_and_the_end_stays(stage: Stage) -> None:
    job = await stage.start(Job(steps=1, pause=0))
    await until(stage, job, status="completed")
    answer = await call(stage.direct, "tasks/cancel", job, {"taskId": job})
    assert (answer.status_code, answer.json()["result"].keys() - {"_meta"}) == (200, {"resultType"})
    assert (await get_task(stage.direct, job))["status"] == "completed"


async def an_unknown_task_is_400_and_minus_32602(stage: Stage) -> None:
    answer = await call(stage.direct, "tasks/get", "unknown", {"taskId": "unknown"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32602)
    following = stage.follow("unknown")
    await following.to_end()
    assert following.end == "gone"


async def mcp_name_may_be_absent_but_not_wrong_and_mcp_method_not_absent(stage: Stage) -> None:
    job = await stage.start(Job(steps=1, pause=0))
    assert (await call(stage.direct, "tasks/get", None, {"taskId": job})).status_code == 200
    for wrong in ({"Mcp-Name": "other"}, {"Mcp-Method": ""}):
        answer = await call(stage.direct, "tasks/get", job, {"taskId": job}, **wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)


async def input_required_is_a_pause_that_the_answer_ends(stage: Stage) -> None:
    job = (await tool(stage.direct, "ask"))["taskId"]
    asked = (await until(stage, job, status="input_required"))["inputRequests"]
    following = stage.follow(job)

    async def answer(update: Any) -> None:
        if isinstance(update, towline.Paused):
            assert (update.kind, update.message) == ("input", "Who are you?")
            answers = {key: {"action": "accept", "content": {"name": "Ada"}} for key in asked}
            await call(stage.direct, "tasks/update", job, {"taskId": job, "inputResponses": answers})

    await following.to_end(answer)
    assert [type(update) for update in following.updates].count(towline.Paused) == 1
    assert following.end == "JobComplete"


FACTS = facts(
    tools_call_answers_a_task,
    progress_arrives_only_as_the_status_message_and_the_result_at_completed,
    a_tool_s_own_error_is_completed_with_is_error,
    failed_is_for_errors_of_the_protocol_only,
    a_cancel_is_acknowledged_with_an_empty_result_twice_as_well,
    a_late_cancel_gets_the_same_answer_and_the_end_stays,
    an_unknown_task_is_400_and_minus_32602,
    mcp_name_may_be_absent_but_not_wrong_and_mcp_method_not_absent,
    input_required_is_a_pause_that_the_answer_ends,
)


@pytest.mark.parametrize(("fact", "backend"), FACTS)
def test_fact(fact: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The server does what the protocol relies on."""
    play(fact, MEMORY, running(MEMORY), backend)


def test_the_page_s_program(running: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MCP_TOKEN", TOKEN)
    main = program("mcp_task")

    async def follow(stage: Stage) -> None:
        job = await stage.start(Job(steps=3))
        await main(f"{stage.url}/mcp", job)

    play(follow, MEMORY, running(MEMORY), "trio")
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("JobComplete(")


# --- a server that keeps its tasks in Redis ------------------------------------------------------------------------


async def a_killed_server_with_redis_begins_the_task_again_after_the_redelivery(stage: Stage) -> None:
    """The redelivery is after 300 s by default. Until then the state is `working`; then the tool starts again."""
    job = await stage.start(Job(steps=20))
    following = stage.follow(job)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.to_end, None, 90)
        await stage.seen(following, 4)
        await stage.kill()
    assert following.end == "JobComplete"
    shown = statuses(following)
    assert {"w0", "w1", "w2"} & set(shown[shown.index("w3") :]), shown


def test_redis(running: Any, tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine (apt-get install redis-server)")
    port = free_port()
    redis = Process(["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"], port, tmp_path, {})
    redis.start()
    try:
        kept = server(f"redis://127.0.0.1:{port}/0", "JobComplete", FASTMCP_DOCKET_REDELIVERY_TIMEOUT="PT3S")
        play(a_killed_server_with_redis_begins_the_task_again_after_the_redelivery, kept, running(kept), "asyncio")
    finally:
        redis.end()
