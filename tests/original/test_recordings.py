"""Each recording of the original backend is followed to its end: undisturbed, and cut after every message."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from follower import Follower, following
from recordings import JOB, Recording
from stand_in import StandIn

from towline import Exhausted, JobCancelled, JobComplete, JobFailed, Outcome, Policy, Secret, State
from towline.cli.follow._start import start_job

CANCEL = {"cancel_path": "/api/enrichment/cancel"}

#: Short, because each silence of the many stories costs its pings.
SILENCE = Policy(stall_limit=600)

#: The recordings in which a job was followed.
FOLLOWED = [
    "first-csv",
    "first-scan",
    "newest-batch",
    "newest-batch-canceled",
    "newest-batch-dropped",
    "newest-batch-ended-while-away",
    "newest-batch-reconnect-true",
    "newest-csv",
    "newest-scan",
]
#: Those with the end of the job.
ENDED = [name for name in FOLLOWED if name != "newest-batch-ended-while-away"]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ENDED)
async def test_followed_undisturbed(name: str, backend: Callable[..., StandIn]) -> None:
    async with backend(name) as server:
        server.start()
        async with following(server, own=CANCEL) as follower:
            await follower.line.wait_for(State.CONNECTED, timeout=0.5)
            await _cancel_as_recorded(server, follower)
            await follower.wait_end()
            assert_right_end(name, follower.end)
            # An accepted cancel is no end: the following ends when the server no longer takes the token.
            end_of_job = server.duration if name != "newest-batch-canceled" else server.duration + 4
            assert follower.ended_at == pytest.approx(server.started_at + end_of_job, abs=0.5)
            assert shown(follower) == sent(server)
            assert follower.states in ([], [0]), "the state always says 0: only at first is that news"
            assert server.lost == []
            assert follower.stalls == []
            statistics = follower.line.statistics()
            assert (statistics.connects, statistics.malformed_messages) == (1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "cut_after"), [(name, n) for name in FOLLOWED for n in range(len(Recording(name).story) + 1)]
)
async def test_cut_after_a_message_of_a_long_job(name: str, cut_after: int, backend: Callable[..., StandIn]) -> None:
    """The next message is due 20 s later, and the follower is back by then: it misses nothing."""
    async with backend(name, spacing=20, cut_after=cut_after) as server:
        server.start()
        async with following(server, own=CANCEL, policy=SILENCE) as follower:
            await _cancel_as_recorded(server, follower)
            await follower.wait_end()
            if name in ENDED:
                assert_right_end(name, follower.end)
            else:
                assert_stalled(follower)
            assert shown(follower) == sent(server)
            assert follower.states in ([], [0]), "the state always says 0: only at first is that news"
            assert server.lost == []
        assert server.overlaps == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "cut_after"), [(name, n) for name in FOLLOWED for n in range(len(Recording(name).story) + 1)]
)
async def test_cut_after_a_message_in_recorded_time(name: str, cut_after: int, backend: Callable[..., StandIn]) -> None:
    """The job goes on while the follower is away, and the server stores nothing. An end that was sent is the end."""
    async with backend(name, cut_after=cut_after) as server:
        server.start()
        async with following(server, own=CANCEL, policy=SILENCE) as follower:
            await _cancel_as_recorded(server, follower)
            await follower.wait_end()
            if server.end_was_sent or server.canceled:
                assert_right_end(name, follower.end)
            else:
                assert_stalled(follower)
            assert shown(follower) == sent(server)
            assert follower.states in ([], [0]), "the state always says 0: only at first is that news"
        assert server.overlaps == 0


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["first-scan", "newest-batch", "newest-scan"])
async def test_the_result_is_fetched(name: str, backend: Callable[..., StandIn]) -> None:
    async with backend(name) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_end()
            await anyio.sleep(2)  # by now the newest backend has deleted the token, which a result does not need
            result = await follower.line.fetch_result()
            if name == "newest-batch":
                assert result["summary"]["successCount"] == 6
            else:
                assert [book["title"] for book in result["books"]] == ["T0", "T1", "T2", "T3", "T4"]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["first-csv", "first-scan", "newest-csv", "newest-scan"])
async def test_the_answer_to_the_start_is_read(name: str, backend: Callable[..., StandIn]) -> None:
    async with backend(name) as server:
        url = "http://backend" + Recording(name).entries[0]["path"]
        started = await start_job(url, b"", network=server.network)
        assert (started.job, started.token) == (JOB, Secret(server.token))


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "token"), [("first-batch", "any"), ("newest-batch", "bad"), ("first-csv", "bad")])
async def test_a_token_that_was_never_accepted_is_refused(
    name: str, token: str, backend: Callable[..., StandIn]
) -> None:
    """The first backend gives no token for a batch at all."""
    async with backend(name) as server, following(server, token=token) as follower:
        end = await follower.wait_end()
        assert isinstance(end, Exhausted)
        assert end.reason == "auth"
        assert server.sockets == []


# --- what is right ---------------------------------------------------------------------------------------------------


def assert_right_end(name: str, end: Outcome | Exhausted | None) -> None:
    match name:
        case "newest-batch-canceled":
            assert isinstance(end, JobCancelled)
        case "newest-csv":
            assert isinstance(end, JobFailed)
            assert (end.code, end.message) == ("E_CSV_PROCESSING_FAILED", "startTime is not defined")
            assert end.retryable is True
            assert end.details == {"fallbackAvailable": True, "suggestion": "Try manual CSV import instead"}
        case "newest-scan":
            assert isinstance(end, JobComplete)
            assert end.result_url == "/v1/scan/results/job-1"
        case "first-csv":
            assert isinstance(end, JobComplete)
            assert [book["title"] for book in end.result["books"]] == ["T0", "T1", "T2", "T3", "T4"]
            assert end.result["errors"] == []
            assert end.problem is None
        case "first-scan":
            assert isinstance(end, JobComplete)
            assert [book["title"] for book in end.result["books"]] == ["T0", "T1", "T2", "T3", "T4"]
            assert end.problem is None
        case _:  # a batch
            count = 6 if name == "newest-batch" else 8
            assert isinstance(end, JobComplete)
            assert end.result["summary"]["successCount"] == count
            assert "type" not in end.result
            assert end.problem is None


def assert_stalled(follower: Follower) -> None:
    """The end was sent while no client was there: the silence is reported, and the following ends with this reason."""
    assert isinstance(follower.end, Exhausted)
    assert follower.end.reason == "stalled"
    assert follower.stalls
    assert 600 <= follower.ended_at <= 700


def sent(server: StandIn) -> list[tuple[float, str, int, str | None]]:
    """The progress that the server put on the wire. An item that is no text is not shown."""
    payloads = [json.loads(text)["payload"] for text in server.sent]
    return [
        (payload["progress"], payload["status"], payload["processedCount"], _text_or_none(payload.get("currentItem")))
        for payload in payloads
        if payload["type"] == "job_progress"
    ]


def shown(follower: Follower) -> list[tuple[float | None, str, int | None, str | None]]:
    """The progress that the follower was given."""
    assert all(update.merged == 1 for update in follower.progress)
    return [
        (update.fraction, update.status, update.processed_count, _text_or_none(update.current_item))
        for update in follower.progress
    ]


def _text_or_none(item: Any) -> str | None:
    return item if isinstance(item, str) else None


async def _cancel_as_recorded(server: StandIn, follower: Follower) -> None:
    """In the recording with a cancel: after its last message, cancel as often as was recorded."""
    if server.recording.name == "newest-batch-canceled":
        await anyio.sleep_until(server.started_at + server.duration + 0.483)
        assert await follower.line.cancel_job() == "accepted"
