"""`LangGraphRun` on `langgraph dev`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import httpx
import pytest
from harness import (
    PARAMETERS,
    PROGRAMS,
    Following,
    Job,
    Record,
    Server,
    Stage,
    cut_after_every_event,
    ended_while_away,
    get,
    headers,
    play,
    post,
)

import towline
from towline.protocols import LangGraphRun

pytestmark = pytest.mark.timeout(300)

_ENDS = {
    "success": "JobComplete",
    "error": "JobFailed",
    "timeout": "JobFailed",
    "interrupted": "JobCancelled",
}

#: The thread of each run.
THREADS: dict[str, str] = {}


async def start_job(url: str, job: Job, **more: Any) -> str:
    thread = (await post(f"{url}/threads", {})).raise_for_status().json()["thread_id"]
    asked = {"steps": job.steps, "pause": job.pause, "end": job.end}
    body = {"assistant_id": "work", "input": asked, "stream_mode": ["updates"], "stream_resumable": True, **more}
    run = str((await post(f"{url}/threads/{thread}/runs", body)).raise_for_status().json()["run_id"])
    THREADS[run] = thread
    return run


def run_url(url: str, job: str) -> str:
    return f"{url}/threads/{THREADS[job]}/runs/{job}"


async def record(url: str, job: str) -> Record:
    """The steps of the thread, which has this run only."""
    state = (await get(run_url(url, job))).raise_for_status().json()
    values = (await get(f"{url}/threads/{THREADS[job]}")).raise_for_status().json()["values"]
    return Record(_ENDS.get(state["status"], ""), [f"w{step}" for step in range((values or {}).get("done", 0))])


def protocol(url: str, job: str, **fields: Any) -> LangGraphRun:
    return LangGraphRun(url, THREADS[job], job, token_in="header", **fields)


def pieces(updates: Sequence[Any]) -> list[str]:
    """The steps that the events `updates` show."""
    shown = [update.value for update in updates if isinstance(update, towline.Output) and update.key == "updates"]
    return [f"w{value['work']['done'] - 1}" for value in shown if "work" in value]


def states(updates: Sequence[Any]) -> list[str]:
    """The steps that the events `values` show."""
    shown = [update.value for update in updates if isinstance(update, towline.Output) and update.key == "values"]
    steps = [value["done"] for value in shown if "done" in value]
    return [f"w{step - 1}" for place, step in enumerate(steps) if place == 0 or step != steps[place - 1]]


def server(title: str, **fields: Any) -> Server:
    made: dict[str, Any] = {"start_job": start_job, "protocol": protocol, "pieces": pieces, **fields}
    return Server(
        name="langgraph_run",
        title=f"langgraph_run (langgraph-api 0.16.7), {title}",
        command=lambda port: [str(PROGRAMS / "langgraph_dev.py"), str(port)],
        record=record,
        after_kill="gone",
        environment={
            "LANGGRAPH_CLI_NO_ANALYTICS": "1",
            "LANGSMITH_TRACING": "false",
        },
        **made,
    )


def not_resumable(url: str, job: Job) -> Awaitable[str]:
    return start_job(url, job, stream_resumable=False)


RESUMABLE = server("resumable")
TWO_MODES = server(
    "two stream modes", start_job=lambda url, job: start_job(url, job, stream_mode=["updates", "values"]), pieces=states
)
NOT_RESUMABLE = server(
    "not resumable",
    start_job=not_resumable,
    protocol=lambda url, job, **fields: protocol(url, job, resumable=False, **fields),
    may_lose=True,
    allowed="updates in a gap, which is reported",
)


@pytest.mark.parametrize(("scene", "backend"), PARAMETERS)
def test_scene(scene: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The promise holds: nothing is lost, doubled or out of order."""
    play(scene, RESUMABLE, running(RESUMABLE), backend)


@pytest.mark.parametrize("scene", [cut_after_every_event, ended_while_away])
@pytest.mark.parametrize("kind", [TWO_MODES, NOT_RESUMABLE], ids=["two modes", "not resumable"])
def test_scene_of_another_kind(scene: Callable[[Stage], Awaitable[None]], kind: Server, running: Any) -> None:
    """The same for events that share an id, and for a run whose stream cannot be resumed."""
    play(scene, kind, running(kind), "trio")


def fact(scene: Callable[[Stage], Awaitable[None]]) -> Callable[[Any], None]:
    """A test of one fact about the server."""

    def test(running: Any) -> None:
        play(scene, RESUMABLE, running(RESUMABLE), "asyncio")

    test.__doc__ = scene.__doc__
    return test


async def events(url: str, last: str | None) -> list[dict[str, str]]:
    """All events of a joined stream."""
    more = {} if last is None else {"Last-Event-ID": last}
    async with httpx.AsyncClient(timeout=20) as client:
        text = (await client.get(f"{url}/stream", headers={**headers(), **more})).raise_for_status().text
    lines = [block.splitlines() for block in text.replace("\r", "").split("\n\n")]
    found = [dict(line.split(": ", 1) for line in block if ": " in line[1:]) for block in lines]
    return [event for event in found if "event" in event]


def gaps(following: Following) -> list[towline.Resynced]:
    return [update for update in following.updates if isinstance(update, towline.Resynced)]


@fact
async def test_a_resumable_stream_replays_also_after_the_end(stage: Stage) -> None:
    """`Last-Event-ID` replays what follows it; without it there is no replay."""
    job = await stage.start(Job(steps=3, pause=0.05))
    await stage.ended(job)
    url = run_url(stage.direct, job)
    every = await events(url, "-1")
    assert [event["event"] for event in every] == ["metadata", *["updates"] * 4]
    assert await events(url, every[1]["id"]) == [event for event in every if event["id"] > every[1]["id"]]
    assert await events(url, None) == []


@fact
async def test_a_joined_stream_ends_without_an_end_event(stage: Stage) -> None:
    """So the run's state decides, and a new stream shows whether anything is missing."""
    job = await stage.start(Job(steps=2, pause=0.05))
    await stage.ended(job)
    assert (await events(run_url(stage.direct, job), "-1"))[-1]["event"] == "updates"
    following = stage.follow(job)
    await following.to_end()
    assert following.end == "JobComplete"
    assert following.connection.statistics().dials == 2


@fact
async def test_events_of_one_millisecond_share_an_id_and_none_is_lost(stage: Stage) -> None:
    """The ids are `ms-0`, so a replay after such an id leaves out the other events of the millisecond."""
    job = await start_job(stage.direct, Job(steps=40, pause=0), stream_mode=["updates", "values", "debug"])
    await stage.ended(job)
    every = await events(run_url(stage.direct, job), "-1")
    ids = [event["id"] for event in every]
    assert all(name.endswith("-0") for name in ids)
    assert len(set(ids)) < len(ids)
    following = stage.follow(job)

    async def cut(_: Any) -> None:
        if len(following.updates) in (20, 60, 100):
            await stage.cut()

    await following.to_end(cut)
    outputs = [update for update in following.updates if isinstance(update, towline.Output)]
    assert [output.key for output in outputs] == [event["event"] for event in every[1:]]


@fact
async def test_a_run_that_waits_for_input_completes_with_its_interrupt(stage: Stage) -> None:
    """Its status is `success`, its thread is `interrupted`, and the answer is another run."""
    job = await stage.start(Job(steps=1, pause=0.05, end="input"))
    following = stage.follow(job)
    await following.to_end()
    state = (await get(f"{stage.direct}/threads/{THREADS[job]}")).json()
    assert state["status"] == "interrupted"
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobComplete)
    [asked] = outcome.result["__interrupt__"]
    assert asked["value"] == "which colour?"


@fact
async def test_a_cancelled_run_has_the_status_interrupted(stage: Stage) -> None:
    """A late and a second cancel are 404."""
    job = await stage.start(Job(steps=40, pause=0.1))
    url = run_url(stage.direct, job)
    answers = [(await post(f"{url}/cancel")).status_code for _ in range(2)]
    assert answers == [202, 404]
    await stage.ended(job)
    assert (await get(url)).json()["status"] == "interrupted"
    following = stage.follow(job)
    await following.to_end()
    assert following.end == "JobCancelled"


@fact
async def test_the_text_of_a_failure_comes_from_join(stage: Stage) -> None:
    """The run itself says only `error`."""
    job = await stage.start(Job(steps=1, pause=0.05, end="failed"))
    await stage.ended(job)
    assert (await get(f"{run_url(stage.direct, job)}/join")).json() == {
        "__error__": {"error": "ValueError", "message": "the disk is full"}
    }
    following = stage.follow(job)
    await following.to_end()
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobFailed)
    assert (outcome.code, outcome.message) == ("ValueError", "the disk is full")


@fact
async def test_the_result_comes_from_join(stage: Stage) -> None:
    """The values of the thread after the run."""
    job = await stage.start(Job(steps=2, pause=0.05))
    following = stage.follow(job)
    await following.to_end()
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobComplete)
    assert outcome.result["answer"] == "42"


@fact
async def test_an_unknown_run_is_gone(stage: Stage) -> None:
    """Its stream is 200 with the event `error`, its state 404."""
    job = await stage.start(Job(steps=1, pause=0.05))
    unknown = "00000000-0000-0000-0000-000000000001"
    THREADS[unknown] = THREADS[job]
    assert [event["event"] for event in await events(run_url(stage.direct, unknown), "-1")] == ["error"]
    assert (await get(run_url(stage.direct, unknown))).status_code == 404
    following = stage.follow(unknown)
    await following.to_end()
    assert following.end == "gone"


def test_a_run_that_was_not_made_resumable_has_no_ids_and_its_gap_is_reported(running: Any) -> None:
    """Updates of a gap are lost, and `Resynced(missed=None)` says so."""

    async def scene(stage: Stage) -> None:
        job = await stage.start(Job(steps=8, pause=0.2))
        following = stage.follow(job)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.to_end)
            await stage.seen(following, 2)
            await stage.proxy.refuse()
            await stage.cut()
            await anyio.sleep(0.6)
            await stage.proxy.heal()
        assert all(update.mark is None for update in following.updates)
        assert len(pieces(following.updates)) < 8
        assert ("unavailable", None) in [(gap.kind, gap.missed) for gap in gaps(following)]
        assert following.end == "JobComplete"

    play(scene, NOT_RESUMABLE, running(NOT_RESUMABLE), "asyncio")
