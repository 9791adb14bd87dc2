"""What the original backend does to a client (U1 to U12), and what is right then.

Some provocations come from the server, some would come from the client and are punished: those are never sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import anyio
import pytest
from follower import STALL_LIMIT, Follower, following
from recordings import JOB, STATE_PATH
from stand_in import StandIn, background_tasks

from towline import (
    Connection,
    Exhausted,
    JobComplete,
    JobEnded,
    JobFailed,
    MemoryTokenStore,
    Policy,
    Progress,
    Resynced,
    State,
)
from towline.testing import Reach, Unreachable

Backend = Callable[..., StandIn]
NUMBERS = Policy()


@pytest.mark.anyio
async def test_u1_the_end_stands_although_the_token_is_gone(backend: Backend) -> None:
    async with backend("newest-batch") as server:
        server.start()
        async with following(server) as follower:
            end = await follower.wait_end()
            assert isinstance(end, JobComplete)
            calls = len(server.calls)
            await anyio.sleep(3600)
            assert server.token_deleted
            assert (follower.line.outcome, follower.line.state) == (end, State.IDLE)
            assert await follower.line.result() is end
            with pytest.raises(JobEnded):
                follower.line.connect()
            assert len(server.calls) == calls


@pytest.mark.anyio
async def test_u1_a_state_call_that_is_answered_401_after_the_end_means_nothing(backend: Backend) -> None:
    """The job is silent for so long that its state is asked, and ends before the answer comes."""
    async with backend("newest-batch", spacing=122, state_delay=4.5) as server:
        server.start()
        async with following(server) as follower:
            end = await follower.wait_end()
            assert isinstance(end, JobComplete)
            await anyio.sleep(10)
            assert (server.calls[-1].path, server.calls[-1].status) == (STATE_PATH, 401)
            assert (follower.line.outcome, follower.line.state) == (end, State.IDLE)


async def _close_and_connect(line: Connection) -> None:
    await line.aclose()
    await anyio.sleep(5)
    line.connect()


async def _sleep_and_wake(line: Connection) -> None:
    line.background(grace=0)
    await anyio.sleep(5)
    line.foreground()


@pytest.mark.anyio
@pytest.mark.parametrize("away", [_close_and_connect, _sleep_and_wake])
async def test_u2_a_client_leaves_with_1001_and_may_come_back(
    away: Callable[[Connection], object], backend: Backend
) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(2)
            await away(follower.line)
            assert server.sockets[0].client_close == 1001
            assert isinstance(await follower.line.result(), JobComplete)


@pytest.mark.anyio
@pytest.mark.parametrize("cancel", [False, True])
async def test_u2_another_connection_goes_on_where_one_was_left(cancel: bool, backend: Backend) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(2)
            if cancel:
                assert follower.line.cancel()
        assert server.sockets[0].client_close == 1001
        async with following(server) as follower:
            assert isinstance(await follower.wait_end(), JobComplete)
        assert server.lost == []


@pytest.mark.anyio
async def test_u3_a_quiet_link_is_kept_without_application_messages(backend: Backend) -> None:
    async with backend("newest-batch", spacing=300) as server:
        server.start()
        async with following(server) as follower:
            assert isinstance(await follower.wait_end(), JobComplete)
        assert [_types(socket.received) for socket in server.sockets] == [["ready"]]
        assert server.sockets[0].pings > 100


@pytest.mark.anyio
@pytest.mark.parametrize("pause", [0.1, 1.0, 30.0])
async def test_u4_an_unanswered_close_is_bounded_and_there_are_never_two_links(pause: float, backend: Backend) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(2)
            closed_at = anyio.current_time()
            follower.line.background(grace=0)
            await anyio.sleep(pause)
            follower.line.foreground()
            assert isinstance(await follower.wait_end(), JobComplete)
        old = server.sockets[0]
        assert old.client_close == 1001
        assert old.over_at is not None
        assert old.over_at - closed_at <= NUMBERS.close_wait
        assert server.overlaps == 0


@pytest.mark.anyio
async def test_u4_a_connect_while_the_close_is_not_answered_yet_opens_no_second_link(backend: Backend) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower, background_tasks() as tasks:
            await follower.wait_count(2)
            tasks.start_soon(follower.line.aclose)
            await anyio.sleep(0.1)
            assert server.sockets[0].client_close == 1001
            follower.line.connect()
            assert isinstance(await follower.line.result(), JobComplete)
        assert len(server.sockets) == 2
        assert server.overlaps == 0


@pytest.mark.anyio
async def test_u4_closing_does_not_wait_for_the_answer_that_never_comes(backend: Backend) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(2)
            closed_at = anyio.current_time()
            await follower.line.aclose()
            assert anyio.current_time() - closed_at <= NUMBERS.close_wait


@pytest.mark.anyio
async def test_u5_what_was_sent_while_away_is_reported_as_unknown(backend: Backend) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(2)
            await _lose_the_path(server, seconds=45)
            assert isinstance(await follower.wait_end(), JobComplete)
            lost = _counts(server.lost)
            assert {3, 4} <= set(lost)
            assert follower.counts == [count for count in range(1, 7) if count not in lost]
            assert follower.states == [0]
            gap = follower.updates[_place(follower, 2) + 1 : _place(follower, lost[-1] + 1)]
            assert [update.missed for update in gap if isinstance(update, Resynced)] == [None]
            assert any(call.path == STATE_PATH for call in server.calls)


@pytest.mark.anyio
async def test_u6_an_end_while_away_is_a_stall_and_then_an_end_with_a_reason(backend: Backend) -> None:
    async with backend("newest-batch-ended-while-away", cut_after=1) as server:
        server.start()
        store = MemoryTokenStore()
        async with following(server, store=store) as follower:
            end = await follower.wait_end()
            assert isinstance(end, Exhausted)
            assert end.reason == "stalled"
            assert STALL_LIMIT <= follower.ended_at <= STALL_LIMIT * 1.2
            # At each look it was reported how long the job has been silent.
            assert follower.stalls[:2] == pytest.approx([120, 360], abs=15)
            assert follower.stalls == sorted(follower.stalls)
            # After the cut, and once after the second look.
            assert len(server.sockets) == 3
            assert server.sockets[2].opened_at == pytest.approx(360, abs=20)
            assert [socket.client_close for socket in server.sockets] == [None, 1001, 1001]
            # The record stays, and with it the job can be followed again.
            (record,) = await store.find(JOB)
            assert record.outcome is None
            follower.line.connect()
            assert await follower.line.wait_for(State.CONNECTED, timeout=10) is State.CONNECTED


@pytest.mark.anyio
async def test_u7_reconnect_true_is_never_sent(backend: Backend) -> None:
    """Not after a cut, a half-open link, a change of path, a wake, a return to the foreground, a retry or a stall."""
    async with backend("newest-batch", spacing=100) as server:
        server.start()
        async with following(server) as follower:
            line = follower.line
            line.report_network(True, "wlan")
            await follower.wait_count(1)
            server.cut(server.sockets[-1])
            await line.wait_for(State.RECONNECTING)
            line.retry()
            await line.wait_for(State.CONNECTED)
            server.sockets[-1].link.hold()
            line.report_network(True, "mobile")
            await line.wait_for(State.RECONNECTING)
            await follower.wait_count(2)
            line.report_network(False)
            await anyio.sleep(10)
            line.report_network(True, "wlan")
            line.report_wake()
            await follower.wait_count(3)
            line.background(grace=0)
            await anyio.sleep(10)
            line.foreground()
            await follower.wait_count(4)
            server.current = None  # the server loses sight of the socket, and the job is silent
            assert isinstance(await follower.wait_end(), Exhausted)
        assert len(server.sockets) >= 5
        assert not any("reconnect" in call.target for call in server.calls)
        assert all(_types(socket.received) == ["ready"] for socket in server.sockets)
        assert {socket.client_close for socket in server.sockets} <= {None, 1001}
        assert server.sockets[-1].client_close == 1001


@pytest.mark.anyio
async def test_u8_a_socket_that_went_silent_is_replaced_after_the_stall(backend: Backend) -> None:
    """The old half-open socket dies when the new one works already: the backend then forgets the new one."""
    async with backend("newest-batch", spacing=130) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(1)
            old = server.sockets[0]
            old.link.hold()
            await follower.wait_count(2)
            server.cut(old)
            assert isinstance(await follower.wait_end(), JobComplete)
            assert _counts(server.lost) == [3, 4]
            assert follower.counts == [1, 2, 5, 6]
            assert follower.states == [0]
            assert follower.stalls
            assert len(server.sockets) == 3


@pytest.mark.anyio
async def test_u9_a_second_follower_that_sees_the_end_leaves_the_first_a_reason(backend: Backend) -> None:
    async with backend("newest-batch", spacing=50) as server:
        server.start()
        async with following(server) as first:
            await first.wait_count(1)
            async with following(server) as second:
                assert isinstance(await second.wait_end(), JobComplete)
            end = await first.wait_end()
            assert isinstance(end, Exhausted)
            assert end.reason != "auth"  # this very server accepted the token until then
            assert first.counts == [1]
            assert first.states == [0]
            assert first.stalls


@pytest.mark.anyio
async def test_u9_after_a_second_follower_has_left_the_first_hears_again(backend: Backend) -> None:
    async with backend("newest-batch", spacing=130) as server:
        server.start()
        async with following(server) as first:
            await first.wait_count(1)
            async with following(server) as second:
                await second.wait_count(2)
            assert isinstance(await first.wait_end(), JobComplete)
            assert first.counts == [1, 4, 5, 6]
            assert first.states == [0]
            assert first.stalls


@pytest.mark.anyio
async def test_u10_a_restarted_server_has_lost_the_work(backend: Backend) -> None:
    async with backend("newest-batch", spacing=20) as server:
        server.start()
        async with following(server) as follower:
            await follower.wait_count(3)
            killed_at = anyio.current_time()
            server.kill()
            await anyio.sleep(10)
            server.restart()
            end = await follower.wait_end()
            assert isinstance(end, Exhausted)
            assert end.reason == "stalled"
            assert killed_at + STALL_LIMIT <= follower.ended_at <= killed_at + STALL_LIMIT * 1.2
            assert follower.counts == [1, 2, 3]
            assert follower.states == [0]
            assert follower.stalls


@pytest.mark.anyio
async def test_u11_the_bug_of_the_newest_csv_import_is_a_failed_job(backend: Backend) -> None:
    async with backend("newest-csv") as server:
        server.start()
        async with following(server) as follower:
            end = await follower.wait_end()
            assert isinstance(end, JobFailed)
            assert (end.code, end.message) == ("E_CSV_PROCESSING_FAILED", "startTime is not defined")


@pytest.mark.anyio
async def test_u12_the_count_of_the_state_which_stays_0_is_never_shown_after_a_larger_one(backend: Backend) -> None:
    async with backend("newest-batch", spacing=20, cut_after=3) as server:
        server.start()
        async with following(server) as follower:
            assert isinstance(await follower.wait_end(), JobComplete)
            shown = [
                update.processed_count
                for update in follower.updates
                if isinstance(update, Progress) and update.processed_count is not None
            ]
            assert shown == sorted(shown)
            assert follower.counts == [1, 2, 3, 4, 5, 6]
            assert follower.states == [0]
            cut_at = server.sockets[0].over_at
            assert cut_at is not None
            later = [call.status for call in server.calls if call.path == STATE_PATH and call.at > cut_at]
            assert 200 in later


# --- what the tests share --------------------------------------------------------------------------------------------


async def _lose_the_path(server: StandIn, seconds: float) -> None:
    """Cut the link, and let no dial come through for some seconds."""
    server.network.weather = Unreachable()
    server.cut(server.sockets[-1])
    await anyio.sleep(seconds)
    server.network.weather = Reach()


def _types(messages: list[str | bytes]) -> list[str]:
    return [json.loads(message)["type"] for message in messages]


def _counts(texts: list[str]) -> list[int]:
    return [json.loads(text)["payload"]["processedCount"] for text in texts]


def _place(follower: Follower, count: int) -> int:
    """Where in the updates the progress with this count stands."""
    return next(
        place
        for place, update in enumerate(follower.updates)
        if isinstance(update, Progress) and update.processed_count == count
    )
