"""A tour of the lifecycle: a real `Connection` takes every cell, every guard outcome and every timer.

Each stop leads a connection to a state through the network, arranges the guards' answers, and raises the event.
Requests and the host's reports go through the public methods; timers expire in virtual time. The connection's own
`history()` shows what was covered.

The tour leaves out, and lists in `Tour.unreachable`, expiries of timers in states where they cannot run. An engine
cannot raise them (leaving the state makes their ticket stale); only the state machine's own grid test covers those
cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import anyio
from msgspec.structs import replace

from towline._connection import Connection
from towline._exceptions import ForbiddenRequest
from towline._facts import Answer as ServerAnswer
from towline._facts import Fact, GetState, InStepAt, Promise, Received, Request, Via, Want
from towline._secret import Secret
from towline.engine.tokens import Token
from towline.protocols.towline import Towline
from towline.protocols.wire.messages import encode
from towline.statemachine import (
    LIFECYCLE,
    AnyEvent,
    Backoff,
    CancelAccepted,
    Cause,
    GapFound,
    History,
    JobPaused,
    JobSpoke,
    Kind,
    Lost,
    Opened,
    PathChanged,
    PathLost,
    PathRestored,
    Policy,
    Reason,
    Refused,
    Reopen,
    SourceRefused,
    State,
    StillSilent,
    Synced,
    TokenRejected,
    TokenRenewed,
    Trigger,
    describe,
    is_stale,
    markdown,
    step,
)
from towline.statemachine.lifecycle._draft import Draft
from towline.testing import Answer, Hang, Reach, ScriptedServer, controlled, run_virtual

#: A branch: event, state, position in the cell.
Place = tuple[str, str, int]

_CAUSE: Final = Cause(code="broken", text="broken by the tour")
_LATER: Final = Answer(503, headers={"retry-after": "100"})


@dataclass(frozen=True)
class Stop:
    """One branch of one cell. `guards` gives the required answer of each guard up to it."""

    event: Trigger
    state: State
    place: int
    guards: dict[str, bool]

    @property
    def key(self) -> Place:
        """The branch, as coverage identifies it."""
        return self.event.value, self.state.value, self.place

    def __str__(self) -> str:
        asked = ", ".join(name if true else f"not {name}" for name, true in self.guards.items())
        return f"{self.event.value} in {self.state.value}" + (f" [{asked}]" if asked else "")


@dataclass
class Tour:
    """The result of a tour: branches `covered`, `findings` (empty if all is well), and branches no engine can reach."""

    covered: set[Place] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    unreachable: set[Place] = field(default_factory=set)

    @property
    def missed(self) -> set[Place]:
        """Branches that could be reached and were not."""
        everything = {
            (event.value, state.value, place)
            for event, row in LIFECYCLE.cells.items()
            for state, cell in row.items()
            for place in range(len(cell))
        }
        return everything - self.covered - self.unreachable

    def markdown(self) -> str:
        """The matrix, with branches marked that the tour did not cover."""
        return markdown(describe(LIFECYCLE), covered=self.covered)


def _covered(history: History) -> set[Place]:
    """The branches of the table that a history took."""
    snapshot, taken = history.start, set()
    for entry in history.entries:
        if not is_stale(snapshot, entry.event):
            event, state = entry.event.trigger, snapshot.state
            branch = LIFECYCLE.choose(event, Draft(snapshot, entry.event, entry.facts, history.policy))
            taken.add((event.value, state.value, LIFECYCLE.cell(event, state).index(branch)))
        with suppress(ForbiddenRequest):
            snapshot = step(snapshot, entry.event, entry.facts, history.policy).snapshot
    return taken


def stops() -> Iterator[Stop]:
    """All branches that an engine can reach, in table order."""
    for event, row in LIFECYCLE.cells.items():
        for state, cell in row.items():
            if _out_of_reach(event, state):
                continue
            for place, branch in enumerate(cell):
                guards = {earlier.when.__name__: False for earlier in cell[:place] if earlier.when is not None}
                if branch.when is not None:
                    guards[branch.when.__name__] = True
                yield Stop(event, state, place, guards)


def _out_of_reach(event: Trigger, state: State) -> bool:
    return any(rule.expiry is event and state not in rule.runs_in for rule in LIFECYCLE.timers.values())


def take_tour(*, backend: str = "asyncio") -> Tour:
    """Visit every stop; never raises for its findings."""
    tour = Tour()
    for event, row in LIFECYCLE.cells.items():
        for state, cell in row.items():
            if _out_of_reach(event, state):
                tour.unreachable |= {(event.value, state.value, place) for place in range(len(cell))}
    for stop in stops():
        covered, findings = run_virtual(_Visit(stop).run, backend=backend)
        if stop.key not in covered:
            findings.append("was not reached")
        tour.covered |= covered
        tour.findings += [f"{stop}: {finding}" for finding in findings]
    return tour


# --- arranging the guards' answers -----------------------------------------------------------------------------


@dataclass
class _Setting:
    """The settings of a visit."""

    policy: dict[str, Any] = field(default_factory=dict)
    fixed_token: bool = False
    foreground: bool = True
    path_up: bool = True
    cause: Cause = _CAUSE
    by_fetch: bool = False
    reason: Reason = "protocol"
    final: bool = False
    cancelled: bool = False
    known: bool = False
    spoke: bool = False
    paused: bool = False
    sources: int = 1
    in_step: InStepAt = "state"
    two_looks: bool = False
    ended: bool = False
    exhausted_by: str = "budget"


@dataclass(frozen=True)
class _Varied:
    """Towline's own protocol with several sources (the same one each time), or with links in step in another way."""

    own: Towline
    sources: tuple[Via, ...]
    in_step: InStepAt

    name: ClassVar[str] = "varied"
    promise: ClassVar[Promise] = "exact"
    token_of_job: ClassVar[bool] = True

    @property
    def url(self) -> str:
        return self.own.url

    @property
    def job(self) -> str:
        return self.own.job

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        asked = self.own.ask(want, token)
        return asked if asked is None or asked.via == "call" else replace(asked, in_step=self.in_step)

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        return self.own.read(want, received)


def _policy(**changes: Any) -> Callable[[_Setting], None]:
    return lambda setting: setting.policy.update(changes)


def _set(**changes: Any) -> Callable[[_Setting], None]:
    def change(setting: _Setting) -> None:
        for name, value in changes.items():
            setattr(setting, name, value)

    return change


_NOTHING: Final = _set()
_GUARDS: Final[dict[tuple[str, bool], Callable[[_Setting], None]]] = {
    ("job_has_ended", True): _set(ended=True),
    ("job_has_ended", False): _NOTHING,
    ("in_background", True): _set(foreground=False),
    ("in_background", False): _NOTHING,
    ("path_down", True): _set(path_up=False),
    ("path_down", False): _NOTHING,
    ("same_refused_token", True): _set(fixed_token=True, exhausted_by="auth"),
    ("same_refused_token", False): _NOTHING,
    ("budget_left", True): _NOTHING,
    ("budget_left", False): _policy(backoff=Backoff(attempts=0)),
    ("broken_too_often", True): _set(cause=replace(_CAUSE, violation=True)),
    ("broken_too_often", False): _NOTHING,
    ("first_rejection", True): _NOTHING,
    ("first_rejection", False): _set(fixed_token=True),
    ("first_rejection_by_fetch", True): _set(by_fetch=True),
    ("first_rejection_by_fetch", False): _NOTHING,
    ("only_the_state_call_failed", True): _set(by_fetch=True, fixed_token=True),
    ("only_the_state_call_failed", False): _NOTHING,
    ("cancel_is_confirmed", True): _set(cancelled=True, reason="gone", cause=replace(_CAUSE, code="http 401")),
    ("cancel_is_confirmed", False): _NOTHING,
    ("refused_for_good", True): _set(final=True),
    ("refused_for_good", False): _set(known=True),
    ("state_decides", True): _NOTHING,
    ("state_decides", False): _set(in_step="open"),
    ("another_source_left", True): _set(sources=2),
    ("another_source_left", False): _NOTHING,
    ("peer_is_unknown", True): _NOTHING,
    ("peer_is_unknown", False): _set(known=True),
    ("job_is_paused", True): _set(paused=True),
    ("job_is_paused", False): _NOTHING,
    ("silence_is_short", True): _set(spoke=True),
    ("silence_is_short", False): _NOTHING,
    ("stall_limit_reached", True): _policy(stall_limit=100.0),
    ("stall_limit_reached", False): _NOTHING,
    ("reconnect_may_help", True): _set(two_looks=True),
    ("reconnect_may_help", False): _NOTHING,
    ("refetch_left", True): _NOTHING,
    ("refetch_left", False): _policy(refetch_waits=()),
    ("free_restart_left", True): _NOTHING,
    ("free_restart_left", False): _policy(free_restarts=0),
    ("spent_budget", True): _NOTHING,
    ("spent_budget", False): _set(exhausted_by="refusal"),
    ("revival_allowed", True): _NOTHING,
    ("revival_allowed", False): _set(exhausted_by="refusal"),
    ("foreground_and_path_up", True): _NOTHING,
    ("foreground_and_path_up", False): _set(foreground=False),
}


class _Visit:
    """One connection, led to one stop."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.setting = _Setting()
        if stop.event is Trigger.BUDGET_SPENT:
            self.setting.policy["backoff"] = Backoff(seconds=5.0)
        if stop.state is State.EXHAUSTED:
            self.setting.policy["backoff"] = Backoff(attempts=0)
        for name, true in stop.guards.items():
            _GUARDS[name, true](self.setting)
        if self.setting.cause.violation:
            self.setting.policy["violations"] = 1
        if self.setting.two_looks:
            self.setting.policy["stall_after"] = (10.0,)
        # Silence alone must not end the state under test; the grace is short so that the tour can wait for it.
        self.policy = Policy(**{"grace": 1.0, "connect_deadline": 50.0, "fetch_deadline": 50.0, **self.setting.policy})
        self.findings: list[str] = []

    async def run(self) -> tuple[set[Place], list[str]]:
        """Reach the stop, raise the event, and check the result."""
        syncing = self.stop.state is State.SYNCING
        async with ScriptedServer(numbered=not syncing) as server:
            self.server, self.job = server, server.job("j1", token="t1")
            if not self.setting.known:
                self._prepare()
            self.line = Connection(
                self._target(),
                job="j1",
                token="t1" if self.setting.fixed_token else self._give_token,
                network=server.network,
                policy=self.policy,
            )
            controlled(self.line, random=lambda: 0.5, wall_time=anyio.current_time)
            async with self.line:
                engine = self.line._engine
                assert engine is not None, "the connection was entered"
                self.engine = engine
                with anyio.move_on_after(60) as reaching:
                    if self.setting.known:
                        await self._connect_and_lose()
                    await self._reach()
                if reaching.cancelled_caught or self.line.state is not self.stop.state:
                    return set(), [f"the state was not reached: it is {self.line.state.value}"]
                await self._raise_event()
                recorded = _covered(self.line.history())
            await self._check_open_links()
        return recorded, self.findings

    def _target(self) -> Towline | _Varied:
        url, setting = "ws://hub/ws/progress", self.setting
        if setting.sources == 1 and setting.in_step == "state":
            return Towline(url, "j1", events_path=None)
        return _Varied(Towline(url, "j1"), ("websocket",) * setting.sources, setting.in_step)

    async def _give_token(self) -> Token:
        expires = anyio.current_time() + 90 if self.stop.event is Trigger.RENEWAL_DUE else None
        return Token(self.job.token, expires=expires)

    def _prepare(self) -> None:
        state, server = self.stop.state, self.server
        if state is State.CONNECTING:
            if self.stop.event is Trigger.OPENED:
                server.network.weather = Reach(latency=1.0)
            else:
                server.always("upgrade", Hang())
        elif state is State.SYNCING:
            server.always("state", Hang())
        elif state is State.RECONNECTING:
            server.always("upgrade", _LATER)
        elif state is State.EXHAUSTED:
            refusals = {"budget": 503, "auth": 401, "refusal": 400}
            server.always("upgrade", Answer(refusals[self.setting.exhausted_by]))

    async def _connect_and_lose(self) -> None:
        """Sync the connection with the server once, then break the link."""
        await self.line.wait_for(State.CONNECTED)
        if self.stop.state is State.CONNECTED:
            return
        self._prepare()
        for link in self.server.network.links:
            link.cut("rst")
        while self.line.state is State.CONNECTED:
            await self.engine.runner.wait_changed()
        self.line.retry()

    async def _reach(self) -> None:
        line, state = self.line, self.stop.state
        match state:
            case State.IDLE if self.setting.ended:
                self.job.start()
                self.job.complete()
                await line.result()
            case State.IDLE:
                await line.aclose()
            case State.BACKGROUNDED:
                line.background(grace=0.0)
            case State.CANCELLED:
                line.cancel()
        while line.state is not state:
            await self.engine.runner.wait_changed()
        if state is State.EXHAUSTED and self.stop.event is Trigger.REVIVAL_DUE:
            # Use up one revival now, so that the next is too early and its timer is armed.
            self.engine.runner.post(PathRestored())
            await line.wait_for(State.CONNECTING)
            while line.state is not State.EXHAUSTED:
                await self.engine.runner.wait_changed()
            self.engine.runner.post(PathRestored())
        if self.setting.two_looks:
            # Checks are due after 10 and 20 s; the second hangs, so that the tour raises its event.
            self.server.always("state", Hang())
            await anyio.sleep(22)
        if self.setting.cancelled:
            self.engine.runner.post(CancelAccepted())
        if self.setting.paused:
            self.engine.runner.post(JobPaused(generation=self.engine.snapshot.generation))
        # Set the host's levels without the events that would report them.
        setting = self.setting
        self.engine.runner.change(
            lambda levels: (levels._replace(foreground=setting.foreground, path_up=setting.path_up), None)
        )

    # --- the event -------------------------------------------------------------------------------------------------

    async def _raise_event(self) -> None:
        stop, engine = self.stop, self.engine
        branch = LIFECYCLE.cell(stop.event, stop.state)[stop.place]
        seen = len(self.line.history().entries)
        before = engine.snapshot
        try:
            await self._raise()
        except ForbiddenRequest as error:
            if branch.kind is not Kind.FORBIDDEN or type(error) is not branch.error:
                self.findings.append(f"raised {error!r}")
            if engine.snapshot is not before:
                self.findings.append("a forbidden request changed something")
        # Longer than any timer of the state machine.
        for _ in range(2000):
            if self._happened(seen):
                break
            await anyio.sleep(0.1)
        for entry in self.line.history().entries[seen:]:
            if entry.event.trigger is stop.event:
                expected = branch.target if branch.kind is Kind.MOVED else stop.state
                if (entry.source, entry.target) != (stop.state, expected):
                    self.findings.append(f"moved from {entry.source.value} to {entry.target.value}")
                return

    def _happened(self, seen: int) -> bool:
        entries = self.line.history().entries[seen:]
        return any(entry.event.trigger is self.stop.event for entry in entries)

    async def _raise(self) -> None:
        line, engine, event = self.line, self.engine, self.stop.event
        at = engine.snapshot.generation
        match event:
            case Trigger.CONNECT:
                line.connect()
            case Trigger.RETRY:
                line.retry()
            case Trigger.CANCEL:
                line.cancel()
                if line.state is State.CANCELLED and not line.cancel():
                    self.findings.append("a second cancel returned something else")
            case Trigger.CLOSE:
                await line.aclose()
            case Trigger.BACKGROUND:
                line.background()
            case Trigger.FOREGROUND:
                line.foreground()
            case Trigger.WOKE:
                line.report_wake()
            case Trigger.PATH_LOST:
                engine.runner.change(lambda levels: (levels._replace(path_up=False), PathLost()))
            case Trigger.PATH_RESTORED:
                engine.runner.post(PathRestored())
            case Trigger.PATH_CHANGED:
                engine.runner.post(PathChanged())
            case Trigger.GRACE_ELAPSED:
                line.background()
            case Trigger.JOB_ENDED:
                self.job.start()
                self.job.complete()
                engine.publisher.act(engine.sequencer.look(self.state_facts()), at)
            case Trigger.SYNCED if self.stop.state is State.SYNCING:
                engine.publisher.act(engine.sequencer.state(self.state_facts()), at)
            case Trigger.OPENED if self.stop.state is State.CONNECTING:
                pass  # it is coming already
            case Trigger.STALLED if self.setting.spoke:
                await anyio.sleep(60)
                self.job.start()
            case _ if event in _POSTED:
                engine.runner.post(_POSTED[event](at, self.setting))
            # Timers that are running already raise the rest.

    def state_facts(self) -> tuple[Fact, ...]:
        """What the protocol reads from the job's state."""
        answer = ServerAnswer(200, {}, encode(self.job.state()))
        return tuple(self.engine.settings.protocol.read(GetState(), answer))

    async def _check_open_links(self) -> None:
        # A server that holds a request does not notice that its client has closed.
        for link in self.server.network.links:
            link.cut("rst")
        await anyio.sleep(5)
        if left := len(self.server.network.links):
            self.findings.append(f"{left} links were left open")
        if self.line.state not in (State.IDLE, State.CANCELLED):
            self.findings.append(f"the connection was left in {self.line.state.value}")


_POSTED: Final[dict[Trigger, Callable[[int, _Setting], AnyEvent]]] = {
    Trigger.OPENED: lambda at, setting: Opened(generation=at),
    Trigger.SYNCED: lambda at, setting: Synced(generation=at),
    Trigger.GAP_FOUND: lambda at, setting: GapFound(generation=at, cause=setting.cause),
    Trigger.REOPEN: lambda at, setting: Reopen(generation=at, cause=setting.cause),
    Trigger.SOURCE_REFUSED: lambda at, setting: SourceRefused(generation=at, cause=setting.cause),
    Trigger.LOST: lambda at, setting: Lost(generation=at, cause=setting.cause),
    Trigger.TOKEN_REJECTED: lambda at, setting: TokenRejected(
        generation=at, cause=setting.cause, by_fetch=setting.by_fetch
    ),
    Trigger.REFUSED: lambda at, setting: Refused(
        generation=at, cause=setting.cause, reason=setting.reason, by_fetch=setting.by_fetch, final=setting.final
    ),
    Trigger.STILL_SILENT: lambda at, setting: StillSilent(generation=at),
    Trigger.JOB_PAUSED: lambda at, setting: JobPaused(generation=at),
    Trigger.JOB_SPOKE: lambda at, setting: JobSpoke(generation=at),
    Trigger.CANCEL_ACCEPTED: lambda at, setting: CancelAccepted(),
    Trigger.TOKEN_RENEWED: lambda at, setting: TokenRenewed(),
}
