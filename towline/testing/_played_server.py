"""A server in memory that says again what a recording holds, to any follower of the same protocol.

The job makes its next step when a client follows it: each message of a stream and each answer to a poll takes it one
entry further. So a run needs no clock, and a message is lost only where the plan says that the job goes on alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import anyio
import h11
from msgspec import Struct, field
from msgspec.structs import replace

from .. import _facts as f
from .._facts import Answer, Ended, Fact, Follow, Numbered, Position, Protocol, Received, Replaying, Want
from .._secret import Secret
from .memory._scripted_server import Answer as Response
from .memory._scripted_server import Request as Asked
from .memory._scripted_server import ScriptedServer
from .memory._server_socket import Accept, ServerSocket
from .memory._stream import MemoryLink

#: A status, or an answer that comes late or never.
Fault: TypeAlias = int | Literal["slowly", "never"]

#: The header that names the want of a request; only the kit sees it.
_HEADER: Final = "towline-want"
#: Seconds between two new messages, between two that are sent again, and before a slow answer.
_STEP: Final = 0.5
_REPEAT_STEP: Final = 0.01
_SLOW: Final = 5.0
#: Headers of recorded answers that are about the recorded connection.
_LEFT_OUT: Final = frozenset(
    {"connection", "content-encoding", "content-length", "date", "etag", "keep-alive", "transfer-encoding"}
)


class Entry(NamedTuple):
    """A message of the stream, or (`is_state`) an answer with the job's state, with what it means."""

    received: Received
    facts: tuple[Fact, ...]
    is_state: bool

    @property
    def at(self) -> Position | None:
        """The position that the cursor has after it."""
        return next((at for fact in reversed(self.facts) if (at := getattr(fact, "at", None)) is not None), None)

    @property
    def has_ended(self) -> bool:
        """Whether it says that the job has ended."""
        return any(isinstance(fact, Ended) for fact in self.facts)

    @property
    def is_about_job(self) -> bool:
        """Whether it says something about the job and not only about the link."""
        return any(isinstance(fact, f.Item | f.Snapshot | Ended) for fact in self.facts)


class Story(Struct):
    """A recording, as the server plays it: greetings of each link, the job's entries, the result, the stream's end."""

    greetings: list[Entry] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    result: Answer = Answer(404)
    #: The outcomes, in the order in which they were read.
    ends: list[Any] = field(default_factory=list)
    closed: f.Closed = f.Closed(1000)

    def take(self, want: Want, received: Received, facts: tuple[Fact, ...]) -> None:
        """Add what was received next. Refused requests, and repeats of a position, are left out."""
        is_state = isinstance(want, f.GetState) or (isinstance(want, Follow) and want.via == "poll")
        entry = Entry(received, facts, is_state)
        self.ends += [fact.outcome for fact in facts if isinstance(fact, Ended)]
        if isinstance(received, f.Closed):
            self.closed = received
        elif isinstance(want, f.GetResult) and isinstance(received, Answer):
            self.result = received
        elif isinstance(received, Answer) or is_state:
            if is_state and entry.is_about_job:
                self.entries.append(entry)
        elif isinstance(want, Follow):
            about_link = bool(facts) and all(isinstance(fact, f.InStep | Replaying) for fact in facts)
            if about_link or not (entry.is_about_job or any(not known.is_state for known in self.entries)):
                self.greetings.append(entry)
            elif entry.at is None or all(known.received != received for known in self.entries):
                self.entries.append(entry)

    @property
    def has_stream(self) -> bool:
        """Whether the job was followed over a stream."""
        return any(not entry.is_state for entry in self.entries)


class Plan(Struct, kw_only=True):
    """What goes wrong in one run, once: at the entry `place`, where the link breaks, or from the start (None).

    - `leaves`: the server waits there until the follower has gone.
    - `missed`: so many entries pass while no client follows.
    - `faults` answer the next requests for `kind`.
    """

    place: int | None = None
    leaves: bool = False
    missed: int = 0
    faults: tuple[Fault, ...] = ()
    kind: type[Want] = Follow


class Numbering:
    """A protocol whose requests name their want in a header, so that the server need not understand them."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._asked: dict[tuple[type[Want], f.Request], list[Want]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def ask(self, want: Want, token: Secret | None) -> f.Request | None:
        """Return the protocol's request, numbered. Equal requests have the same number."""
        request = self._protocol.ask(want, token)
        if not isinstance(request, f.Request):
            return request
        request = replace(request, headers=tuple(request.headers))
        key = type(want), request
        self._asked.setdefault(key, []).append(want)
        number = list(self._asked).index(key)
        return replace(request, headers=(*request.headers, (_HEADER, str(number))))

    def find(self, asked: Asked) -> tuple[Want, f.Request]:
        """Return what a request asks for. It cannot ask for a position if it is the same without one."""
        (_, request), wants = list(self._asked.items())[int(asked.headers[_HEADER])]
        plain = (want for want in wants if isinstance(want, Follow) and want.after is None)
        return next(plain, wants[-1]), request


class PlayedServer(ScriptedServer):
    """Plays `story` by `plan`.

    `keeps_log`: a follower without a position gets everything from the start, as from a server that keeps its log.
    Otherwise it gets what comes from then on.
    """

    def __init__(self, story: Story, plan: Plan, numbering: Numbering, *, keeps_log: bool) -> None:
        super().__init__()
        self._story = story
        self._plan = plan
        self._numbering = numbering
        self._keeps_log = keeps_log
        # The entries that have happened, and those that the newest link has got.
        self._now = 0
        self._sent = 0
        self._faults = list(plan.faults) if plan.place is None else []
        #: Called once the follower shall leave.
        self.leave: Callable[[], object] = lambda: None
        # Whether what the plan says was done.
        self._is_done = plan.place is None

    # --- one link ----------------------------------------------------------------------------------------------------

    async def _serve(self, link: MemoryLink) -> None:
        http = h11.Connection(h11.SERVER)
        asked = await self._read_request(link, http)
        if asked is None:
            return
        want, request = self._numbering.find(asked)
        fault = self._faults.pop(0) if self._faults and isinstance(want, self._plan.kind) else None
        if fault == "never":
            await self._wait_gone(link)
        elif isinstance(fault, int):
            headers = {"retry-after": "7"} if fault in (429, 503) else {}
            await self._write_answer(link, http, Response(fault, headers=headers))
        else:
            await anyio.sleep(0 if fault is None else _SLOW)
            await self._answer(link, http, asked, want, request)

    async def _answer(
        self, link: MemoryLink, http: h11.Connection, asked: Asked, want: Want, request: f.Request
    ) -> None:
        if request.via == "websocket":
            await self._serve_socket(asked, Accept(), http.trailing_data[0])
        elif request.via in ("events", "lines") and isinstance(want, Follow):
            await self._stream(link, http, want)
        else:
            answer = await self._state(want, link) if isinstance(want, Follow | f.GetState) else self._call(want)
            if answer is not None:
                headers = {name: value for name, value in answer.headers.items() if name not in _LEFT_OUT}
                await self._write_answer(link, http, Response(answer.status, answer.body, headers))

    def _call(self, want: Want) -> Answer:
        return self._story.result if isinstance(want, f.GetResult) else Answer(404)

    async def _talk(self, request: Asked, socket: ServerSocket) -> None:
        want, wanted = self._numbering.find(request)
        assert isinstance(want, Follow)
        await self._wait(lambda: len(socket.received) >= len(wanted.opening))
        async for received in self._messages(want, socket.link):
            if isinstance(received, f.Message):
                (socket.send_text if isinstance(received.data, str) else socket.send_bytes)(received.data)  # type: ignore[arg-type]
        if not socket.link.torn:
            socket.close(self._story.closed.code or 1000, self._story.closed.reason)

    def _heard(self, socket: ServerSocket, message: str | bytes) -> None:
        # Only the recording is played: nothing answers a message.
        self._note()

    async def _stream(self, link: MemoryLink, http: h11.Connection, want: Follow) -> None:
        kind = "text/event-stream" if want.via == "events" else "application/x-ndjson"
        headers = [("content-type", kind), ("transfer-encoding", "chunked")]
        await link.server.send(http.send(h11.Response(status_code=200, headers=headers)) or b"")
        async for received in self._messages(want, link):
            await link.server.send(http.send(h11.Data(data=_as_text(received).encode())) or b"")
        if not link.torn:
            await link.server.send(http.send(h11.EndOfMessage()) or b"")

    # --- the job -----------------------------------------------------------------------------------------------------

    async def _messages(self, want: Follow, link: MemoryLink) -> AsyncIterator[Received]:
        entries, place = self._story.entries, self._place_of(want)
        for greeting in self._fitting_greetings(want.after):
            yield greeting.received
        while place < len(entries):
            if not entries[place].is_state:
                await anyio.sleep(_STEP if place >= self._now else _REPEAT_STEP)
                if await self._goes_wrong(place, link):
                    return
                yield entries[place].received
            place += 1
            self._sent = place
            self._now = max(self._now, place)
            self._note()
        await anyio.sleep(_STEP)
        await self._goes_wrong(place, link)

    async def _state(self, want: Want, link: MemoryLink) -> Answer | None:
        """The state at this step. A poll takes the job one step further, and so does the end of the stream."""
        entries = self._story.entries
        places = [place for place, entry in enumerate(entries) if entry.is_state]
        if not places:
            return Answer(404)
        coming = next((place for place in places if place >= self._now), len(entries))
        moves = isinstance(want, Follow) or all(entry.is_state for entry in entries[self._now :])
        if moves and await self._goes_wrong(coming, link):
            return None
        past = [place for place in places if place < self._now]
        chosen = coming if moves and coming < len(entries) else past[-1] if past else places[0]
        if moves:
            self._now = max(self._now, chosen + 1)
        found = entries[chosen]
        if found.has_ended and any(not entry.is_state for entry in entries[self._now : chosen]):
            return Answer(503)  # the state was not recorded at this step, and it was not this one
        if isinstance(found.at, Numbered):
            # The job is at least as far as the state that is shown.
            self._now = max(self._now, self._after_number(found.at))
        if self._keeps_log and found.has_ended:
            # A server that keeps a log sends it first; only a recorded link announces what it will send.
            with anyio.move_on_after(_SLOW):
                await self._wait(lambda: self._sent >= len(entries))
        assert isinstance(found.received, Answer)
        return found.received

    async def _goes_wrong(self, place: int, link: MemoryLink) -> bool:
        """Do what the plan says for this place; returns whether the link is over."""
        plan = self._plan
        if self._is_done or place != plan.place:
            return False
        self._is_done = True
        self._faults = list(plan.faults)
        entries = self._story.entries
        # The end waits for a follower, if no state says it later.
        said_by_state = self._story.has_stream and any(entry.is_state and entry.has_ended for entry in entries)
        end = next((at for at, entry in enumerate(entries) if entry.has_ended), len(entries))
        last = len(entries) if said_by_state or self._keeps_log else end
        self._now = max(self._now, min(place + plan.missed, last))
        if plan.leaves:
            await anyio.sleep(1)  # what was sent arrives
            self.leave()
            await anyio.sleep_forever()
        link.cut("rst")
        return True

    def _place_of(self, want: Follow) -> int:
        """The entry that a new link goes on with."""
        if want.after is None:
            return 0 if self._keeps_log else self._now
        known = [place for place, entry in enumerate(self._story.entries) if _is_at(entry, want.after)]
        if known:
            return known[-1] + 1
        if isinstance(want.after, Numbered):
            return self._after_number(want.after)
        return 0 if self._keeps_log else self._now

    def _after_number(self, at: Numbered) -> int:
        """The first entry behind a number, or the end."""
        places = enumerate(self._story.entries)
        later = (place for place, entry in places if not entry.is_state and _is_behind(entry.at, at))
        return next(later, len(self._story.entries))

    def _fitting_greetings(self, after: Position | None) -> Iterable[Entry]:
        """The greetings, without the announcement of a replay of other messages."""
        first = after.seq + 1 if isinstance(after, Numbered) else 1
        for greeting in self._story.greetings:
            announced = [fact for fact in greeting.facts if isinstance(fact, Replaying)]
            if all(one.first == first for one in announced):
                for one in announced:
                    self._now = max(self._now, self._after_number(Numbered(one.last, one.epoch)))
                yield greeting


def _is_at(entry: Entry, at: Position) -> bool:
    return not entry.is_state and entry.at == at


def _is_behind(at: Position | None, other: Numbered) -> bool:
    return isinstance(at, Numbered) and at.epoch == other.epoch and at.seq > other.seq


def _as_text(received: Received) -> str:
    if isinstance(received, f.ServerEvent):
        lines = [f"data: {line}" for line in received.data.split("\n")]
        lines += [f"event: {received.type}"] if received.type else []
        lines += [f"id: {received.id}"] if received.id is not None else []
        return "\n".join(lines) + "\n\n"
    return f"{received.text}\n" if isinstance(received, f.Line) else ""
