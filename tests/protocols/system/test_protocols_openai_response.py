"""`OpenAIResponse` on Azure's server of the Responses API, `azure-ai-agentserver-responses`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio.to_thread
import httpx
import pytest
from harness import PARAMETERS, PROGRAMS, Job, Record, Server, Stage, get, headers, play

import towline
from towline.protocols import OpenAIResponse

pytestmark = pytest.mark.timeout(600)

_ENDS = {
    "completed": "JobComplete",
    "incomplete": "JobComplete",
    "failed": "JobFailed",
    "cancelled": "JobCancelled",
}


async def start_job(url: str, job: Job) -> str:
    """Create a response, and leave its stream after the first event, as a program does that only needs the id."""
    asked = {"steps": str(job.steps), "pause": str(job.pause), "end": job.end}
    body = {"model": "m", "input": "go", "background": True, "store": True, "stream": True, "metadata": asked}
    return await anyio.to_thread.run_sync(_created, f"{url}/responses", body, headers())


def _created(url: str, body: Any, sent: dict[str, str]) -> str:
    with httpx.stream("POST", url, json=body, headers=sent, timeout=10) as stream:
        first = next(line for line in stream.iter_lines() if line.startswith("data:"))
        return str(json.loads(first[5:])["response"]["id"])


async def record(url: str, job: str) -> Record:
    state = (await get(f"{url}/responses/{job}")).raise_for_status().json()
    texts = [part["text"] for item in state["output"] for part in item.get("content", ())]
    return Record(_ENDS.get(state["status"], ""), "".join(texts).split() if texts else None)


def pieces(updates: Sequence[Any]) -> list[str]:
    """The words of the text as it is after the last update, with those that a `replace` has taken away."""
    got: list[str] = []
    for update in updates:
        if isinstance(update, towline.Output):
            got = [*got, *update.value.split()] if update.op == "append" else update.value.split()
    return got


def server(*options: str) -> Server:
    return Server(
        name="openai_response",
        title="openai_response (azure-ai-agentserver-responses 2.3.0)" + "".join(f", {option}" for option in options),
        command=lambda port: [str(PROGRAMS / "responses.py"), str(port), *options],
        start_job=start_job,
        protocol=lambda url, job, **fields: OpenAIResponse(job, url, **fields),
        record=record,
        pieces=pieces,
        after_kill="JobComplete" if options else "stalled",
    )


AZURE = server()


@pytest.mark.parametrize(("scene", "backend"), PARAMETERS)
def test_scene(scene: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The promise holds, and nothing more is lost than it allows."""
    play(scene, AZURE, running(AZURE), backend)
