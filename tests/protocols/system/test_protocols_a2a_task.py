"""`A2ATask` on an agent of `a2a-sdk`."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest
from harness import (
    PARAMETERS,
    PROGRAMS,
    QUICK,
    TOKEN,
    Following,
    Job,
    Record,
    Server,
    Stage,
    cut_after_every_event,
    ended_while_away,
    play,
    post,
)
from msgspec.structs import replace

import towline
from towline.protocols import A2ATask

pytestmark = pytest.mark.timeout(300)

_ENDS = {
    "TASK_STATE_COMPLETED": "JobComplete",
    "TASK_STATE_FAILED": "JobFailed",
    "TASK_STATE_REJECTED": "JobFailed",
    "TASK_STATE_CANCELED": "JobCancelled",
}


async def call(url: str, method: str, params: Any) -> Any:
    """The result of a call of the agent, or its error."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = (await post(url, body, {"A2A-Version": "1.0"})).raise_for_status().json()
    return answer.get("result", answer.get("error"))


async def send(url: str, text: str, **more: str) -> Any:
    """Send a message to the agent."""
    message = {"messageId": str(uuid.uuid4()), "role": "ROLE_USER", "parts": [{"text": text}], **more}
    params = {"message": message, "configuration": {"returnImmediately": True}}
    return (await call(url, "SendMessage", params))["task"]


async def start_job(url: str, job: Job) -> str:
    return str((await send(url, json.dumps({"steps": job.steps, "pause": job.pause, "end": job.end})))["id"])


async def task_of(url: str, job: str) -> dict[str, Any]:
    return dict(await call(url, "GetTask", {"id": job}))


def texts(parts: Sequence[Any]) -> list[str]:
    return [part["text"] for part in parts]


async def record(url: str, job: str) -> Record:
    """The status messages that the agent keeps."""
    task = await task_of(url, job)
    said = [message["parts"][0]["text"] for message in task["history"] if message["role"] == "ROLE_AGENT"]
    if "message" in task["status"]:
        said.append(task["status"]["message"]["parts"][0]["text"])
    return Record(_ENDS.get(task["status"]["state"], ""), [text for text in said if re.fullmatch(r"w\d+", text)])


def statuses(updates: Sequence[Any]) -> list[str]:
    return [
        update.status
        for update in updates
        if isinstance(update, towline.Progress) and re.fullmatch(r"w\d+", update.status)
    ]


async def artifact_record(url: str, job: str) -> Record:
    """The chunks of the artifact that the agent keeps."""
    task = await task_of(url, job)
    chunks = [chunk for artifact in task.get("artifacts", ()) for chunk in texts(artifact["parts"])]
    return Record(_ENDS.get(task["status"]["state"], ""), chunks)


def chunks(updates: Sequence[Any]) -> list[str]:
    """The artifact's chunks as they are after the last update."""
    got: list[str] = []
    for update in updates:
        if isinstance(update, towline.Output):
            got = [*got, *texts(update.value)] if update.op == "append" else texts(update.value)
    return got


def server(title: str, *options: str, **fields: Any) -> Server:
    made: dict[str, Any] = {"record": record, "pieces": statuses, "protocol": A2ATask, **fields}
    return Server(
        name="a2a_task",
        title=f"a2a_task (a2a-sdk 1.3.0), {title}",
        command=lambda port: [str(PROGRAMS / "a2a_agent.py"), str(port), *options],
        start_job=start_job,
        after_kill="gone",
        **made,
    )


MESSAGES = server("status messages")
CHUNKS = server(
    "chunks of an artifact",
    record=artifact_record,
    pieces=chunks,
    may_double=1,
    allowed="nothing, and one chunk may come twice",
)
OLD = server("version 0.3", protocol=lambda url, job, **fields: A2ATask(url, job, "0.3", **fields))
POLLED = server("without streams", "polled")


@pytest.mark.parametrize(("scene", "backend"), PARAMETERS)
def test_scene(scene: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The promise holds: no status message is lost, doubled or out of order, because the history has them all."""
    play(scene, MESSAGES, running(MESSAGES), backend)


@pytest.mark.parametrize("scene", [cut_after_every_event, ended_while_away])
@pytest.mark.parametrize("kind", [CHUNKS, OLD, POLLED], ids=["chunks", "version 0.3", "polled"])
def test_scene_of_another_kind(scene: Callable[[Stage], Awaitable[None]], kind: Server, running: Any) -> None:
    """The same for an artifact's chunks, for the older version, and for an agent without streams."""
    play(scene, kind, running(kind), "trio")


def fact(scene: Callable[[Stage], Awaitable[None]]) -> Callable[[Any], None]:
    """A test of one fact about the server."""

    def test(running: Any) -> None:
        play(scene, MESSAGES, running(MESSAGES), "asyncio")

    test.__doc__ = scene.__doc__
    return test


@fact
async def test_status_messages_of_a_gap_come_from_the_history(stage: Stage) -> None:
    """A subscription begins with the whole task, and its history has each earlier status message with its id."""
    job = await stage.start(Job(steps=10, pause=0.2))
    following = stage.follow(job)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.to_end)
        await stage.seen(following, 2)
        await stage.proxy.refuse()
        await stage.cut()
        await anyio.sleep(0.8)
        await stage.proxy.heal()
    assert statuses(following.updates) == [f"w{step}" for step in range(10)]
    marks = [update.mark for update in following.updates if isinstance(update, towline.Progress)]
    history = (await task_of(stage.direct, job))["history"]
    assert set(marks) <= {message["messageId"] for message in history} | {None}


@fact
async def test_a_subscription_to_a_task_that_has_ended_is_an_error_and_no_end(stage: Stage) -> None:
    """-32004: the end comes from `GetTask`."""
    job = await stage.start(Job(steps=1, pause=0))
    await stage.ended(job)
    assert (await call(stage.direct, "SubscribeToTask", {"id": job}))["code"] == -32004
    following = stage.follow(job)
    await following.to_end()
    assert following.end == "JobComplete"


@fact
async def test_cancelling_a_task_that_has_ended_is_refused_by_a_code(stage: Stage) -> None:
    """-32002 means that the cancel came too late."""
    job = await stage.start(Job(steps=1, pause=0))
    await stage.ended(job)
    assert (await call(stage.direct, "CancelTask", {"id": job}))["code"] == -32002


@fact
async def test_a_task_that_waits_for_input_is_paused_and_its_subscription_goes_on(stage: Stage) -> None:
    """At INPUT_REQUIRED the subscription stays open, and goes on after the answer."""
    job = await stage.start(Job(steps=3, pause=0.1, end="input"))
    following = stage.follow(job)
    pauses = []

    async def answer(update: Any) -> None:
        if isinstance(update, towline.Paused):
            pauses.append((update.kind, update.message))
            await send(stage.direct, "blue", taskId=job)

    await following.to_end(answer)
    assert pauses == [("input", "the end: input")]
    assert following.end == "JobComplete"
    assert following.connection.statistics().dials == 1
    assert "answered" in [getattr(update, "status", "") for update in following.updates]


@fact
async def test_a_paused_task_that_is_cut_off_stays_paused(stage: Stage) -> None:
    """A lost link is no end of the pause, and the question is not asked twice."""
    job = await stage.start(Job(steps=1, pause=0.3, end="auth"))
    policy = replace(QUICK, pause_looks=(0.2, 0.4))
    following = Following(towline.Connection(A2ATask(stage.url, job), token=TOKEN, policy=policy))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.to_end)
        while not any(isinstance(update, towline.Paused) for update in following.updates):  # noqa: ASYNC110 - a list
            await anyio.sleep(0.02)
        await stage.cut()
        await anyio.sleep(0.5)
        await send(stage.direct, "I am in", taskId=job)
    assert [update.kind for update in following.updates if isinstance(update, towline.Paused)] == ["auth"]
    assert following.end == "JobComplete"


@fact
async def test_an_unknown_task_is_gone(stage: Stage) -> None:
    """-32001: an agent in memory does not know its tasks after a restart."""
    following = stage.follow("no-such-task")
    await following.to_end()
    assert following.end == "gone"


@fact
async def test_a_missing_version_is_refused(stage: Stage) -> None:
    """-32009 without the header `A2A-Version`: an agent takes such a request as one of version 0.3."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x"}}
    assert (await post(stage.direct, body)).json()["error"]["code"] == -32009


@fact
async def test_the_result_is_the_task_also_if_a_stream_has_repeated_a_chunk(stage: Stage) -> None:
    """The end is read from the task, not from the stream's last message."""
    job = await stage.start(Job(steps=4, pause=0.05))
    following = stage.follow(job)
    await following.to_end()
    task = await task_of(stage.direct, job)
    task.pop("history")
    assert following.connection.outcome is not None
    assert following.connection.outcome.result == task
    assert chunks(following.updates) == texts(task["artifacts"][0]["parts"])


@fact
async def test_a_rejected_task_has_failed(stage: Stage) -> None:
    """The agent's reason is the message."""
    job = await stage.start(Job(steps=0, end="rejected"))
    following = stage.follow(job)
    await following.to_end()
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobFailed)
    assert (outcome.code, outcome.message) == ("rejected", "the end: rejected")
