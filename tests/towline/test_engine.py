"""The engine: what a failure means, told by its effect; timers, cancellation, races. In memory, under virtual time."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import towline
from towline import (
    AnyUpdate,
    Backoff,
    Cancelled,
    Connection,
    DeadlineExceeded,
    Exhausted,
    JobComplete,
    Limits,
    Policy,
    Progress,
    ProtocolFailed,
    Resynced,
    State,
    StateUnreachable,
    UnexpectedFailure,
)
from towline._facts import Closed, Fact, Means, Message, Received, Want
from towline.engine.intake import Intake
from towline.protocols.towline import Towline
from towline.testing import Accept, Answer, Drop, Hang, NoAnswer, Reach, ScriptedJob, ScriptedServer, Unreachable

pytestmark = pytest.mark.anyio
URL = "ws://hub/ws/progress"
RESULT = {"books": [], "errors": [], "successRate": "1/1"}
Follow = Callable[..., Connection]


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[tuple[ScriptedServer, ScriptedJob]]:
    async with ScriptedServer(**options) as server:
        yield server, server.job("j1", token="t1")


async def gave_up(line: Connection) -> Exhausted:
    with pytest.raises(Exhausted) as raised:
        async for _ in line:
            pass
    return raised.value


# --- what a failure means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reaction", "reason"),
    [
        (Answer(400), "protocol"),
        (Answer(426), "protocol"),
        (Answer(407), "protocol"),
        (Answer(200, b"<html>Welcome to our Wi-Fi"), "protocol"),
        (Answer(302, headers={"Location": "https://elsewhere"}), "protocol"),
        (Answer(403), "auth"),
        (Answer(401), "auth"),
    ],
)
async def test_an_upgrade_that_rules_out_another(follow: Follow, reaction: Any, reason: str) -> None:
    async with scripted() as (server, _):
        server.always("upgrade", reaction)
        async with follow(server) as line:
            error = await gave_up(line)
            assert error.reason == reason
            await anyio.sleep(3600)
            assert len(server.times("upgrade")) == 1


@pytest.mark.parametrize("reaction", [Answer(408), Answer(425), Answer(429), Answer(500), Answer(503), Drop("rst")])
async def test_an_upgrade_that_may_work_later(follow: Follow, reaction: Any) -> None:
    async with scripted() as (server, _):
        server.script("upgrade", reaction)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=60)
            assert len(server.times("upgrade")) == 2


async def test_advice_of_the_server_is_kept(follow: Follow) -> None:
    async with scripted() as (server, _):
        server.script("upgrade", Answer(503, headers={"Retry-After": "100"}))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            first, second = server.times("upgrade")
            assert 100 <= second - first <= 106


@pytest.mark.parametrize(("status", "reason"), [(404, "gone"), (410, "gone")])
async def test_a_job_unknown_to_socket_and_state_is_gone(follow: Follow, status: int, reason: str) -> None:
    async with scripted() as (server, _):
        server.always("upgrade", Answer(status))
        server.always("state", Answer(status))
        async with follow(server) as line:
            assert (await gave_up(line)).reason == reason


async def test_a_job_unknown_to_the_socket_but_ended_by_its_state_has_ended(follow: Follow) -> None:
    async with scripted() as (server, job):
        job.complete(RESULT)
        server.always("upgrade", Answer(404))
        async with follow(server) as line:
            assert isinstance(await line.result(), JobComplete)


async def test_a_404_while_the_state_is_there_is_a_deploy(follow: Follow) -> None:
    async with scripted() as (server, _):
        server.script("upgrade", Answer(404))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=60)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 1014, 3000, 3499, 4000, 4400])
async def test_a_close_after_which_it_comes_back(follow: Follow, code: int) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.close(code)
            await line.wait_for(State.RECONNECTING, timeout=5)
            await line.wait_for(State.CONNECTED, timeout=60)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *[(code, "protocol") for code in (3500, 3999, 4500, 4999)],
        *[(1008, "revoked"), (4401, "revoked")],
    ],
)
async def test_a_close_after_which_it_does_not(follow: Follow, code: int, reason: str) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.close(code)
            assert (await gave_up(line)).reason == reason
            assert len(server.times("upgrade")) == 1


async def test_the_third_broken_stream_is_the_last(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            for number in range(1, 4):
                await server.wait_ready(number)
                server.socket.send_raw(b"\xff\xff\xff\xff")
            assert (await gave_up(line)).reason == "protocol"
            assert len(server.times("upgrade")) == 3
            assert server.socket.client_close == (1002, "")


@pytest.mark.parametrize("ended", [True, False])
async def test_a_message_over_the_limit_asks_the_state_once(follow: Follow, ended: bool) -> None:
    async with scripted() as (server, job):
        async with follow(server, limits=Limits(max_message=1000)) as line:
            await line.wait_for(State.CONNECTED)
            job.silent = True
            if ended:
                job.complete(RESULT)
            server.socket.send_text("x" * 2000)
            if ended:
                assert isinstance(await line.result(), JobComplete)
            else:
                assert (await gave_up(line)).reason == "protocol"
            assert len(server.times("upgrade")) == 1


@pytest.mark.parametrize(
    ("answer", "strict", "kind"),
    [(Answer(404), False, "unavailable"), (Answer(410), False, "unavailable"), (Answer(404), True, None)],
)
async def test_no_state_while_the_socket_is_open(
    follow: Follow, answer: Answer, strict: bool, kind: str | None
) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", answer)
        async with follow(server, own={"require_state": strict}) as line:
            if kind is None:
                assert (await gave_up(line)).reason == "gone"
            else:
                await line.wait_for(State.CONNECTED, timeout=5)
                job.complete(RESULT)
                updates = [update async for update in line]
                assert [getattr(update, "kind", None) for update in updates] == ["unavailable", None]


@pytest.mark.parametrize("answer", [Answer(500), Answer(429), Hang(), Answer(503), Drop()])
async def test_a_state_that_fails_is_asked_again_on_the_same_socket(follow: Follow, answer: Any) -> None:
    async with scripted(numbered=False) as (server, _):
        server.script("state", answer)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=30)
            assert len(server.times("upgrade")) == 1
            assert len(server.times("state")) == 2


async def test_a_protocol_says_what_a_close_means_and_may_not_break_anything(follow: Follow) -> None:
    said: list[Any] = [[Means("refused")], ["nonsense"]]

    class Own(Towline):
        def read(self, want: Want, received: Received) -> Iterable[Fact]:
            return said.pop() if isinstance(received, Closed) else super().read(want, received)

    async with scripted() as (server, _):
        async with follow(server, url=Own(URL, "j1")) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.close(4000)
            await line.wait_for(State.RECONNECTING, timeout=5)
            await line.wait_for(State.CONNECTED, timeout=60)
            server.socket.close(4000)
            assert (await gave_up(line)).reason == "protocol"


async def test_a_protocol_that_fails_costs_attempts_and_is_named(follow: Follow) -> None:
    class Own(Towline):
        def read(self, want: Want, received: Received) -> Iterable[Fact]:
            if isinstance(received, Message) and "job_progress" in received.data:  # type: ignore[operator]
                raise ZeroDivisionError
            return super().read(want, received)

    async with scripted(numbered=False) as (server, job):
        async with follow(server, url=Own(URL, "j1"), policy=Policy(backoff=Backoff(attempts=1))) as line:
            for count in (1, 2):
                await line.wait_for(State.CONNECTED)
                job.progress(0.5, processed=count)
                await anyio.sleep(0.1)
            error = await gave_up(line)
    assert error.reason == "budget"
    assert isinstance(error.__cause__, ProtocolFailed)
    assert isinstance(error.__cause__.__cause__, ZeroDivisionError)
    causes = [entry.event.cause.code for entry in line.history().entries if getattr(entry.event, "cause", None)]
    assert causes == ["protocol", "protocol"]


async def test_what_was_told_before_a_refused_greeting_is_heard(follow: Follow) -> None:
    """The server ends the link before `ready` can be written: why it did so still counts."""
    async with scripted() as (server, _):
        server.script("upgrade", Accept(close_after=0, close_code=4401))
        async with follow(server) as line:
            assert (await gave_up(line)).reason == "auth"


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 1, 5])
async def test_a_flapping_server_is_dialled_at_most_ten_times_a_minute(follow: Follow, seconds: float) -> None:
    async with scripted() as (server, _):
        server.always("upgrade", Accept(close_after=seconds, close_code=4000))
        async with follow(server, policy=Policy(backoff=Backoff(attempts=1000))):
            await anyio.sleep(600)
        times = server.times("upgrade")
        for start in times:
            assert sum(start <= at < start + 60 for at in times) <= 15
        assert sum(at < 60 for at in times) <= 10
        assert len(times) <= 60


async def test_giving_up_is_told_when_the_last_question_is_answered(follow: Follow) -> None:
    """The job ended behind a socket that never opens: it is the end that is told."""
    async with scripted() as (server, job):
        server.always("upgrade", Answer(500))
        server.always("state", lambda request: Hang() if not job.ended else None)
        async with follow(server, policy=Policy(backoff=Backoff(attempts=1))) as line:
            await line.wait_for(State.EXHAUSTED)
            await server.wait_requests("state", 2)
            job.complete(RESULT)
            with pytest.raises(Exhausted):
                await line.result()
            line.retry()
            assert isinstance(await line.result(), JobComplete)
            assert len(server.sockets) == 0


async def test_a_path_revives_what_the_budget_ended(follow: Follow) -> None:
    async with scripted() as (server, _):
        server.network.weather = Unreachable()
        async with follow(server, policy=Policy(backoff=Backoff(attempts=1))) as line:
            error = await gave_up(line)
            assert error.reason == "budget"
            assert isinstance(error.__cause__, towline.ConnectFailed)
            server.network.weather = Reach()
            line.report_network(True, "wlan0")
            line.report_network(True, "eth0")
            await line.wait_for(State.CONNECTED, timeout=60)


@pytest.mark.parametrize("fate", [NoAnswer(), Unreachable(), Unreachable(resolved=False)])
async def test_a_network_that_fails_costs_one_attempt_each(follow: Follow, fate: Any) -> None:
    async with scripted() as (server, _):
        server.network.script(fate)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=60)
            assert line.statistics().dials == 2


# --- silence, background, path -----------------------------------------------------------------------------------


async def test_a_dead_link_is_noticed_by_silence(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.hold()
            before = anyio.current_time()
            await line.wait_for(State.RECONNECTING)
            assert anyio.current_time() - before <= 25 * 1.1
            await line.wait_for(State.CONNECTED, timeout=60)


async def test_in_background_everything_is_closed_and_nothing_dialled(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server, policy=Policy(grace=31)) as line:
            await line.wait_for(State.CONNECTED)
            line.background()
            await anyio.sleep(20)
            line.background()  # told twice, the grace does not begin anew
            await line.wait_for(State.BACKGROUNDED, timeout=12)
            await anyio.sleep(3600)
            assert server.socket.client_close == (1001, "")
            assert len(server.times("upgrade")) == 1
            line.foreground()
            await line.wait_for(State.CONNECTED, timeout=5)


async def test_a_lost_path_holds_the_dial_and_a_restored_one_lets_it_go(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            line.report_network(False)
            server.socket.cut()
            await line.wait_for(State.RECONNECTING, timeout=5)
            await anyio.sleep(30)
            assert len(server.times("upgrade")) == 1
            line.report_network(True)
            await line.wait_for(State.CONNECTED, timeout=5)


async def test_waking_up_doubts_the_link(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.hold()
            line.report_wake()
            await line.wait_for(State.RECONNECTING, timeout=5.5)


# --- cancel and close ---------------------------------------------------------------------------------------------


async def left_behind() -> list[str]:
    return [task.name or "" for task in anyio.get_running_tasks() if task.name and task.name.startswith("towline ")]


def _hang_in_sync(server: ScriptedServer) -> None:
    server.always("state", Hang())
    server.always("upgrade", Accept(answers_ready=False))


WAYS_TO_HANG: dict[str, Callable[[ScriptedServer], None]] = {
    "dialling": lambda server: setattr(server.network, "weather", NoAnswer()),
    "upgrading": lambda server: server.always("upgrade", Hang()),
    "syncing": _hang_in_sync,
    "connected": lambda server: None,
    "reconnecting": lambda server: server.always("upgrade", Answer(500)),
    "exhausted": lambda server: server.always("upgrade", Answer(400)),
}


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("way", WAYS_TO_HANG)
async def test_within_a_second_after_cancel_nothing_is_left(follow: Follow, way: str, dead: bool) -> None:
    states: list[State] = []
    async with scripted() as (server, job):
        WAYS_TO_HANG[way](server)
        async with follow(server, on_state=lambda change: states.append(change.state)) as line:
            await anyio.sleep(3)
            if dead:
                for link in server.network.links:
                    link.hold()
            assert line.cancel() is True
            assert line.state is State.CANCELLED
            assert line.cancel() is True
            await anyio.sleep(1)
            assert await left_behind() == []
            job.complete(RESULT)
            assert [update async for update in line] == []
            with pytest.raises(Cancelled):
                await line.result()
            with pytest.raises(Cancelled):
                line.connect()
            with pytest.raises(Cancelled):
                await line.cancel_job()
        assert states.count(State.CANCELLED) == 1
        assert line.cancel() is True
        assert not [link for link in server.network.links if not dead]


async def test_cancel_while_the_token_provider_thinks(follow: Follow) -> None:
    async def provider() -> str:
        await anyio.sleep(20)
        return "t1"

    async with scripted() as (server, _):
        async with follow(server, token=provider) as line:
            await anyio.sleep(1)
            line.cancel()
            await anyio.sleep(1)
            assert await left_behind() == []


async def test_cancel_racing_the_end_gives_everybody_the_same_answer(follow: Follow) -> None:
    for delay in range(8):
        async with scripted() as (server, job):
            server.network.weather = Reach(latency=0.001)
            async with follow(server) as line:
                await line.wait_for(State.CONNECTED)
                job.complete(RESULT)
                await anyio.sleep(delay * 0.0005)
                cancelled = line.cancel()
                assert line.cancel() is cancelled
                updates = [update async for update in line]
                assert (line.outcome is None) is cancelled
                assert bool(updates) is not cancelled
                assert (line.state is State.CANCELLED) is cancelled


async def test_cancel_in_a_listener_is_done_when_it_returns_and_skips_the_rest(follow: Follow) -> None:
    seen: list[State] = []
    lines: list[Connection] = []

    def on_state(change: towline.StateChange) -> None:
        seen.append(change.state)
        if change.state is State.SYNCING:
            assert lines[0].cancel()
            assert lines[0].state is State.CANCELLED
            assert seen[-1] is State.SYNCING, "listeners are not nested"

    async with scripted() as (server, _):
        async with follow(server, on_state=on_state) as line:
            lines.append(line)
            await anyio.sleep(5)
        assert seen == [State.CONNECTING, State.SYNCING, State.CANCELLED]


async def test_cancel_in_a_progress_handler_ends_the_calls(follow: Follow) -> None:
    lines: list[Connection] = []
    seen: list[AnyUpdate] = []

    def on_update(update: AnyUpdate) -> None:
        seen.append(update)
        if isinstance(update, Progress):
            lines[0].cancel()

    async with scripted() as (server, job):
        async with follow(server, on_update=on_update) as line:
            lines.append(line)
            await line.wait_for(State.CONNECTED)
            for number in range(5):
                job.progress(0.1 * number)
            await anyio.sleep(1)
            assert [type(update) for update in seen].count(Progress) == 1
            assert isinstance(seen[-1], Progress)


async def test_aclose_while_a_dial_waits_then_connect_again(follow: Follow) -> None:
    async with scripted() as (server, job):
        server.network.script(NoAnswer())
        async with follow(server) as line:
            await anyio.sleep(1)
            await line.aclose()
            assert line.state is State.IDLE
            assert await left_behind() == []
            assert [update async for update in line] == []
            with pytest.raises(StateUnreachable, match=r"`connect\(\)` follows the job again"):
                await line.result()
            line.connect()
            await line.wait_for(State.CONNECTED, timeout=10)
            job.complete(RESULT)
            assert [type(update) async for update in line] == [JobComplete]


async def test_after_aclose_it_goes_on_from_where_it_was(follow: Follow) -> None:
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            for number in range(4):
                job.progress(number / 10, processed=number)
            first = line.updates()
            assert (await anext(first)).seq == 1
            await anyio.sleep(1)
            await line.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(first)
            job.progress(0.5, processed=5)
            line.connect()
            await line.wait_for(State.CONNECTED, timeout=10)
            assert server.socket.ready is not None
            assert server.socket.ready.seq == 4
            job.complete(RESULT)
            with pytest.raises(StopAsyncIteration):
                await anext(first)
            assert [u.seq async for u in line if not isinstance(u, Resynced)] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("ending", ["cancel", "aclose"])
async def test_whoever_waits_is_told_once(follow: Follow, ending: str) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            told: list[str] = []

            async def wait(name: str, call: Callable[[], Any]) -> None:
                try:
                    await call()
                except (Cancelled, StateUnreachable, StopAsyncIteration) as error:
                    told.append(f"{name}: {type(error).__name__}")

            subscription = line.updates()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, "result", line.result)
                tasks.start_soon(wait, "wait_for", lambda: line.wait_for(State.EXHAUSTED))
                tasks.start_soon(wait, "iteration", lambda: anext(subscription))
                tasks.start_soon(wait, "the same iteration", lambda: anext(subscription))
                await anyio.sleep(1)
                if ending == "cancel":
                    line.cancel()
                else:
                    await line.aclose()
            error = "Cancelled" if ending == "cancel" else "StateUnreachable"
            assert sorted(told) == [
                "iteration: StopAsyncIteration",
                f"result: {error}",
                "the same iteration: StopAsyncIteration",
                f"wait_for: {error}",
            ]


async def test_cancel_ends_a_request_to_stop_the_job(follow: Follow) -> None:
    async with scripted() as (server, _):
        server.always("cancel", Hang())
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    with pytest.raises(Cancelled):
                        await line.cancel_job()

                tasks.start_soon(ask)
                await server.wait_requests("cancel")
                line.cancel()
                before = anyio.current_time()
            assert anyio.current_time() - before < 1


async def test_too_late_brings_the_end_even_in_background(follow: Follow) -> None:
    async with scripted() as (server, job):
        async with follow(server, policy=Policy(grace=0)) as line:
            await line.wait_for(State.CONNECTED)
            line.background()
            await line.wait_for(State.BACKGROUNDED)
            job.complete(RESULT)
            assert await line.cancel_job() == "too_late"
            assert isinstance(line.outcome, JobComplete)


async def test_a_request_that_was_not_answered_is_repeated_with_its_key(follow: Follow) -> None:
    async with scripted() as (server, _):
        server.script("cancel", Answer(500))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            with pytest.raises(towline.UnexpectedResponse):
                await line.cancel_job()
            await line.cancel_job()
            keys = {r.headers["idempotency-key"] for r in server.requests if r.call == "cancel"}
            assert len(keys) == 1


# --- the user's own task is cancelled ---------------------------------------------------------------------------


async def test_cancellation_at_each_checkpoint_leaves_nothing(follow: Follow) -> None:
    """The task that owns the block is cancelled at moment k, for each k until the story ends by itself."""
    finished = False
    moment = 0
    while not finished:
        moment += 1
        assert moment < 400
        async with scripted() as (server, job):
            server.network.weather = Reach(latency=0.01)
            server.script("upgrade", Answer(503))
            with anyio.move_on_after(0.02 * moment + 0.001) as scope:
                async with follow(
                    server, policy=Policy(dial_spacing=0, backoff=Backoff(base=0.1, shared_window=0.1))
                ) as line:
                    job.start(1)
                    await line.wait_for(State.CONNECTED)
                    server.socket.cut()
                    await line.wait_for(State.RECONNECTING)
                    await line.wait_for(State.CONNECTED)
                    job.complete(RESULT)
                    await line.result()
            finished = not scope.cancelled_caught
            assert await left_behind() == []
            await anyio.sleep(0.1)
            assert list(server.network.links) == []


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), ExceptionGroup("g", [OSError()])]
)
async def test_the_bodys_own_errors_come_out_as_they_are(follow: Follow, error: BaseException) -> None:
    async with scripted() as (server, _):
        with pytest.raises(type(error)) as raised:
            async with follow(server) as line:
                await line.wait_for(State.CONNECTED)
                raise error
        assert raised.value is error
        assert await left_behind() == []
        assert server.socket.client_close == (1001, "")


async def test_a_bug_of_the_engine_costs_attempts_and_is_not_swallowed(
    follow: Follow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound, bugs = Intake.take_in, []

    def take_in(intake: Intake, *args: Any) -> None:
        if bugs:
            raise bugs[0]
        sound(intake, *args)

    monkeypatch.setattr(Intake, "take_in", take_in)
    async with scripted() as (server, _):
        with pytest.raises(Exhausted) as raised:
            async with follow(server, policy=Policy(backoff=Backoff(attempts=2))) as line:
                await line.wait_for(State.CONNECTED)
                bugs.append(ZeroDivisionError())
                server.socket.send_text("{}")
                await line.result()
        assert isinstance(raised.value.__cause__, UnexpectedFailure)
        assert isinstance(raised.value.__cause__.__cause__, ZeroDivisionError)
        assert "the open source raised ZeroDivisionError" in caplog.text
        assert "Traceback" in caplog.text
        assert await left_behind() == []


# --- what is told ------------------------------------------------------------------------------------------------


async def test_a_servers_words_are_escaped_in_the_log(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "towline")
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.send_text(
                json.dumps({"type": "job_progress", "payload": {"progress": 2, "status": "\x1b[31m"}})
            )
            server.socket.close(4000, "bye\r\n\x1b]0;owned\x07\u202egnp")
            await line.wait_for(State.RECONNECTING, timeout=5)
    text = "".join(record.getMessage() for record in caplog.records if record.name == "towline")
    assert "bye" in text
    assert text.isprintable()


async def test_a_frame_that_cannot_be_read_is_skipped_without_a_gap(follow: Follow) -> None:
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            job.silent = True
            job.progress(0.1)
            job.silent = False
            bad = {"type": "job_progress", "jobId": "j1", "seq": 1, "epoch": "e1", "payload": {"progress": "much"}}
            server.socket.send_text(json.dumps(bad))
            job.complete(RESULT)
            assert [type(update) async for update in line] == [JobComplete]
            assert (line.statistics().malformed_messages, line.statistics().gaps) == (1, 0)


async def test_a_wait_for_a_state_does_not_miss_a_short_visit(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)

            async def wait() -> None:
                assert await line.wait_for(State.SYNCING, timeout=60) is State.SYNCING

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(0.1)
                server.socket.cut()
            with pytest.raises(DeadlineExceeded):
                await line.wait_for(State.EXHAUSTED, timeout=2)


async def test_handlers_that_raise_or_lag_never_stop_it(follow: Follow) -> None:
    seen: list[Progress] = []
    ends: list[AnyUpdate] = []

    async def slow(update: AnyUpdate) -> None:
        (seen if isinstance(update, Progress) else ends).append(update)
        await anyio.sleep(1)
        raise RuntimeError("mine")

    def broken(change: towline.StateChange) -> None:
        raise RuntimeError("mine")

    async with scripted() as (server, job):
        async with follow(server, on_update=slow, on_state=broken) as line:
            await line.wait_for(State.CONNECTED)
            for number in range(2000):
                job.progress(number / 2000, processed=number)
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
            job.complete(RESULT)
            await line.result()
            await anyio.sleep(500)
            assert len(seen) <= 258
            assert seen[-1].processed_count == 1999
            assert sum(update.merged for update in seen) == 2000
            assert isinstance(ends[-1], JobComplete)
            assert line.statistics().handler_errors >= len(seen)
