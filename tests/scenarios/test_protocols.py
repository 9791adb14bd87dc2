"""What a protocol may ask for and get wrong: sources, refused cursors, waits, messages, other origins, nonsense."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import pytest
from job_server import JobServer, LateEvents, Reply, each
from scenario import LONG, check, fractions, gaps, run

from towline import (
    Connection,
    Exhausted,
    InvalidArgument,
    JobComplete,
    Output,
    Policy,
    Progress,
    ProtocolFailed,
    Resynced,
    State,
)
from towline._facts import Answer, Ended, Follow, Item, Means, Message, Request, Send, ServerEvent, Via, Wait
from towline.protocols import EventStream, Messages, Polling

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Both:
    """Events, or polls where events are refused with 400."""

    url: str = "http://hub/events"

    name: ClassVar[str] = "both"
    job: ClassVar[str] = "j1"
    promise: ClassVar[str] = "end exact"
    sources: ClassVar[tuple[Via, ...]] = ("events", "poll")

    def ask(self, want: Any, token: Any) -> Request | None:
        if not isinstance(want, Follow):
            return None
        if want.via == "poll":
            return Polling("http://hub/poll", each).ask(want, token)
        return EventStream(self.url, each).ask(want, token)

    def read(self, want: Any, received: Any) -> Any:
        if want.via == "poll":
            return Polling("http://hub/poll", each).read(want, received)
        if isinstance(received, Answer) and received.status == 400:
            return (Means("source"),)
        return EventStream(self.url, each).read(want, received)


async def test_a_source_that_is_refused_gives_way_to_the_next_and_is_not_asked_again() -> None:
    async with JobServer("poll") as server:
        server.refusal = lambda asked: Reply(400) if asked.path == "/events" else None

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.refusal = lambda asked: None
            server.cut()
            await anyio.sleep(LONG)
            server.progress(2)
            await anyio.sleep(LONG)
            server.end()

        connection, told = await run(server, story, protocol=Both())
        assert fractions(told) == [0.1, 0.2]
        assert isinstance(told[-1], JobComplete)
        paths = [asked.path for asked in server.requests]
        assert paths.count("/events") == 1
        assert paths[0] == "/events"
        assert connection.statistics().retries <= 1


class Replaying(LateEvents):
    replays_end: ClassVar[bool] = True


@pytest.mark.parametrize("kind", [LateEvents, Replaying])
async def test_a_stream_that_says_nothing_does_not_hide_an_end(kind: Any) -> None:
    """A frozen server, or one that sends the end only to those who were there."""
    async with JobServer("events") as server:
        async with server.follow(kind("http://hub/events", each, state="/state")) as connection:
            await connection.wait_for(State.SYNCING)
            server.log.append({"end": 5})  # no stream is told
            with anyio.fail_after(60):
                end = await connection.result()
        assert isinstance(end, JobComplete)
        assert end.result == 5
        assert end.seq is None


@pytest.mark.parametrize("state", ["/state", "/none", None])
async def test_a_stream_that_says_nothing_is_in_step_after_a_while(state: str | None) -> None:
    async with JobServer("events") as server:
        async with server.follow(LateEvents("http://hub/events", each, state=state)) as connection:
            await connection.wait_for(State.SYNCING)
            await connection.wait_for(State.CONNECTED, timeout=30)
            server.progress(1)
            server.end()
            with anyio.fail_after(5):
                assert isinstance(await connection.result(), JobComplete)
        assert [asked.path for asked in server.requests if asked.path == "/events"] == ["/events"]


async def test_an_end_that_only_the_state_tells_comes_soon_after_a_reconnect() -> None:
    """A server that sends what is new to those who are there, and closes no stream at the end."""
    async with JobServer("events") as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.cut()
            await connection.wait_for(State.SYNCING)
            server.log.append({"end": 5})  # no stream is told
            began = anyio.current_time()
            await connection.result()
            assert anyio.current_time() - began < 15

        _, told = await run(server, story, protocol=EventStream("http://hub/events", each, state="/state"))
        assert isinstance(told[-1], JobComplete)


async def test_an_end_that_is_the_first_fact_after_a_reconnect_tells_of_the_gap() -> None:
    async with JobServer("lines") as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.cut()
            server.progress(2)
            await connection.wait_for(State.SYNCING)
            server.end()

        _, told = await run(server, story, protocol=EventStream("http://hub/lines", each, via="lines", state="/state"))
        assert [type(update) for update in told] == [Progress, Resynced, JobComplete]
        assert told[1].kind == "end"


@pytest.mark.parametrize("brings_news", [True, False])
async def test_a_stream_that_is_ended_again_and_again_is_followed_while_it_brings_news(brings_news: bool) -> None:
    """A gateway that lets no response last for 30 s, or a watch with a time limit."""
    async with JobServer("events") as server:

        async def story(connection: Connection) -> None:
            for number in range(50):
                if brings_news:
                    server.publish(log=str(number))
                await anyio.sleep(LONG)
                server.finish_streams()
            server.end()

        if brings_news:
            _, told = await run(server, story)
            assert [update.value for update in told if isinstance(update, Output)] == [str(n) for n in range(50)]
            assert isinstance(told[-1], JobComplete)
        else:
            with pytest.raises(ExceptionGroup) as caught:
                await run(server, story)
            assert caught.group_contains(Exhausted, match="budget")


async def test_a_first_fact_needs_no_state() -> None:
    async with JobServer("events") as server:
        server.progress(1)
        async with server.follow(LateEvents("http://hub/events", each, state="/state")) as connection:
            await connection.wait_for(State.CONNECTED)
            await anyio.sleep(LONG)
            server.end()
            await connection.result()
        assert [asked.path for asked in server.requests] == ["/events"]


async def test_without_another_source_a_refusal_ends_by_name() -> None:
    @dataclass(frozen=True)
    class Only(Both):
        sources: ClassVar[tuple[Via, ...]] = ("events",)

    async with JobServer("events") as server:
        server.refuse(400)
        async with server.follow(Only()) as connection:
            with pytest.raises(Exhausted) as caught:
                await connection.result()
        assert caught.value.reason == "protocol"
        assert len(server.requests) == 1


async def test_a_refused_cursor_is_left_out_once_and_the_gap_is_reported() -> None:
    async with JobServer("events") as server:

        async def story(connection: Connection) -> None:
            for done in (1, 2):
                server.progress(done)
                await anyio.sleep(LONG)
            server.refusal = lambda asked: Reply(410) if "last-event-id" in asked.headers else None
            server.log = [{"other": 1}, {"other": 2}, {"done": 5}]  # ids begin again
            server.cut()
            await anyio.sleep(LONG)
            server.refusal = lambda asked: None
            server.progress(6)
            await anyio.sleep(LONG)
            server.end()

        _, told = await run(server, story)
        assert fractions(told) == [0.1, 0.2, 0.5, 0.6]
        assert [(report.kind, report.missed) for report in gaps(told)] == [("unavailable", None)]
        assert [asked.headers.get("last-event-id") for asked in server.requests] == [None, "2", None]


async def test_retry_of_an_event_stream_lengthens_the_wait() -> None:
    async with JobServer("events") as server:
        server.retry = 45

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.cut()
            cut = anyio.current_time()
            await server.wait_requests(2)
            assert server.requests[-1].at - cut >= 45
            server.end()

        _, told = await run(server, story)
        check(server, told)


@pytest.mark.parametrize(("asked_for", "least", "most"), [(-5.0, 0.25, 0.5), (7.0, 7.0, 8.0), (1e9, 3600.0, 3961.0)])
async def test_a_wait_of_a_poll_is_bounded(asked_for: float, least: float, most: float) -> None:
    @dataclass(frozen=True)
    class Patient(Polling):
        def read(self, want: Any, received: Any) -> Any:
            return (*super().read(want, received), Wait(asked_for))

    async with JobServer("poll") as server:
        # A silence would be looked into sooner than after the longest wait.
        policy = Policy(stall_after=(10_000.0,))
        async with server.follow(Patient("http://hub/poll", each), policy=policy) as connection:
            await server.wait_requests(3)
            times = [asked.at for asked in server.requests]
            for before, after in itertools.pairwise(times):
                assert least <= after - before <= most
            server.end()
            assert isinstance(await connection.result(), JobComplete)


def page(asked: object) -> Reply:
    return Reply(200, b"<html>Sign in</html>", {"content-type": "text/html"})


@pytest.mark.parametrize("function", [None, each])
async def test_a_page_in_place_of_an_answer_is_a_failed_poll(function: Any) -> None:
    """And no end of the job, also without a function, where any other 200 is the result."""
    async with JobServer("poll") as server:
        server.refusal = lambda asked: Reply(202)
        async with server.follow(Polling("http://hub/poll", function)) as connection:
            await connection.wait_for(State.CONNECTED)
            server.refusal = page
            await connection.wait_for(State.RECONNECTING)
            await server.wait_requests(len(server.requests) + 1)
            assert connection.outcome is None
            server.refusal = lambda asked: Reply(200, {"end": 5})
            end = await connection.result()
            assert isinstance(end, JobComplete)


async def test_a_page_at_first_contact_ends_by_name() -> None:
    async with JobServer("poll") as server:
        server.refusal = page
        async with server.follow(Polling("http://hub/poll", each)) as connection:
            with pytest.raises(Exhausted, match="answered HTTP status 200: it is not JSON") as caught:
                await connection.result()
            assert caught.value.reason == "protocol"
            assert len(server.requests) == 1


async def test_a_message_that_a_protocol_sends_reaches_the_server() -> None:
    @dataclass(frozen=True)
    class Polite(Messages):
        def read(self, want: Any, received: Any) -> Any:
            facts = super().read(want, received)
            return (*facts, Send('{"thanks": true}')) if isinstance(received, Message) and len(facts) else facts

    async with JobServer("websocket") as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.end()

        await run(server, story, protocol=Polite("ws://hub/ws", each))
        assert {"heard": '{"thanks": true}'} in server.log


def raises(facts: Any) -> Any:
    raise LookupError("a bug")


def is_nonsense(facts: Any) -> Any:
    return ["nonsense"]


def goes_on(facts: Any) -> Any:
    return itertools.repeat(Item(Progress(fraction=0.5)))


@pytest.mark.parametrize("fault", [raises, is_nonsense, goes_on])
async def test_a_protocol_that_fails_costs_attempts_and_is_the_cause(server: JobServer, fault: Any) -> None:
    base = type(server.protocol())

    class Faulty(base):  # type: ignore[misc, valid-type]
        def read(self, want: Any, received: Any) -> Any:
            facts = super().read(want, received)
            return fault(facts) if any(isinstance(fact, Item) or fact_has_news(fact) for fact in facts) else facts

    protocol = server.protocol()
    faulty = object.__new__(Faulty)
    faulty.__dict__.update(protocol.__dict__)
    server.progress(1)
    async with server.follow(faulty) as connection:
        async with anyio.create_task_group() as tasks:

            async def speak() -> None:
                while True:
                    server.progress(1)
                    await anyio.sleep(5)

            tasks.start_soon(speak)
            with pytest.raises(Exhausted) as caught:
                await connection.result()
            tasks.cancel_scope.cancel()
    assert caught.value.reason in ("budget", "protocol")
    assert isinstance(caught.value.__cause__, ProtocolFailed)
    assert faulty.name in str(caught.value.__cause__)


def fact_has_news(fact: Any) -> bool:
    return bool(getattr(fact, "updates", ()))


async def test_an_end_that_was_read_before_a_fault_stands() -> None:
    @dataclass(frozen=True)
    class Breaking(EventStream):
        def read(self, want: Any, received: Any) -> Any:
            for fact in super().read(want, received):
                yield fact
                if isinstance(fact, Ended) and isinstance(received, ServerEvent):
                    raise LookupError("a bug")

    async with JobServer("events") as server:
        server.end()
        async with server.follow(Breaking("http://hub/events", each)) as connection:
            assert isinstance(await connection.result(), JobComplete)


async def test_a_request_to_another_origin_is_refused_by_name(server: JobServer) -> None:
    base = type(server.protocol())

    class Elsewhere(base):  # type: ignore[misc, valid-type]
        def ask(self, want: Any, token: Any) -> Any:
            asked = super().ask(want, token)
            return None if asked is None else Request(via=asked.via, url="http://elsewhere/job", headers=asked.headers)

    elsewhere = object.__new__(Elsewhere)
    elsewhere.__dict__.update(server.protocol().__dict__)
    async with server.follow(elsewhere, token="t1") as connection:
        with pytest.raises(Exhausted) as caught:
            await connection.result()
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert "elsewhere" in str(caught.value.__cause__)
    assert server.network.dials == []
