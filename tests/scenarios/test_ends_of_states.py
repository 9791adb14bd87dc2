"""A stream that never says how its job ended: the state does, and another call has the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import pytest
from job_server import JobServer, Reply, each
from msgspec.structs import replace
from scenario import LONG, fractions, gaps, run

from towline import Connection, Exhausted, JobComplete, Progress
from towline._facts import (
    Answer,
    Ask,
    Ended,
    Follow,
    GetResult,
    GetState,
    InStepAt,
    Item,
    Line,
    Means,
    Request,
    ServerEvent,
)
from towline.protocols import EventStream

pytestmark = pytest.mark.anyio


def progress_only(message: Any) -> Any:
    """What the stream shows: the server leaves the end out."""
    meant = each(message)
    return meant if isinstance(meant, Progress) else None


@dataclass(frozen=True)
class Run(EventStream):
    """Its state says that it has ended, and `/result` how."""

    replays_end: ClassVar[bool] = True

    def ask(self, want: Any, token: Any) -> Request | None:
        if isinstance(want, GetResult):
            return self.call("/result", token)
        return super().ask(want, token)

    def read(self, want: Any, received: Any) -> Any:
        match want, received:
            case Follow(), ServerEvent("error"):
                return (Means("ended"),)
            case GetState(), Answer(200, body=body) if b"end" in body:
                return (Ended(JobComplete(problem="no result")), Ask(GetResult(JobComplete())))
            case GetResult(), Answer(200, body=body):
                return (Ended(JobComplete(result=body.decode())),)
        return super().read(want, received)


@dataclass(frozen=True)
class Forgetful(Run):
    """Its stream does not show again what came before the end."""

    replays_end: ClassVar[bool] = False


class Server(JobServer):
    """A job server with `/result`, which fails `failures` times; `broken` refuses new streams."""

    def __init__(self) -> None:
        super().__init__("events")
        self.failures = 0
        self.broken = False
        self.refusal = self.answer

    def answer(self, asked: Any) -> Reply | None:
        if asked.path == "/result":
            self.failures -= 1
            return Reply(503) if self.failures >= 0 else Reply(200, 42)
        return Reply(503) if self.broken and asked.path == "/events" else None


def followed(kind: type[Run] = Run) -> Run:
    return kind("http://hub/events", progress_only, state="/state")


async def lost_end(server: Server, kind: type[Run] = Run) -> tuple[Connection, list[Any]]:
    """The link is lost, and what is left of the job happens before the next one."""

    async def story(connection: Connection) -> None:
        server.progress(1)
        await anyio.sleep(LONG)
        server.cut()
        for done in (2, 3):
            server.progress(done)
        server.end()

    return await run(server, story, protocol=followed(kind))


async def test_an_end_that_only_the_state_knows_waits_for_what_came_before() -> None:
    async with Server() as server:
        _, told = await lost_end(server)
        assert fractions(told) == [0.1, 0.2, 0.3]
        assert gaps(told) == []
        assert told[-1].result == "42"


async def test_where_nothing_comes_again_the_end_comes_at_once_with_a_report() -> None:
    async with Server() as server:
        _, told = await lost_end(server, Forgetful)
        assert fractions(told) == [0.1]
        assert [(gap.kind, gap.missed) for gap in gaps(told)] == [("end", None)]
        assert told[-1].result == "42"
        assert len([asked for asked in server.requests if asked.path == "/events"]) == 1


async def test_an_ordinary_end_of_the_stream_is_proved_by_an_empty_one() -> None:
    """A proxy may have ended the first one."""
    async with Server() as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.end()

        _, told = await run(server, story, protocol=followed())
        assert fractions(told) == [0.1]
        assert gaps(told) == []
        assert isinstance(told[-1], JobComplete)
        assert len([asked for asked in server.requests if asked.path == "/events"]) == 2


async def test_an_end_does_not_wait_for_a_stream_that_is_refused_again_and_again() -> None:
    async with Server() as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.broken = True
            server.cut()
            server.progress(2)
            server.end()

        _, told = await run(server, story, protocol=followed())
        assert fractions(told) == [0.1]
        assert [(gap.kind, gap.missed) for gap in gaps(told)] == [("end", None)]
        assert isinstance(told[-1], JobComplete)


async def test_an_end_instead_of_a_stream_costs_that_attempt() -> None:
    """The answer to the request for a stream says that the job has ended: each time, as the stream is over."""

    class Answered(Run):
        def read(self, want: Any, received: Any) -> Any:
            if isinstance(want, Follow) and isinstance(received, Answer):
                return (Ended(JobComplete(result="said at once")),)
            facts = super().read(want, received)
            return [replace(fact, at=None) if isinstance(fact, Item) else fact for fact in facts]  # it has no ids

    async with Server() as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.refusal = lambda asked: Reply(200, {"end": True}) if asked.path == "/events" else Reply(503)
            server.cut()

        _, told = await run(server, story, protocol=followed(Answered))
        assert [(gap.kind, gap.missed) for gap in gaps(told)] == [("end", None)]
        assert told[-1].result == "said at once"


async def test_giving_up_takes_the_end_that_the_state_says() -> None:
    """No other link comes then, so the end does not wait for one."""
    async with Server() as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            answer = server.answer
            server.refusal = lambda asked: Reply(403) if asked.path == "/events" else answer(asked)
            server.cut()
            server.end()

        _, told = await run(server, story, protocol=followed())
        assert fractions(told) == [0.1]
        assert [(gap.kind, gap.missed) for gap in gaps(told)] == [("end", None)]
        assert told[-1].result == "42"


async def test_a_stream_that_says_that_the_job_has_ended_needs_no_proof() -> None:
    class Saying(Server):
        async def _send_all(self, link: Any, sent: int, framed: Any) -> None:
            await super()._send_all(link, sent, framed)
            data = b"event: error\ndata: 0\n\n"
            await link.server.send(b"%x\r\n%b\r\n" % (len(data), data))

    async with Saying() as server:

        async def story(connection: Connection) -> None:
            server.progress(1)
            await anyio.sleep(LONG)
            server.end()

        _, told = await run(server, story, protocol=followed())
        assert [type(update) for update in told] == [Progress, JobComplete]
        assert len([asked for asked in server.requests if asked.path == "/events"]) == 1


@dataclass(frozen=True)
class Live(EventStream):
    """Its stream begins with what comes next, and says that the job has ended but not how."""

    in_step: InStepAt = "first_fact"
    replays_end: bool = False

    def ask(self, want: Any, token: Any) -> Request | None:
        asked = super().ask(want, token)
        return replace(asked, in_step=self.in_step) if isinstance(want, Follow) and asked is not None else asked

    def read(self, want: Any, received: Any) -> Any:
        if isinstance(want, Follow) and isinstance(received, Line) and "end" in received.text:
            return (Means("ended"),)
        return super().read(want, received)


class Terse(JobServer):
    """A stream that begins after the end is empty."""

    def _first_of(self, asked: Any) -> int:
        return len(self.log)


@pytest.mark.parametrize("replays_end", [False, True])
@pytest.mark.parametrize("in_step", ["open", "first_fact", "state"])
async def test_a_new_stream_that_says_only_that_the_job_has_ended_leaves_a_gap(
    in_step: InStepAt, replays_end: bool
) -> None:
    async with Terse("lines") as server:

        async def story(connection: Connection) -> None:
            await server.wait_requests(1, "/lines")
            await anyio.sleep(1)
            server.progress(1)
            await anyio.sleep(LONG)
            server.cut()
            server.progress(2)
            await server.wait_requests(2, "/lines")
            await anyio.sleep(1)
            server.end()

        protocol = Live("http://hub/lines", each, via="lines", state="/state", in_step=in_step, replays_end=replays_end)
        _, told = await run(server, story, protocol=protocol, first=False)
        assert fractions(told) == ([0.1, 0.2] if in_step == "state" else [0.1])
        assert [gap.missed for gap in gaps(told)] == [None]
        assert isinstance(told[-1], JobComplete)


async def test_a_stream_that_has_ended_of_a_job_that_the_state_does_not_know_is_gone() -> None:
    async with Server() as server:
        server.refusal = lambda asked: Reply(404) if asked.path == "/state" else Reply(204)

        @dataclass(frozen=True)
        class Ending(Run):
            def read(self, want: Any, received: Any) -> Any:
                is_end = isinstance(want, Follow) and isinstance(received, Answer)
                return (Means("ended"),) if is_end else super().read(want, received)

        async with server.follow(followed(Ending)) as connection:
            with pytest.raises(Exhausted) as caught:
                await connection.result()
        assert caught.value.reason == "gone"


@pytest.mark.parametrize(("failures", "result", "problem"), [(2, "42", None), (1000, None, "no result")])
async def test_a_state_is_asked_again_until_the_call_that_completes_it_works_but_not_for_ever(
    failures: int, result: Any, problem: str | None
) -> None:
    async with Server() as server:
        server.failures = failures
        _, told = await lost_end(server)
        assert fractions(told) == [0.1, 0.2, 0.3]
        assert (told[-1].result, told[-1].problem) == (result, problem)
