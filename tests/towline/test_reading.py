"""Messages and answers as servers write them: what a follower of the job gets from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from towline import (
    Connection,
    InvalidArgument,
    JobCancelled,
    JobComplete,
    JobFailed,
    Outcome,
    Progress,
    Stalled,
    State,
    StateUnreachable,
    UnexpectedResponse,
)
from towline._facts import Numbered
from towline.server import PIPELINES
from towline.testing import Answer, ScriptedServer

pytestmark = pytest.mark.anyio
Follow = Callable[..., Connection]

ENVELOPE = {"jobId": "j1", "pipeline": "x", "timestamp": 1750000000000, "version": "1.0.0"}
PROGRESS = {"progress": 0.5, "status": "working", "processedCount": 3}
SUMMARY = {"totalDetected": 2, "approved": 2, "needsReview": 0}
WHOLE = {**SUMMARY, "books": [{"title": "A"}, {"title": "B"}]}


def message(type_: str, payload: Any, **envelope: Any) -> str:
    return json.dumps({"type": type_, **ENVELOPE, **envelope, "payload": payload})


async def first_progress(line: Connection) -> Progress:
    with anyio.fail_after(10):
        async for update in line:
            if isinstance(update, Progress):
                return update
    raise AssertionError("no progress was shown")


# --- progress ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "progress", "count"),
    [
        (message("job_progress", PROGRESS, timestamp=None, version=2, pipeline=None, jobId=None), 0.5, 3),
        (message("job_progress", PROGRESS, timestamp="2026-01-01T00:00:00Z", seq=1, epoch=5), 0.5, 3),
        (message("job_progress", {**PROGRESS, "keepAlive": None, "status": None, "currentItem": 5}), 0.5, 3),
        (message("job_progress", {**PROGRESS, "processedCount": 3.0, "currentItem": {"title": "A"}}), 0.5, 3),
        (message("job_progress", {**PROGRESS, "processedCount": "3", "progress": 1.0000000002}), 1.0, 3),
        (message("job_progress", {"processedCount": 3, "progress": "a third"}), None, 3),
        ("\ufeff" + message("job_progress", PROGRESS), 0.5, 3),
    ],
)
async def test_progress_with_odd_fields_is_shown(
    follow: Follow, text: str, progress: float | None, count: int | None
) -> None:
    for binary in (False, True):
        async with ScriptedServer(numbered=False) as server:
            server.job("j1", token="t1")
            async with follow(server) as line:
                await line.wait_for(State.CONNECTED)
                if binary:
                    server.socket.send_bytes(text.encode())
                else:
                    server.socket.send_text(text)
                shown = await first_progress(line)
                assert (shown.fraction, shown.processed_count) == (progress, count)
                assert line.statistics().malformed_messages == 0


async def test_a_numeric_job_id_is_the_jobs(follow: Follow) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("7", token="t1")
        async with follow(server, job="7") as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(message("job_progress", PROGRESS, jobId=8))
            server.socket.send_text(message("job_complete", {"a": 1}, jobId=7))
            assert await line.result() == JobComplete(job="7", pipeline="x", timestamp=1750000000000, result={"a": 1})
            assert line.statistics().unread_messages == 1


async def test_numbers_as_text_keep_their_place_in_the_log(follow: Follow) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        server.always("state", Answer(404))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            for seq in ("1", 2.0, 2, "3"):
                server.socket.send_text(message("job_progress", PROGRESS, seq=seq, epoch=5))
            server.socket.send_text(message("job_complete", {}, seq="4", epoch=5))
            outcome = await line.result()
            assert (outcome.seq, outcome.epoch) == (4, "5")
            assert line.statistics().cursor == Numbered(4, "5")
            assert (line.statistics().duplicates, line.statistics().gaps) == (1, 0)


async def test_each_message_with_an_object_as_item_is_shown_and_is_no_silence(follow: Follow) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            updates = line.updates()
            for done in range(1, 301):
                await anyio.sleep(1)
                item = {"title": "A", "author": "B"}
                payload = {"progress": done / 300, "status": "", "processedCount": done, "currentItem": item}
                server.socket.send_text(message("job_progress", payload))
            server.socket.send_text(message("job_complete", {"a": 1}))
            seen = [update async for update in updates]
    shown = [update for update in seen if isinstance(update, Progress)]
    assert sum(update.merged for update in shown) == 300
    assert shown[-1].processed_count == 300
    assert not [update for update in seen if isinstance(update, Stalled)]


# --- ends --------------------------------------------------------------------------------------------------------


async def end_of(follow: Follow, text: str) -> Outcome:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(text)
            with anyio.fail_after(30):
                return await line.result()


@pytest.mark.parametrize(
    "text",
    [
        message("job_complete", {"a": 1}, timestamp="2026-01-01T00:00:00Z", version=None),
        message("job_complete", {"a": 1}, pipeline=None, jobId=None, timestamp=None),
        message("COMPLETED", {"type": "COMPLETED", "a": 1}, seq=1, epoch=5, version=2),
        "\ufeff" + message("success", {"a": 1}),
        json.dumps({"type": "job_complete", "jobId": "j1", "a": 1}),
    ],
)
async def test_an_end_with_odd_fields_keeps_its_result(follow: Follow, text: str) -> None:
    outcome = await end_of(follow, text)
    assert isinstance(outcome, JobComplete)
    assert (outcome.result, outcome.problem) == ({"a": 1}, None)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (message("error", {"code": 500, "message": "boom"}), "500", "boom"),
        (message("job_failed", {"code": "E", "message": None}), "E", ""),
        (message("error", {"code": "E", "message": {"en": "boom"}}), "E", '{"en":"boom"}'),
        (message("FAILED", "boom"), "", "boom"),
        (message("error", {"error": "boom"}), "", "boom"),
        (message("error", {"code": "E", "message": "boom", "retryable": "yes"}, version=None), "E", "boom"),
    ],
)
async def test_an_error_keeps_its_text(follow: Follow, text: str, code: str, words: str) -> None:
    outcome = await end_of(follow, text)
    assert isinstance(outcome, JobFailed)
    assert (outcome.code, outcome.message, outcome.problem) == (code, words, None)


async def test_an_error_without_a_reason_says_so(follow: Follow) -> None:
    outcome = await end_of(follow, '{"type":"error","jobId":"j1"}')
    assert isinstance(outcome, JobFailed)
    assert outcome.problem == "the server gave no reason"


async def test_a_cancelled_job_with_odd_fields(follow: Follow) -> None:
    outcome = await end_of(follow, message("job_cancelled", {"processedCount": "3", "reason": 7}))
    assert isinstance(outcome, JobCancelled)
    assert (outcome.processed_count, outcome.reason) == (3, "7")


STATE = {"status": "complete", "pipeline": "x", "processedCount": 3, "totalCount": 3, "results": {"a": 1}}


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ({**STATE, "version": 6, "processedCount": 3.0, "pipeline": None}, JobComplete, ("{'a': 1}",)),
        ({**STATE, "startTime": "2026-01-01T00:00:00Z", "currentItem": {"title": "A"}}, JobComplete, ("{'a': 1}",)),
        ({**STATE, "status": "Succeeded", "seq": "4", "epoch": 7}, JobComplete, ("{'a': 1}",)),
        ({"data": {**STATE, "version": 6}, "metadata": {}}, JobComplete, ("{'a': 1}",)),
        ({"status": "failed", "error": "boom"}, JobFailed, ("boom",)),
        ({"status": "ERROR", "error": {"code": 500, "message": "boom"}}, JobFailed, ("500", "boom")),
        ({"status": "failed", "version": 6}, JobFailed, ("the server gave no reason",)),
        ({"status": "cancelled", "version": 6, "processedCount": 3.0}, JobCancelled, ("processed_count=3",)),
    ],
)
async def test_an_end_that_only_the_state_call_reports(
    follow: Follow, state: Any, kind: type[Outcome], words: tuple[str, ...]
) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        server.always("upgrade", Answer(503))
        server.always("state", Answer(200, "\ufeff".encode() + json.dumps(state).encode()))
        async with follow(server) as line:
            with anyio.fail_after(60):
                outcome = await line.result()
    assert type(outcome) is kind
    assert all(word in repr(outcome) for word in words)


@pytest.mark.parametrize(
    "odd", [{"version": 1}, {"pipeline": None}, {"currentItem": {"title": "A"}}, {"status": "paused"}]
)
async def test_a_state_with_an_odd_field_ends_no_healthy_socket(follow: Follow, odd: Any) -> None:
    async with ScriptedServer(numbered=False) as server:
        job = server.job("j1", token="t1")
        server.always("state", Answer(200, {**STATE, "status": "running", "processedCount": 0, **odd}))
        async with follow(server) as line:
            updates = line.updates()
            await anyio.sleep(40)
            assert line.state is State.CONNECTED
            for done in (1, 2, 3):
                job.progress(done / 3, processed=done)
            job.complete({"books": [], "errors": [], "successRate": "1/1"})
            seen = [update async for update in updates]
        of_messages = [update for update in seen if isinstance(update, Progress) and update.fraction is not None]
        assert sum(update.merged for update in of_messages) == 3
        assert isinstance(line.outcome, JobComplete)
        assert line.statistics().dials == 1


# --- results -----------------------------------------------------------------------------------------------------


async def test_a_result_of_another_shape_is_plain_json(follow: Follow) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        async with follow(server, own={"results": PIPELINES}) as line:
            await line.wait_for(State.CONNECTED)
            payload = {"type": "job_complete", "summary": {"totalProcessed": 3}}
            server.socket.send_text(message("job_complete", payload, pipeline="batch_enrichment"))
            outcome = await line.result()
            assert isinstance(outcome, JobComplete)
            assert outcome.result == {"summary": {"totalProcessed": 3}}
            assert outcome.problem is not None
            assert outcome.problem.startswith("the result does not fit its pipeline's type at $")
            assert await line.fetch_result() == outcome.result


@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("pipelines", [{}, PIPELINES])
async def test_a_result_is_fetched_from_its_url(follow: Follow, envelope: bool, pipelines: Any) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        server.always("results", Answer(200, {"data": WHOLE, "metadata": {}} if envelope else WHOLE))
        async with follow(server, own={"results": pipelines}) as line:
            await line.wait_for(State.CONNECTED)
            payload = {"type": "job_complete", **SUMMARY, "resultsUrl": "/api/jobs/j1/results"}
            server.socket.send_text(message("job_complete", payload, pipeline="ai_scan"))
            outcome = await line.result()
            assert isinstance(outcome, JobComplete)
            assert (outcome.result, outcome.result_url) == (SUMMARY, "/api/jobs/j1/results")
            fetched = await line.fetch_result()
            titles = [b.title for b in fetched.books] if pipelines else [b["title"] for b in fetched["books"]]
            assert titles == ["A", "B"]


@pytest.mark.parametrize("url", ["http://elsewhere/r", "//elsewhere/r", "http://hub:81/r"])
async def test_a_result_at_another_origin_is_refused_and_gets_no_token(follow: Follow, url: str) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(message("job_complete", {"resultUrl": url}))
            await line.result()
            asked = len(server.requests)
            with pytest.raises(InvalidArgument, match="another origin") as raised:
                await line.fetch_result()
            assert raised.value.name == "url"
            assert len(server.requests) == asked


async def test_a_result_that_came_with_no_message_is_fetched_by_the_template(follow: Follow) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        asked: list[str] = []

        def results(request: Any) -> Answer:
            asked.append(request.target)
            return Answer(200, {"a": 1})

        server.always("results", results)
        async with follow(server, own={"result_path": "/api/jobs/{job}/results?whole=1"}) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(json.dumps({"type": "job_complete", "jobId": "j1"}))
            outcome = await line.result()
            assert isinstance(outcome, JobComplete)
            assert outcome.problem == "the server sent no result with the end"
            assert await line.fetch_result() == {"a": 1}
            assert asked == ["/api/jobs/j1/results?whole=1"]
            for status in (404, 410):
                server.always("results", Answer(status))
                with pytest.raises(StateUnreachable, match="the server has none"):
                    await line.fetch_result()
            server.always("results", Answer(500))
            with pytest.raises(UnexpectedResponse):
                await line.fetch_result()


async def test_a_result_of_null_is_one(follow: Follow) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        server.always("results", Answer(500))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(message("job_complete", None))
            await line.result()
            assert await line.fetch_result() is None


@pytest.mark.parametrize(("type_", "word"), [("error", "failed"), ("job_canceled", "was canceled")])
async def test_a_job_that_did_not_complete_has_no_result(follow: Follow, type_: str, word: str) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(message(type_, {"code": "E", "message": "boom"}))
            await line.result()
            with pytest.raises(StateUnreachable, match=f"the job {word} and has no result"):
                await line.fetch_result()


# --- canceling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [None, {"cancel_path": "/api/jobs/j1/cancel"}])
@pytest.mark.parametrize("answer", [Answer(200, {"jobId": "j1", "status": "canceled"}), Answer(204)])
async def test_a_success_without_a_result_accepts_the_cancel(follow: Follow, own: Any, answer: Answer) -> None:
    async with ScriptedServer(numbered=False) as server:
        server.job("j1", token="t1")
        bodies: list[bytes] = []

        def cancel(request: Any) -> Answer:
            bodies.append(request.body)
            return answer

        server.always("cancel", cancel)
        async with follow(server, own=own) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            assert [json.loads(body) for body in bodies] == [{"jobId": "j1"}]
