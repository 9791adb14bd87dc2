"""The conformance kit: the built-in protocols hold on real recordings, and each broken protocol is found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from towline import InvalidArgument, JobComplete, JobFailed, Progress
from towline._facts import (
    Answer,
    Closed,
    Ended,
    Fact,
    Follow,
    GetState,
    Item,
    Line,
    Mark,
    Means,
    Promise,
    Protocol,
    Received,
    Request,
    ServerEvent,
    Want,
)
from towline._secret import Secret
from towline.protocols import (
    A2ATask,
    EventStream,
    LangGraphRun,
    MCPTask,
    Messages,
    OpenAIResponse,
    Polling,
    Towline,
)
from towline.protocols._shared.recording import dump_line
from towline.testing import ProtocolReport, check_protocol, virtual_time_backends

RECORDED = Path(__file__).parent / "recorded"
URL = "http://127.0.0.1:8471/jobs/2/events"
HUB = "ws://127.0.0.1:8472/ws/progress"


def each(message: Any) -> Any:
    """The function of docs/own-server.md."""
    match message:
        case {"event": "progress", "percent": percent}:
            return Progress(fraction=percent / 100)
        case {"event": "done", "result": result}:
            return JobComplete(result=result)
    return None


@dataclass(frozen=True)
class Log(EventStream):
    """The events of a server that keeps its log, as a user would declare it."""

    promise: ClassVar[Promise] = "exact"  # type: ignore[assignment, misc]


AZURE = "http://127.0.0.1:26510"
FASTMCP = "http://127.0.0.1:22173/mcp"
AGENT = "http://127.0.0.1:20513"
LANGGRAPH = "http://127.0.0.1:31825"

#: The servers of others are the programs in tests/protocols/system, recorded with `towline watch --record`.
BUILT_IN: dict[str, tuple[Protocol, str]] = {
    "towline": (Towline(HUB, "job-1"), "hub"),
    "towline, ended before": (Towline(HUB, "job-1"), "hub-finished"),
    "messages": (Messages("ws://127.0.0.1:8471/jobs/1/ws", each), "messages"),
    "event_stream": (EventStream(URL, each), "events"),
    "event_stream, exact": (Log(URL, each), "events"),
    "polling": (Polling("http://127.0.0.1:8471/jobs/3", each), "polling"),
    "openai_response": (OpenAIResponse("caresp_26176d36b925a87900j3Rjfm0rFJqErPcIBbxpUrMEgrvCY1BG", AZURE), "openai"),
    "openai_response, failed": (
        OpenAIResponse("caresp_6d1056fa101bfe1a00DzFiGaclZBnvudzBDtFVWGMbH7APtcJx", AZURE),
        "openai-failed",
    ),
    "mcp_task": (MCPTask("http://127.0.0.1:22291/mcp", "ScmDXBvAzCPOP17IB_Vda7rtZTZt8yWeknEho6MXLfw"), "mcp"),
    "mcp_task, failed": (MCPTask(FASTMCP, "bpQvxxmrTNRcP8CI-WmLwl_gLomWsgC4gQiABCkrzMw"), "mcp-failed"),
    "a2a_task": (A2ATask(AGENT, "7ddc544b-dc26-4493-8f05-fca570926455"), "a2a"),
    "a2a_task, failed": (A2ATask(AGENT, "c75f7138-11fb-4e4d-9fae-53b84448fb05"), "a2a-failed"),
    "langgraph_run": (
        LangGraphRun(LANGGRAPH, "01a22a6d-07c0-75d7-9836-b132c071e3cd", "01a22a6d-0820-7260-af84-f74afa4bc098"),
        "langgraph",
    ),
    "langgraph_run, not resumable": (
        LangGraphRun(
            LANGGRAPH, "01a22a6d-23d8-778d-a08c-58dd1a6f54f4", "01a22a6d-243c-7783-a106-f7d4820dcb7b", resumable=False
        ),
        "langgraph-not-resumable",
    ),
    "langgraph_run, failed": (
        LangGraphRun(LANGGRAPH, "01a22a6d-5090-72cd-a852-c5874038d692", "01a22a6d-5127-74e2-9748-c6b931b033a8"),
        "langgraph-failed",
    ),
}


@pytest.mark.parametrize(("place", "name"), list(enumerate(BUILT_IN)))
def test_a_built_in_protocol_holds_on_a_real_recording(place: int, name: str) -> None:
    """The event loops take turns, because a check takes a second or two."""
    backends = virtual_time_backends()
    backend = backends[place % len(backends)]
    protocol, recording = BUILT_IN[name]
    report = check_protocol(protocol, RECORDED / f"{recording}.jsonl", backend=backend)
    report.raise_for_findings()
    assert report.findings == []
    assert report.runs > 30
    assert report.received == len((RECORDED / f"{recording}.jsonl").read_text().splitlines())


def test_a_stream_of_lines_whose_end_only_the_state_says() -> None:
    """Half of the lines are lost with the cut, and a state call says the end: both are played."""
    follow = Follow("lines")
    said: list[tuple[Want, Received]] = [
        (follow, Line(f'{{"event": "progress", "percent": {percent}}}')) for percent in (25, 50, 75)
    ]
    said.insert(2, (GetState(), Answer(200, {}, b'{"event": "progress", "percent": 50}')))
    said.append((follow, Closed()))
    said.append((GetState(), Answer(200, {}, b'{"event": "done", "result": 1}')))
    protocol = EventStream("http://h/lines", each, via="lines", state="/state")
    check_protocol(protocol, [dump_line(*one) for one in said]).raise_for_findings()


# --- broken protocols ----------------------------------------------------------------------------------------------


class DropsTheEnd(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        return tuple(fact for fact in super().read(want, received) if not isinstance(fact, Ended))


class DropsTheEndAfterAResume(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        resumed = isinstance(want, Follow) and want.after is not None
        return tuple(fact for fact in super().read(want, received) if not (resumed and isinstance(fact, Ended)))


class DropsAnUpdate(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        resumed = isinstance(want, Follow) and want.after == Mark("2")
        return tuple(fact for fact in super().read(want, received) if not (resumed and isinstance(fact, Item)))


class LosesTheCursor(Log):
    def ask(self, want: Want, token: Secret | None) -> Request | None:
        return super().ask(Follow(want.via) if isinstance(want, Follow) else want, token)


class RepeatsWithoutPosition(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        return super().read(want, replace(received, id=None) if isinstance(received, ServerEvent) else received)


class HasOnePosition(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        return super().read(want, replace(received, id="1") if isinstance(received, ServerEvent) else received)


class HasHugePositions(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        long = isinstance(received, ServerEvent) and bool(received.id)
        return super().read(want, replace(received, id=str(received.id) * 5000) if long else received)  # type: ignore[type-var, union-attr]


class RaisesOnNonsense(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        if isinstance(received, ServerEvent):
            received.data[1]
        return super().read(want, received)


class ReturnsNonsense(Log):
    def read(self, want: Want, received: Received) -> Any:
        return ["nonsense"] if isinstance(received, Answer) else super().read(want, received)


class NeverStops(Log):
    def read(self, want: Want, received: Received) -> Any:
        return itertools.repeat(Item(None)) if isinstance(received, Closed) else super().read(want, received)


class AsksAnotherOrigin(Log):
    def ask(self, want: Want, token: Secret | None) -> Request | None:
        asked = super().ask(want, token)
        is_resumed = isinstance(want, Follow) and want.after is not None
        return replace(asked, url="http://elsewhere/events") if asked is not None and is_resumed else asked


class AskRaises(Log):
    def ask(self, want: Want, token: Secret | None) -> Request | None:
        if isinstance(want, GetState):
            raise KeyError("state")
        return super().ask(want, token)


class AsksNothing(Log):
    def ask(self, want: Want, token: Secret | None) -> Request | None:
        return None


class PutsTheTokenInTheURL(Log):
    def ask(self, want: Want, token: Secret | None) -> Request | None:
        asked = super().ask(want, token)
        secret = None if asked is None or token is None else Secret(f"{URL}?key={token.reveal()}")
        return asked if asked is None or secret is None else replace(asked, url=secret)


class ShowsTheToken(Log):
    def ask(self, want: Want, token: Secret | None) -> Request | None:
        asked = super().ask(want, token)
        if asked is None or token is None:
            return asked
        return replace(asked, headers=(*asked.headers, ("X-Key", token.reveal())))


@dataclass(frozen=True)
class Remembers(Log):
    """Drops what it has read before, as it does the numbering itself."""

    seen: set[str] = field(default_factory=set, hash=False, compare=False)

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        if isinstance(received, ServerEvent):
            if received.data in self.seen:
                return ()
            self.seen.add(received.data)
        return super().read(want, received)


@dataclass(frozen=True)
class CountsRequests(Log):
    """Asks another request each time."""

    asked: list[int] = field(default_factory=list, hash=False, compare=False)

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        self.asked.append(1)
        asked = super().ask(want, token)
        return None if asked is None else replace(asked, headers=(*asked.headers, ("X-Count", str(len(self.asked)))))


class TakesACloseForTheEnd(Log):
    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        return (Ended(JobComplete()),) if isinstance(received, Closed) else super().read(want, received)


class GivesUpAt(Log):
    status: ClassVar[int]
    means: ClassVar[Fact] = Means("refused")

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        if isinstance(received, Answer) and received.status == self.status:
            return (self.means,)
        return super().read(want, received)


class GivesUpAt401(GivesUpAt):
    status = 401


class GivesUpAt429(GivesUpAt):
    status = 429


class GivesUpAt503(GivesUpAt):
    status = 503


class TakesA404ForAFailure(GivesUpAt):
    status = 404
    means = Ended(JobFailed(code="gone"))


BROKEN: list[tuple[type[Log], str]] = [
    (DropsTheEnd, "an end of the job (`Ended`), but `read` found none"),
    (DropsTheEndAfterAResume, "the job's end, once and last"),
    (DropsAnUpdate, 'every update, because the promise is exact, but {"type":"progress"'),
    (LosesTheCursor, "a request that names the position, but it is the same as from the start"),
    (LosesTheCursor, "no gap, because the promise is exact"),
    (RepeatsWithoutPosition, 'every update at most once and in order, but {"type":"progress","fraction":0.25} came'),
    (HasOnePosition, "every update, because the promise is exact"),
    (HasHugePositions, "a position of at most 4 KiB"),
    (RaisesOnNonsense, "`read` raised IndexError: string index out of range"),
    (ReturnsNonsense, "`read` returned 1 things, such as 'nonsense'"),
    (NeverStops, "`read` returned 10001 things"),
    (
        AsksAnotherOrigin,
        "the protocol's own origin, the only one that the token may go to, but it goes to http://elsewhere",
    ),
    (AskRaises, "a `Request` or None, but `ask` raised KeyError: 'state'"),
    (AsksNothing, "but `ask` returned None"),
    (PutsTheTokenInTheURL, "it is there: servers log URLs"),
    (ShowsTheToken, "the token only inside of a `Secret`"),
    (Remembers, "the same facts as before, because `read` keeps nothing between two calls"),
    (CountsRequests, "the same request as before, because `ask` keeps nothing"),
    (TakesACloseForTheEnd, 'the end that was recorded, but it was {"type":"job_complete"'),
    (GivesUpAt401, "Answered the request to follow at the start with 401: expected the job's end"),
    (GivesUpAt429, "Answered the request to follow at the start with 429: expected the job's end"),
    (GivesUpAt503, "Answered the request to follow at the start with 503 and 503: expected the job's end"),
    (TakesA404ForAFailure, 'the end that was recorded, but it was {"type":"job_failed"'),
]


@pytest.mark.parametrize(("kind", "words"), BROKEN)
def test_a_broken_protocol_is_found(kind: type[Log], words: str) -> None:
    report = check_protocol(kind(URL, each), RECORDED / "events.jsonl")
    assert any(part in str(report) for part in words.split("|")), report
    assert len(report.findings) < 8, "each expectation is reported once"
    with pytest.raises(AssertionError) as caught:
        report.raise_for_findings()
    assert str(caught.value) == str(report)


def test_an_exact_promise_without_positions_is_found() -> None:
    class Pretends(Messages):
        promise: ClassVar[Promise] = "exact"  # type: ignore[assignment, misc]

    report = check_protocol(Pretends("ws://h/ws", each), RECORDED / "messages.jsonl")
    assert "every update at most once and in order" in str(report)


def test_a_gap_that_is_not_reported_is_found() -> None:
    """The server goes on at the position, so the engine has no gap to report; the protocol has."""

    class Drops(EventStream):
        def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
            dropped = isinstance(want, Follow) and want.after == Mark("1") and isinstance(received, ServerEvent)
            return () if dropped and received.id == "2" else super().read(want, received)  # type: ignore[union-attr]

    report = check_protocol(Drops(URL, each), RECORDED / "events.jsonl")
    (finding,) = report.findings
    assert finding.expected == "a report of what may be missing (`Resynced`)"
    assert finding.done == "Cut before entry 2"
    assert finding.happened == '{"type":"progress","fraction":0.5} never came'


def test_an_update_that_is_lost_without_a_fault_is_found() -> None:
    class Merges(EventStream):
        def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
            repeats = isinstance(received, ServerEvent) and received.id == "3"
            return super().read(want, replace(received, id="2") if repeats else received)  # type: ignore[type-var]

    report = check_protocol(Merges(URL, each), RECORDED / "events.jsonl")
    assert "Following the job without faults: expected every update, because nothing went wrong" in str(report)


def test_a_finding_says_how_often() -> None:
    report = ProtocolReport("p", "exact")
    report.note("Cut after 1 entries", "the end", "there was none")
    report.note("Cut after 2 entries", "the end", "it was another")
    assert [str(one) for one in report.findings] == [
        "Cut after 1 entries: expected the end, but there was none (2 times)"
    ]


@pytest.mark.parametrize("lines", [["nonsense"], ['{"want":{"type":"state"}}']])
def test_a_file_that_is_no_recording(lines: Iterable[str]) -> None:
    with pytest.raises(InvalidArgument, match="line 1 is not a line of a recording"):
        check_protocol(Log(URL, each), lines)
