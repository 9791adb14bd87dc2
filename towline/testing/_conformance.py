"""The conformance kit: checks a protocol against what a real server said, and against what it promises.

It asks and reads with the protocol alone, then follows the recorded job again and again with a real `Connection`, in
memory and virtual time, each time with one thing that goes wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, get_args

import anyio
from msgspec import Struct, field, json
from msgspec.structs import replace

from .. import _facts as f
from .._connection import Connection
from .._exceptions import Exhausted, InvalidArgument, MalformedMessage, TowlineError
from .._facts import Fact, Follow, GetState, Protocol, Received, Want, is_resumed
from .._secret import Secret, revealed
from .._updates import JobComplete, Outcome, Resynced, Stalled, Update, without_place
from ..protocols._shared.recording import load_lines
from ..storage import MemoryTokenStore
from ..transport import Origin, parse_url
from ._clocks import run_virtual
from ._controlled import controlled
from ._played_server import Fault, Numbering, Plan, PlayedServer, Story

#: The most places of a recording that runs are cut at.
_PLACES: Final = 100
#: Virtual seconds until a run counts as endless.
_ENDLESS: Final = 2 * 3600.0
#: The longest position that a store keeps, in bytes, and the most facts of one message.
_CURSOR_LIMIT: Final = 4096
_FACTS_LIMIT: Final = 10_000
#: Answers after which the job is followed to its end, and those that may also end the following.
_PASSING: Final[tuple[tuple[Fault, ...], ...]] = ((401,), (429,), (503, 503), ("slowly",), ("never",))
_FINAL: Final[tuple[tuple[Fault, ...], ...]] = ((404,), (410,), (404,) * 50, (410,) * 50)
_TOKEN: Final = "kit-token-"

_FACTS: Final = get_args(Fact)
_OUTCOMES: Final = get_args(Outcome)
_DAMAGED: Final = ("", " ", "{", "null", "[]", "7", '"text"', '{"a":', "<!doctype html><html><body>503</body></html>")
_SCHEMES: Final = ("https", "http", "wss", "ws")


class Finding(Struct, frozen=True):
    """One thing that does not hold: what was done, what was expected, what happened, and in how many runs."""

    done: str
    expected: str
    happened: str
    times: int = 1

    def __str__(self) -> str:
        times = f" ({self.times} times)" if self.times > 1 else ""
        return f"{self.done}: expected {self.expected}, but {self.happened}{times}"


class ProtocolReport(Struct):
    """The result of `check_protocol`; msgspec writes it as JSON.

    `received` counts the lines of the recording, `runs` the times that the job was followed. `findings` is empty if the
    protocol holds what it promises. There is one finding for each expectation: the first case, and how often it failed.
    """

    protocol: str
    promise: str
    received: int = 0
    runs: int = 0
    findings: list[Finding] = field(default_factory=list)

    def raise_for_findings(self) -> None:
        """Raise `AssertionError` with all findings, if there are any."""
        if self.findings:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        count = len(self.findings)
        head = f"{self.protocol} ({self.promise}): {self.received} lines, {self.runs} runs, {count} findings"
        return "\n".join([head, *(f"- {finding}" for finding in self.findings)])

    def note(self, done: str, expected: str, happened: str) -> None:
        """Add a finding, or count it if the same was expected before."""
        for place, known in enumerate(self.findings):
            if known.expected == expected:
                self.findings[place] = replace(known, times=known.times + 1)
                return
        self.findings.append(Finding(done, expected, happened))


def check_protocol(
    protocol: Protocol, recording: str | os.PathLike[str] | Iterable[str], *, backend: str = "asyncio"
) -> ProtocolReport:
    """Check a protocol against a recording of a whole job: a path, or its lines.

    `protocol` has the address and the job that were recorded. Nothing is sent to them: the server is played in memory.
    The call runs an event loop of `backend`, so make it outside of one.

    What does not hold is in the report's `findings`. Raises `InvalidArgument` for a recording that cannot be read, and
    `OSError` for a file that cannot.
    """
    if isinstance(recording, str | os.PathLike):
        with Path(recording).open(encoding="utf-8") as file:
            said = list(load_lines(file))
    else:
        said = list(load_lines(recording))
    report = ProtocolReport(protocol.name, protocol.promise, len(said))
    story = _check_reading(protocol, said, report)
    if not story.ends:
        happened = "`read` found none: record the job until it ends"
        report.note("Reading the recording", "an end of the job (`Ended`)", happened)
    kinds = _check_asking(protocol, story, report)
    if story.ends and Follow in kinds:
        run_virtual(_Runs(protocol, story, report).run_all, kinds, backend=backend)
    return report


# --- reading -------------------------------------------------------------------------------------------------------


def _check_reading(protocol: Protocol, said: list[tuple[Want, Received]], report: ProtocolReport) -> Story:
    """Read the recording three times, and damaged messages once; returns the story of the first time."""
    story = Story()
    first = []
    for number, (want, received) in enumerate(said, 1):
        first.append(_read(protocol, want, received, f"Reading line {number}", report))
        story.take(want, received, first[-1] or ())
    again = [_read(protocol, *pair, "Reading again", report) for pair in reversed(said)]
    for number, (facts, other) in enumerate(zip(first, reversed(again), strict=True), 1):
        if facts != other:
            expected = "the same facts as before, because `read` keeps nothing between two calls"
            report.note(f"Reading line {number} a second time", expected, f"it said {_short(other)}")
    wants: list[Want] = [Follow(via) for via in protocol.sources]
    wants += [GetState(), f.CancelJob("key"), f.RefreshToken(), f.GetResult(JobComplete(result_url="/result"))]
    for want in wants:
        for received in _damaged(want, said):
            _read(protocol, want, received, f"Reading {_short(received)} as the answer to {_short(want)}", report)
    return story


def _read(
    protocol: Protocol, want: Want, received: Received, done: str, report: ProtocolReport
) -> tuple[Fact, ...] | None:
    """The facts; None for a message that cannot be read, which `MalformedMessage` says."""
    expected = "facts, or `MalformedMessage` for a message that cannot be read"
    try:
        facts = tuple(islice(protocol.read(want, received), _FACTS_LIMIT + 1))
    except MalformedMessage:
        return None
    except Exception as error:  # code of the user's may raise anything
        report.note(done, expected, f"`read` raised {type(error).__name__}: {error}")
        return None
    wrong = next((fact for fact in facts if not isinstance(fact, _FACTS)), None)
    if wrong is not None or len(facts) > _FACTS_LIMIT:
        report.note(done, expected, f"`read` returned {len(facts)} things, such as {_short(wrong or facts[0])}")
        return None
    return facts


def _damaged(want: Want, said: list[tuple[Want, Received]]) -> Iterator[Received]:
    texts = dict.fromkeys(_DAMAGED)
    for _, received in said[:_PLACES]:
        text = _text_of(received)
        texts |= dict.fromkeys((text[: len(text) // 2], text[:-1]))
    via = want.via if isinstance(want, Follow) else "call"
    for text in texts:
        if via == "websocket":
            yield from (f.Message(text), f.Message(text.encode()))
        elif via == "events":
            yield from (f.ServerEvent("", text), f.ServerEvent("message", text, ""), f.ServerEvent("x", text, "1"))
        elif via == "lines":
            yield f.Line(text)
        else:
            yield from (f.Answer(status, {}, text.encode()) for status in (200, 202, 303, 503))
    if via == "websocket":
        yield f.Message(b"\xff\x00")
    yield from (f.Answer(status, {}, b"\xff") for status in (200, 204, 400, 401, 404, 409, 410, 429, 500))
    if isinstance(want, Follow):
        yield from (f.Closed(), f.Closed(1000, "end"), f.Closed(1008), f.Closed(4999, "?"))


def _text_of(received: Received) -> str:
    match received:
        case f.Message(data):
            return data if isinstance(data, str) else data.decode("utf-8", "replace")
        case f.ServerEvent(_, data) | f.Line(data):
            return data
        case f.Answer():
            return received.body.decode("utf-8", "replace")
    return ""


# --- asking --------------------------------------------------------------------------------------------------------


def _check_asking(protocol: Protocol, story: Story, report: ProtocolReport) -> set[type[Want]]:
    """Ask for everything that the engine may want, with a token and without one; returns what was answered."""
    positions = dict.fromkeys(entry.at for entry in story.entries if entry.at is not None)
    wants: list[Want] = [Follow(via, at, "kit", 1) for via in protocol.sources for at in (None, *positions)]
    wants += [GetState(), f.CancelJob("key"), f.RefreshToken()]
    wants += [f.GetResult(end) for end in story.ends if isinstance(end, JobComplete)][:1]
    origins = {_origin_of(protocol.url)}
    if (other := getattr(protocol, "api_origin", None)) is not None:
        origins.add(_origin_of(other))
    for at in positions:
        size = len(str(at).encode("utf-8", "replace"))
        if size > _CURSOR_LIMIT:
            report.note(f"Reading the position {_short(at)}", "a position of at most 4 KiB", f"it has {size} bytes")
    tokens = (None, Secret(f"{_TOKEN}0"))
    asked = [type(want) for want in wants for token in tokens if _check_request(protocol, want, token, origins, report)]
    return set(asked)


def _check_request(
    protocol: Protocol, want: Want, token: Secret | None, origins: set[Origin | None], report: ProtocolReport
) -> bool:
    done = f"Asking for {_short(want)} {'without' if token is None else 'with'} a token"
    try:
        asked: object = protocol.ask(want, token)
        again = protocol.ask(want, token)
    except Exception as error:  # code of the user's may raise anything
        report.note(done, "a `Request` or None", f"`ask` raised {type(error).__name__}: {error}")
        return False
    if asked != again:
        report.note(done, "the same request as before, because `ask` keeps nothing", "the second one was another")
    if not isinstance(asked, f.Request):
        if asked is not None or (isinstance(want, Follow) and want.after is None and token is not None):
            report.note(done, "a `Request`, or None for a call that the server lacks", f"`ask` returned {asked!r}")
        return False
    url = revealed(asked.url)
    if _origin_of(url) not in origins:
        expected = "a request to the protocol's own origin, the only one that the token may go to"
        report.note(done, expected, f"it goes to {_origin_of(url) or 'no URL'}")
    if token is not None and _TOKEN in repr(asked):
        report.note(done, "the token only inside of a `Secret`", "it stands in the request as plain text")
    if token is not None and _TOKEN in url and not getattr(protocol, "token_in", "").startswith("query"):
        report.note(done, 'no token in the URL, unless `token_in="query"` declares it', "it is there: servers log URLs")
    match want:
        case Follow(via, after) if after is not None and via != "poll" and protocol.promise == "exact":
            if not is_resumed(protocol, want, token, asked):
                report.note(done, "a request that names the position", "it is the same as from the start")
    return True


def _origin_of(url: str) -> Origin | None:
    try:
        return parse_url(url, schemes=_SCHEMES, allow_insecure=True).origin
    except InvalidArgument:
        return None


# --- following -----------------------------------------------------------------------------------------------------


class _Runs:
    """Follows the job once for each thing that may go wrong."""

    def __init__(self, protocol: Protocol, story: Story, report: ProtocolReport) -> None:
        self._protocol = protocol
        self._story = story
        self._report = report
        self._tokens = 0
        self._ends = [without_place(end) for end in story.ends]
        self._has_positions = any(entry.at is not None for entry in story.entries)
        facts = [fact for entry in story.entries for fact in entry.facts]
        shown = [update for fact in facts if isinstance(fact, f.Snapshot) for update in fact.updates]
        self._states = [without_place(update) for update in shown]
        items = [fact.update for fact in facts if isinstance(fact, f.Item) and fact.update is not None]
        self._items = [without_place(update) for update in items] if story.has_stream else self._states

    async def run_all(self, kinds: set[type[Want]]) -> None:
        """Make all runs; `kinds` are the wants that the server can be asked for."""
        await self._run("Following the job without faults", Plan())
        entries = self._story.entries
        places = [n for n, entry in enumerate(entries) if not (entry.is_state and self._story.has_stream)]
        places.append(len(entries))
        chosen = sorted({places[n * len(places) // _PLACES] for n in range(_PLACES)} | {places[-1]})
        for place in chosen:
            for leaves, done in ((False, f"Cut before entry {place + 1}"), (True, f"Resumed before entry {place + 1}")):
                await self._run(done, Plan(place=place, leaves=leaves))
                await self._run(f"{done}, with 2 entries meanwhile", Plan(place=place, leaves=leaves, missed=2))
        middle = chosen[len(chosen) // 2]
        for at in (None, middle):
            where = "at the start" if at is None else f"after a cut before entry {at + 1}"
            for kind in (kind for kind in (Follow, GetState) if kind in kinds):
                call = "the state call" if kind is GetState else "the request to follow"
                for faults in (*_PASSING, *_FINAL):
                    answer = " and ".join(map(str, faults[:2])) + (" and so on" if len(faults) > 2 else "")
                    plan = Plan(place=at, faults=faults, kind=kind)
                    done = f"Answered {call} {where} with {answer}"
                    await self._run(done, plan, may_give_up=faults in _FINAL)

    async def _run(self, done: str, plan: Plan, *, may_give_up: bool = False) -> None:
        self._report.runs += 1
        seen: list[Update] = []
        problem = "no end came within 2 hours"
        try:
            with anyio.move_on_after(_ENDLESS):
                await self._follow(plan, seen, done)
                problem = ""
        except Exhausted as error:
            if may_give_up:
                return
            cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
            problem = f"the engine gave up: {error}{cause}"
        except TowlineError as error:
            problem = f"{type(error).__name__}: {error}"
        self._check_end(seen, done, problem)
        if not may_give_up:
            self._check_updates(seen, done, plan)

    async def _follow(self, plan: Plan, seen: list[Update], done: str) -> None:
        store, numbering = MemoryTokenStore(), Numbering(self._protocol)
        target: Any = numbering
        server = PlayedServer(self._story, plan, numbering, keeps_log=self._protocol.promise == "exact")
        async with server:
            while True:
                made = Connection(target, token=self._next_token, store=store, network=server.network)
                async with controlled(made, random=lambda: 0.5) as connection:
                    with anyio.CancelScope() as scope:
                        server.leave = scope.cancel
                        async for update in connection:
                            seen.append(update)  # noqa: PERF401 - what came before an error counts
                if not scope.cancelled_caught:
                    return
                for key in await store.jobs():
                    record = await store.read(key)
                    if record is not None and record.cursor is not None and len(record.cursor) > _CURSOR_LIMIT:
                        self._report.note(done, "a cursor of at most 4 KiB", f"it has {len(record.cursor)}")

    async def _next_token(self) -> str:
        self._tokens += 1
        return f"{_TOKEN}{self._tokens}"

    # --- what must hold ----------------------------------------------------------------------------------------------

    def _check_end(self, seen: list[Update], done: str, problem: str) -> None:
        ends = [update for update in seen if isinstance(update, _OUTCOMES)]
        expected = "the job's end, once and last"
        if not ends:
            self._report.note(done, expected, problem or "there was none")
        elif len(ends) > 1 or seen[-1] is not ends[0]:
            self._report.note(done, expected, f"{len(ends)} ends came, and {_short(seen[-1])} was last")
        elif without_place(ends[0]) not in self._ends:
            self._report.note(done, "the end that was recorded", f"it was {_short(ends[0])}")

    def _check_updates(self, seen: list[Update], done: str, plan: Plan) -> None:
        kept = [without_place(update) for update in seen if not isinstance(update, (Resynced, Stalled, *_OUTCOMES))]
        exact = self._protocol.promise == "exact"
        # A state may show anything that states show; it is checked only where there is nothing else.
        loose = self._states if self._story.has_stream else []
        shown = [update for update in kept if update not in loose or (exact and update in self._items)]
        wanted = [update for update in self._items if update not in loose or exact]
        extra = _first_extra(shown, wanted)
        if extra is not None:
            order = "every update at most once and in order"
            self._report.note(done, order, f"{_short(extra)} came again, too late, or was never sent")
        lost = _first_extra(wanted, shown)
        reports = [one for one in seen if isinstance(one, Resynced) and one.missed != 0]
        gaps = [one for one in reports if not one.first]
        if lost is not None and (exact or (plan == Plan() and self._story.has_stream)):
            why = "the promise is exact" if exact else "nothing went wrong"
            self._report.note(done, f"every update, because {why}", f"{_short(lost)} never came")
        if exact and gaps:
            self._report.note(done, "no gap, because the promise is exact", f"one was reported: {_short(gaps[0])}")
        if exact or lost is None or gaps or not self._story.has_stream or shown == wanted[len(wanted) - len(shown) :]:
            return
        # A new process without a position cannot know that anything is missing; with one, its first report says so.
        if not plan.leaves or (self._has_positions and not reports):
            self._report.note(done, "a report of what may be missing (`Resynced`)", f"{_short(lost)} never came")


def _first_extra(some: list[Update], all_: list[Update]) -> Update | None:
    """The first of `some` that is not in `all_` behind those before it."""
    rest = iter(all_)
    return next((one for one in some if not any(one == other for other in rest)), None)


def _short(value: object) -> str:
    text = json.encode(value, enc_hook=repr).decode() if isinstance(value, Update) else repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
