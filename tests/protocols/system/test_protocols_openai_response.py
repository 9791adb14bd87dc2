"""`OpenAIResponse` on Azure's server of the Responses API, `azure-ai-agentserver-responses`."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio.to_thread
import httpx
import pytest
from harness import (
    PARAMETERS,
    PROGRAMS,
    ROOT,
    TOKEN,
    Job,
    Record,
    Server,
    Stage,
    facts,
    get,
    headers,
    play,
    post,
    program,
)

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
    return await anyio.to_thread.run_sync(_first_id, f"{url}/responses", body, headers())


def _first_id(url: str, body: Any, sent: dict[str, str]) -> str:
    with httpx.stream("POST", url, json=body, headers=sent, timeout=10) as stream:
        first = next(line for line in stream.iter_lines() if line.startswith("data:"))
        return str(json.loads(first[5:])["response"]["id"])


async def record(url: str, job: str) -> Record:
    state = (await get(f"{url}/responses/{job}")).raise_for_status().json()
    texts = [part["text"] for item in state["output"] for part in item.get("content", ())]
    return Record(_ENDS.get(state["status"], ""), "".join(texts).split() if texts else None)


def pieces(updates: Sequence[Any]) -> list[str]:
    """The words that arrived. The whole text of a state replaces them."""
    got: list[str] = []
    for update in updates:
        if isinstance(update, towline.Output):
            got = update.value.split() if update.op == "replace" and update.value else [*got, *update.value.split()]
    return got


def pieces_of_last_run(updates: Sequence[Any]) -> list[str]:
    """The words since the text last began from empty."""
    begins = [place for place, update in enumerate(updates) if getattr(update, "op", "") == "replace"]
    return pieces(updates[begins[-1] :]) if begins else []


def server(*options: str) -> Server:
    return Server(
        name="openai_response",
        title="openai_response (azure-ai-agentserver-responses 2.3.0)" + "".join(f", {option}" for option in options),
        command=lambda port: [str(PROGRAMS / "responses.py"), str(port), *options],
        start_job=start_job,
        protocol=lambda url, job, **fields: OpenAIResponse(job, url, **fields),
        record=record,
        pieces=pieces_of_last_run if options else pieces,
        after_kill="JobComplete" if options else "stalled",
    )


AZURE = server()


@pytest.mark.parametrize(("scene", "backend"), PARAMETERS)
def test_scene(scene: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The promise holds, and nothing more is lost than it allows."""
    play(scene, AZURE, running(AZURE), backend)


# --- the facts of the server, each by its name ---------------------------------------------------------------------


async def events(stage: Stage, job: str, after: int | None = None) -> list[dict[str, Any]]:
    """The whole stream of a response that has ended."""
    place = "" if after is None else f"&starting_after={after}"
    answer = await get(f"{stage.direct}/responses/{job}?stream=true{place}")
    assert answer.raise_for_status().headers["content-type"].startswith("text/event-stream")
    return [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]


async def polled(stage: Stage, job: Job) -> str:
    """Start a response without a stream."""
    asked = {"steps": str(job.steps), "pause": str(job.pause)}
    body = {"model": "m", "input": "go", "background": True, "store": True, "metadata": asked}
    return str((await post(f"{stage.direct}/responses", body)).json()["id"])


def texts(updates: Sequence[Any]) -> list[tuple[str, str]]:
    return [(update.op, update.value) for update in updates if isinstance(update, towline.Output)]


async def a_stream_goes_on_after_a_number_also_after_the_end(stage: Stage) -> None:
    job = await stage.start(Job(steps=3, pause=0.05))
    await stage.ended(job)
    whole = await events(stage, job)
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert whole[-1]["type"] == "response.completed"
    assert await events(stage, job, after=6) == whole[7:]


async def a_number_beyond_the_last_is_an_empty_stream(stage: Stage) -> None:
    job = await stage.start(Job(steps=1, pause=0))
    await stage.ended(job)
    assert await events(stage, job, after=1000) == []


async def a_response_without_a_stream_is_400_and_is_polled(stage: Stage) -> None:
    job = await polled(stage, Job(steps=4))
    assert (await get(f"{stage.direct}/responses/{job}?stream=true")).status_code == 400
    following = stage.follow(job)
    await following.to_end()
    assert following.end == "JobComplete"
    assert texts(following.updates) == [("replace", "w0 w1 w2 w3 ")]


async def a_running_response_shows_no_text_in_its_state(stage: Stage) -> None:
    job = await stage.start(Job(steps=60, pause=0.1))
    following = stage.follow(job)

    async def look(_: Any) -> None:
        if len(pieces(following.updates)) == 5:
            state = (await get(f"{stage.direct}/responses/{job}")).json()
            assert (state["status"], [item["content"] for item in state["output"]]) == ("in_progress", [[]])
            await post(f"{stage.direct}/responses/{job}/cancel")

    await following.to_end(look)
    assert following.end == "JobCancelled"


async def a_cancelled_response_ends_with_failed_and_then_its_replay_is_400(stage: Stage) -> None:
    job = await stage.start(Job(steps=60, pause=0.1))
    following = stage.follow(job)

    async def cancel(_: Any) -> None:
        if len(pieces(following.updates)) == 2:
            for _ in range(2):  # idempotent
                answer = await post(f"{stage.direct}/responses/{job}/cancel")
                assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")

    await following.to_end(cancel)
    assert following.end == "JobCancelled"
    assert following.updates[-1].seq is not None, "the end came from the stream"
    assert (await get(f"{stage.direct}/responses/{job}?stream=true")).status_code == 400
    late = stage.follow(job)
    await late.to_end()
    assert late.end == "JobCancelled"


async def a_cancel_of_a_completed_response_is_400(stage: Stage) -> None:
    job = await stage.start(Job(steps=1, pause=0))
    await stage.ended(job)
    assert (await post(f"{stage.direct}/responses/{job}/cancel")).status_code == 400


async def a_malformed_id_is_400_and_an_unknown_one_404(stage: Stage) -> None:
    job = await stage.start(Job(steps=1, pause=0))
    unknown = job[:-6] + ("aaaaaa" if not job.endswith("aaaaaa") else "bbbbbb")
    for name, status, end in (("nonsense", 400, "protocol"), (unknown, 404, "gone")):
        assert (await get(f"{stage.direct}/responses/{name}")).status_code == status
        following = stage.follow(name)
        await following.to_end()
        assert following.end == end


async def an_incomplete_response_is_complete_with_a_problem(stage: Stage) -> None:
    following = stage.follow(await stage.start(Job(steps=2, pause=0.1, end="incomplete")))
    await following.to_end()
    outcome = following.connection.outcome
    assert isinstance(outcome, towline.JobComplete)
    assert outcome.problem == "the response is incomplete: max_output_tokens"
    assert outcome.result["output"][0]["content"][0]["text"] == "w0 w1 "


async def after_a_kill_it_says_in_progress_for_ever_and_a_cancel_is_404(stage: Stage) -> None:
    job = await stage.start(Job(steps=60))
    await stage.kill()
    assert (await get(f"{stage.direct}/responses/{job}")).json()["status"] == "in_progress"
    assert (await get(f"{stage.direct}/responses/{job}?stream=true")).status_code == 400
    assert (await post(f"{stage.direct}/responses/{job}/cancel")).status_code == 404
    following = stage.follow(job, stall_limit=3)

    async def cancel(update: Any) -> None:
        if isinstance(update, towline.Progress):
            with pytest.raises(towline.UnexpectedResponse):
                await following.connection.cancel_job()

    await following.to_end(cancel)
    assert following.end == "stalled"


async def a_stream_that_expires_is_polled_to_the_end_and_never_asked_again(stage: Stage) -> None:
    """The server keeps a stream for 10 minutes, so its door plays the refusal. The state brings the whole text."""
    job = await stage.start(Job(steps=20))
    following = stage.follow(job)
    expired = stage.folder / "no-stream"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.to_end)
        await stage.seen(following, 3)
        expired.touch()
        await stage.cut()
        await anyio.sleep(1)
        expired.unlink()
    stage.check(following, await stage.ended(job))
    *before, last = texts(following.updates)
    assert last == ("replace", "".join(f"w{number} " for number in range(20)))
    assert 3 <= len([text for op, text in before if op == "append"]) < 20
    assert [update.kind for update in following.updates if isinstance(update, towline.Resynced)] == ["snapshot"]


FACTS = facts(
    a_stream_that_expires_is_polled_to_the_end_and_never_asked_again,
    a_stream_goes_on_after_a_number_also_after_the_end,
    a_number_beyond_the_last_is_an_empty_stream,
    a_response_without_a_stream_is_400_and_is_polled,
    a_running_response_shows_no_text_in_its_state,
    a_cancelled_response_ends_with_failed_and_then_its_replay_is_400,
    a_cancel_of_a_completed_response_is_400,
    a_malformed_id_is_400_and_an_unknown_one_404,
    an_incomplete_response_is_complete_with_a_problem,
    after_a_kill_it_says_in_progress_for_ever_and_a_cancel_is_404,
)


@pytest.mark.parametrize(("fact", "backend"), FACTS)
def test_fact(fact: Callable[[Stage], Awaitable[None]], backend: str, running: Any) -> None:
    """The server does what the protocol relies on."""
    play(fact, AZURE, running(AZURE), backend)


def test_the_page_s_program(running: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    main = program("openai_response")

    async def follow(stage: Stage) -> None:
        job = await stage.start(Job(steps=3))
        await main(job, stage.url)

    play(follow, AZURE, running(AZURE), "trio")
    shown = capsys.readouterr().out
    assert shown.splitlines()[1] == "w0 w1 w2 "
    assert "JobComplete(" in shown


# On trio, the HTTP library of OpenAI's client leaves a stream that was closed early to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_openai_background_response(
    backend: str, running: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page in docs/how-to: OpenAI's own client creates the response; the connection is cut while it is followed."""
    pytest.importorskip("openai", reason="no openai (tests/system/requirements.txt)")
    main = program("../how-to/openai-background-response")
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)

    printed = ""

    async def follow(stage: Stage) -> None:
        nonlocal printed
        monkeypatch.setenv("OPENAI_BASE_URL", stage.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main, "go")
            while "w1" not in printed:
                await anyio.sleep(0.02)
                printed += capsys.readouterr().out
            await stage.cut()

    play(follow, AZURE, running(AZURE), backend)
    gc.collect()
    text = (ROOT / "docs" / "how-to" / "openai-background-response.md").read_text()
    (shown,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert re.sub(r"^created \S+", "created resp_123", printed + capsys.readouterr().out) == shown


# --- a server that runs its responses again ------------------------------------------------------------------------

RESILIENT = server("resilient")


async def a_killed_server_runs_the_response_again_on_the_same_stream(stage: Stage) -> None:
    """One number is skipped, and the texts come again: `replace` begins them from empty."""
    job = await stage.start(Job(steps=20))
    following = stage.follow(job)
    with anyio.fail_after(50):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.to_end)
            await stage.seen(following, 3)
            await stage.kill()
    record = await stage.ended(job)
    stage.check(following, record)
    assert [text for text in texts(following.updates) if text[0] == "replace"] == [("replace", "")] * 2
    numbers = [event["sequence_number"] for event in await events(stage, job)]
    assert set(range(numbers[-1])) - set(numbers), "no number was skipped"


def test_resilient(running: Any) -> None:
    play(a_killed_server_runs_the_response_again_on_the_same_stream, RESILIENT, running(RESILIENT), "trio")
