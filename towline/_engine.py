"""The driver: turns the machine's effects into work on sockets, clocks and files, and what comes of it into events.

The only async code that knows the machine. Its rules:

- Run to completion. An event raised while effects are performed or a handler runs is queued, never nested. A user's
  request steps at once, before it returns; effects that an older generation had left are then skipped, unless they
  give something back.
- Whatever runs asynchronously carries the generation it was begun in; what comes of it later is stale.
- One socket. A socket that is left is closed before the next attempt opens one.
- Data frames go from the socket to the subscribers and never pass the machine; only what they mean for the lifecycle
  does.
- No task outlives `run()`; cleanup is shielded and has a deadline.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import anyio
from anyio.abc import TaskGroup

from ._delivery import Delivery
from ._exceptions import (
    Cancelled,
    DeadlineExceeded,
    Exhausted,
    ForbiddenRequest,
    MalformedMessage,
    StateUnreachable,
    TowlineError,
    UnexpectedResponse,
)
from ._handlers import Handlers
from ._journal import Journal
from ._recovery import Cursor, End, Finding, Gap, Phase, Recovery, Synced
from ._secret import Secret
from ._settings import Settings
from ._text import escape
from ._timers import Timers
from ._tokens import RENEW_BEFORE, TokenSource
from ._updates import OUTCOME_KINDS, AnyUpdate, JobComplete, Outcome, Progress, Stalled, StateChange
from .statemachine import (
    AbandonDial,
    AnyEffect,
    AnyEvent,
    Arm,
    AskState,
    BackoffElapsed,
    BudgetSpent,
    CancelFetch,
    Cause,
    Close,
    CloseSocket,
    Deliver,
    Dial,
    Disarm,
    Entry,
    Facts,
    FetchState,
    GapFound,
    GraceElapsed,
    Greet,
    JobEnded,
    LinkStable,
    Lost,
    Opened,
    Place,
    Probe,
    Purpose,
    Recorder,
    Refused,
    ReleaseBuffer,
    RevivalDue,
    SaveCursor,
    Snapshot,
    State,
    Timer,
    TokenRejected,
    Unavailable,
    Verdict,
    classify,
    step,
)
from .statemachine import Stalled as StalledEvent
from .statemachine import Synced as SyncedEvent
from .transport import (
    CancelAnswer,
    Frame,
    JobProgressFrame,
    JobState,
    Liveness,
    PingFrame,
    PongFrame,
    Ready,
    ReadyAckFrame,
    WebSocket,
    connect_websocket,
    encode,
)

T = TypeVar("T")

_LOG: Final = logging.getLogger("towline")

#: The one timer that is not the machine's: it renews the token and raises no event.
_RENEWAL: Final = "token renewal"
_RENEWAL_SPACING: Final = 5.0

#: How long after the closing handshake's own bound a dial still waits for the attempts before it.
LEAVING_MARGIN: Final = 1.0

#: How long coroutine handlers may go on after `cancel()`.
HANDLERS_WAIT: Final = 0.5

#: How long a state waits for the server's answer to `ready`, which may bring a replay instead.
ACK_WAIT: Final = 1.0

# Effects that give something back, or tell what is so: performed whatever has happened since they were asked for.
_GIVES_BACK: Final = (AbandonDial, CancelFetch, CloseSocket, Disarm, Deliver, SaveCursor, StateChange)
_LINKED: Final = frozenset({State.SYNCING, State.CONNECTED})
_TRYING: Final = frozenset({State.CONNECTING, State.RECONNECTING, State.BACKGROUNDED, State.EXHAUSTED})

_EXPIRIES: Final[dict[Timer, Callable[..., AnyEvent]]] = {
    Timer.BACKOFF: BackoffElapsed,
    Timer.OUTAGE: BudgetSpent,
    Timer.STABILITY: LinkStable,
    Timer.GRACE: GraceElapsed,
    Timer.REVIVAL: RevivalDue,
}


class Link:
    """One attempt and the socket that comes of it: one task, one scope."""

    __slots__ = ("closing", "connected_at", "generation", "greeting", "left", "scope", "websocket")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.scope = anyio.CancelScope()
        self.websocket: WebSocket | None = None
        self.greeting: Ready | None = None
        self.connected_at = 0.0
        #: Nothing is done with it any more; and whether it is a task of its own that closes the socket.
        self.left = anyio.Event()
        self.closing = False


class Engine:
    """Drives one connection. Made and entered by `Connection`, whose public methods it serves."""

    def __init__(self, settings: Settings, tasks: TaskGroup) -> None:
        self.settings = settings
        self.tasks = tasks
        self.snapshot = Snapshot()
        self.recorder = Recorder(settings.policy)
        self.counts: Counter[str] = Counter()
        self.path_up = True
        self.path_identity: str | None = None
        self.foreground = True
        self.last_error: BaseException | None = None
        #: How often each state was entered: so that a wait for one does not miss a short visit.
        self.visits: Counter[State] = Counter()
        # Made when somebody waits for a change of state, and set at the next.
        self._changed: anyio.Event | None = None
        #: Whether the status fetch of `exhausted` has settled, so that giving up may be told.
        self.settled = False
        self.cancel_accepted = False
        self.handlers = Handlers(tasks)
        self.delivery = Delivery(
            moved=self._moved,
            end_taken=self._end_taken,
            overflowed=self._overflowed,
            handled=settings.on_progress is not None,
        )
        self.recovery = Recovery(settings.job, codec=settings.codec)
        self.journal = Journal(settings, tasks, self.delivery.position)
        self.timers = Timers(tasks, self._expired)
        self.calls = settings.job_calls()
        self.tokens = TokenSource(
            settings.job,
            self.calls,
            provider=settings.provider,
            refresh=settings.refresh,
            deadline=settings.policy.token_deadline,
            changed=self.journal.token_changed,
            wall_time=settings.wall_time,
        )
        self._events: deque[AnyEvent] = deque()
        self._effects: deque[tuple[int, AnyEffect | StateChange]] = deque()
        self._pumping = False
        self._link: Link | None = None
        # Attempts that were given up and sockets that are being closed, until nothing of them is left.
        self._leaving: set[Link] = set()
        self._one_left: anyio.Event | None = None
        self._renewal: anyio.CancelScope | None = None
        self._user_calls: set[anyio.CancelScope] = set()
        self._cancel_key: str | None = None
        # When the block was left: there may be no loop to ask for the time after that.
        self._left_at: float | None = None
        self._fetch: anyio.CancelScope | None = None
        # Set by the data path at each batch, for a fetch that waits for what the socket brings.
        self._batch_came: anyio.Event | None = None
        self._last_job_message = 0.0
        self._stall_told = False
        self._stall_ticket = 0
        # The job was silent for so long that it was looked into, and has not spoken since.
        self._silent = False

    # --- events in -------------------------------------------------------------------------------------------------

    def post(self, event: AnyEvent) -> None:
        """Take an event up when its turn comes."""
        self._events.append(event)
        self._pump()

    def request(self, event: AnyEvent) -> None:
        """Take a user's request up at once; raises `ForbiddenRequest` where the state does not allow it."""
        self._take(event)
        self._pump()

    def facts(self) -> Facts:
        """How the world stands now."""
        return Facts(
            now=anyio.current_time() if self._left_at is None else self._left_at,
            path_up=self.path_up,
            foreground=self.foreground,
            token_id=self.tokens.token_id,
            renewable=self.tokens.renewable,
        )

    def _take(self, event: AnyEvent) -> None:
        before, facts = self.snapshot, self.facts()
        try:
            after, effects, verdict = step(before, event, facts, self.settings.policy)
        except ForbiddenRequest:
            self._record(before, event, facts, before.state, None)
            raise
        self._record(before, event, facts, after.state, verdict)
        self.snapshot = after
        for effect in effects:
            self._effects.append((after.generation, effect))
        if after.state is not before.state:
            self.visits[after.state] += 1
            # A cause is told with the change it brought about; giving up always says why.
            news = after.cause is not before.cause or after.state is State.EXHAUSTED
            cause = after.cause if news else None
            change = StateChange(previous=before.state, state=after.state, cause=cause, at=facts.now)
            self._effects.append((after.generation, change))

    def _record(self, before: Snapshot, event: AnyEvent, facts: Facts, target: State, verdict: Verdict | None) -> None:
        entry = Entry(event=event, facts=facts, source=before.state, target=target, verdict=verdict)
        self.recorder.record(before, entry)
        if verdict in (Verdict.STALE, Verdict.IGNORED):
            self.counts[f"{verdict.value}_events"] += 1

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._effects or self._events:
                if not self._effects:
                    self._take(self._events.popleft())
                    continue
                generation, effect = self._effects.popleft()
                if generation == self.snapshot.generation or isinstance(effect, _GIVES_BACK):
                    _PERFORM[type(effect)](self, effect)
        finally:
            self._pumping = False

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Within it a program's functions are called: what they ask for is stepped at once and performed after it."""
        outer, self._pumping = self._pumping, True
        try:
            yield
        finally:
            self._pumping = outer
        self._pump()

    # --- effects: attempts and sockets -----------------------------------------------------------------------------

    def _dial(self, effect: Dial) -> None:
        self.settled = False
        self._link = Link(effect.generation)
        self.tasks.start_soon(self._run_link, self._link, effect, name="towline link")

    def _abandon_dial(self, effect: AbandonDial) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._leave(link)

    def _leave(self, link: Link) -> None:
        self._leaving.add(link)
        link.scope.cancel()

    def _is_gone(self, link: Link) -> None:
        self._leaving.discard(link)
        if self._one_left is not None:
            self._one_left.set()
            self._one_left = None

    async def all_gone(self) -> None:
        """Wait until nothing is left of attempts that were given up and sockets that are being closed."""
        while self._leaving:
            if self._one_left is None:
                self._one_left = anyio.Event()
            await self._one_left.wait()

    def _greet(self, effect: Greet) -> None:
        cursor = self.recovery.opened()
        if self._link is not None:
            now = self.settings.wall_time() * 1000
            epoch, seq = (cursor.epoch, cursor.seq) if cursor is not None and cursor.seq > 0 else (None, None)
            self._link.greeting = Ready(timestamp=round(now), epoch=epoch, seq=seq)

    def _close_socket(self, effect: CloseSocket) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        self._leave(link)
        if link.websocket is not None:
            link.closing = True
            self.tasks.start_soon(self._close, link, link.websocket, effect, name="towline close")

    async def _close(self, link: Link, websocket: WebSocket, effect: CloseSocket) -> None:
        try:
            # The reader has been told to go, and holds the socket until it has.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0):
                await link.left.wait()
            if effect.wait:
                await websocket.aclose(effect.code, timeout=effect.wait)
            else:
                await websocket.abandon(effect.code)
        finally:
            self._is_gone(link)

    async def _run_link(self, link: Link, dial: Dial) -> None:
        try:
            with link.scope:
                await self._follow(link, dial)
        finally:
            link.left.set()
            if link in self._leaving and not link.closing:
                # It was given up as an attempt; should it have opened in that very moment, nobody else closes it.
                if link.websocket is not None:
                    await link.websocket.abandon()
                self._is_gone(link)

    async def _follow(self, link: Link, dial: Dial) -> None:
        """One attempt, and the socket's whole life."""
        place = Place.TOKEN
        try:
            settings, policy = self.settings, self.settings.policy
            with anyio.move_on_after(policy.close_wait + LEAVING_MARGIN):
                await self.all_gone()
            await anyio.sleep_until(dial.not_before)
            token = await self.tokens.get(fresh=dial.fresh_token)
            place = Place.UPGRADE
            self.counts["dials"] += 1
            link.websocket = await connect_websocket(
                settings.url_with(token),
                headers=settings.headers_with(token),
                subprotocols=settings.subprotocols_with(token),
                ssl=settings.ssl,
                limits=settings.limits,
                liveness=Liveness(ping_after=policy.ping_after, lost_after=policy.lost_after),
                network=settings.network,
                deadline=policy.connect_deadline,
                wall_time=settings.wall_time,
            )
            place = Place.SOCKET
            self.post(Opened(generation=link.generation))
            await self._read(link, link.websocket)
        except TowlineError as error:
            await self._failed(error, place, link.generation)

    async def _read(self, link: Link, websocket: WebSocket) -> None:
        if link.greeting is not None:
            limit = self.settings.policy.probe
            # Whoever cannot be written to any more may have told why: reading comes to that.
            with suppress(TowlineError), anyio.move_on_after(limit) as sending:
                await websocket.send(encode(link.greeting).decode())
            if sending.cancelled_caught:
                raise DeadlineExceeded("the sending of `ready`", limit)
        while True:
            self._data(link, await websocket.receive_batch())

    async def _failed(self, error: TowlineError, place: Place, generation: int, fetch: int | None = None) -> None:
        """Turn an error into the event it means."""
        if place is not Place.STATUS:
            # Without its traceback, which would keep alive what the attempt was made of.
            self.last_error = error.with_traceback(None)
        settings = self.settings
        held = self.recovery.held_end() if place is Place.SOCKET else None
        if held is not None:
            # The replay broke off, and the state had told the end already.
            self._act(held, generation)
            return
        meaning = classify(
            error,
            place,
            path_up=self.path_up,
            renewable=self.tokens.renewable,
            strict_sync=settings.strict_sync,
        )
        if place is not Place.STATUS and not isinstance(meaning, AskState):
            try:
                meaning = settings.reclassified(error, place, meaning)
            except Exception as raised:
                self.handlers.report(raised)
        if isinstance(meaning, AskState):
            answer = await self._ask_state(meaning)
            if isinstance(answer, End):
                self._act(answer, generation)
                return
            meaning = answer
        if isinstance(meaning, Unavailable):
            self._act(self.recovery.unavailable(), generation)
        elif isinstance(meaning, Lost):
            self.post(Lost(generation=generation, fetch=fetch, cause=meaning.cause))
        elif isinstance(meaning, Refused):
            self.post(Refused(generation=generation, fetch=fetch, reason=meaning.reason, cause=meaning.cause))
        elif isinstance(meaning, TokenRejected):
            self.post(TokenRejected(generation=generation, fetch=fetch, cause=meaning.cause, by_fetch=meaning.by_fetch))

    async def _ask_state(self, meaning: AskState) -> Lost | Refused | End:
        """One state fetch decides what a failure means."""
        try:
            token = await self.tokens.get()
            state = await self.calls.fetch_state(
                self.settings.job, token, tries=1, deadline=self.settings.policy.fetch_deadline
            )
        except UnexpectedResponse as error:
            return meaning.gone if meaning.gone is not None and error.status in (404, 410) else meaning.otherwise
        except TowlineError:
            return meaning.otherwise
        if not state.ended:
            return meaning.otherwise
        finding = self.recovery.look(state)
        return finding if isinstance(finding, End) else meaning.otherwise

    def _probe(self, effect: Probe) -> None:
        if self._link is not None and self._link.websocket is not None:
            self._link.websocket.probe(self.settings.policy.probe)

    # --- data ------------------------------------------------------------------------------------------------------

    def _data(self, link: Link, batch: list[str | bytes]) -> None:
        """Hand on what one read brought. The hot path: no await, no lock, no task switch a message."""
        decode, take_in = self.settings.codec.decode, self.recovery.frame
        self.counts["messages"] += len(batch)
        spoke = False
        for message in batch:
            try:
                frame = decode(message)
            except MalformedMessage as error:
                finding = self._malformed(error)
            else:
                spoke = spoke or _is_of_the_job(frame)
                finding = take_in(frame)
            if finding is not None:
                self._act(finding, link.generation)
                if self._link is not link:
                    break
        if spoke:
            self._job_spoke()
        self._publish(self.recovery.take())
        if self._batch_came is not None:
            self._batch_came.set()
            self._batch_came = None

    def _job_spoke(self) -> None:
        self._last_job_message = anyio.current_time()
        self._stall_told = False
        if self._silent:
            # The next silence begins, and is short again before it is looked into.
            self._silent = False
            self.timers.arm(Timer.STALL, self._stall_ticket, self.settings.policy.stall_after[0])

    def _malformed(self, error: MalformedMessage) -> Finding:
        self.counts["malformed_messages"] += 1
        # A server that sends one mostly sends more: the first is worth a warning.
        level = logging.WARNING if self.counts["malformed_messages"] == 1 else logging.DEBUG
        _LOG.log(level, "skipped: %s", escape(str(error)))
        return self.recovery.malformed(error)

    def _publish(self, updates: list[AnyUpdate]) -> None:
        """Hand updates on. Nothing comes after the end or after `cancel()`."""
        if updates and self.snapshot.outcome is None and self.snapshot.state is not State.CANCELLED:
            self._hand_on(updates)

    def _hand_on(self, updates: list[AnyUpdate]) -> None:
        self.counts["updates"] += len(updates)
        fits = self.delivery.publish(updates, self.recovery.applied)
        if self.settings.on_progress is not None:
            with self._turn():
                for update in updates:
                    if self.snapshot.state is State.CANCELLED:
                        return
                    if isinstance(update, Progress):
                        self.handlers.call(self.settings.on_progress, update)
        if not fits:
            self._overflowed()

    def _overflowed(self) -> None:
        self.counts["overflows"] += 1
        self._gap("a consumer is too far behind for updates that may not be merged", self.snapshot.generation)

    def _act(self, finding: Finding, generation: int) -> None:
        """Turn what the data path found into an event, after what it handed on."""
        self._publish(self.recovery.take())
        if isinstance(finding, Gap):
            self._gap(finding.problem, generation)
        elif isinstance(finding, Synced):
            self.post(SyncedEvent(generation=generation))
        elif isinstance(finding, End):
            self.post(JobEnded(outcome=OUTCOME_KINDS[type(finding.outcome)], update=finding))

    def _gap(self, problem: str, generation: int) -> None:
        self.counts["gaps"] += 1
        self.last_error = None
        self.post(GapFound(generation=generation, cause=Cause(code="gap", text=problem)))

    def _release_buffer(self, effect: ReleaseBuffer) -> None:
        self._last_job_message = anyio.current_time()
        self._stall_told = self._silent = False
        self._act(self.recovery.release(), self.snapshot.generation)

    def _deliver(self, effect: Deliver) -> None:
        end: End = effect.update
        self.delivery.outcome = end.outcome
        if end.before:
            self._hand_on(list(end.before))
        self.delivery.end(self.recovery.applied)
        self.counts["updates"] += 1

    # --- effects: state fetches ------------------------------------------------------------------------------------

    def _fetch_state(self, effect: FetchState) -> None:
        self._cancel_fetch()
        self._fetch = anyio.CancelScope()
        self.settled = False
        if effect.purpose is Purpose.SYNC:
            self.recovery.resync()
        self.tasks.start_soon(self._run_fetch, effect, self._fetch, name="towline fetch")

    def _cancel_fetch(self, effect: CancelFetch | None = None) -> None:
        scope, self._fetch = self._fetch, None
        if scope is not None:
            scope.cancel()

    async def _run_fetch(self, effect: FetchState, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(effect.delay)
            state = await self._fetched(effect)
            if effect.purpose is Purpose.SYNC:
                await self._sync(effect, state)
            elif isinstance(state, TowlineError):
                await self._failed(state, Place.STATUS, effect.generation, effect.fetch)
            elif effect.purpose is Purpose.STALL:
                self._look_into_silence(state, effect)
            elif state.ended:
                self._act(self.recovery.look(state), effect.generation)
            if self._fetch is scope:
                self._fetch = None
                self._settle()

    async def _fetched(self, effect: FetchState) -> JobState | TowlineError:
        policy = self.settings.policy
        patient = effect.purpose is Purpose.SYNC
        try:
            token = await self.tokens.get(fresh=effect.fresh_token) if patient else self.tokens.held
            if token is None:
                return StateUnreachable("an answer about the job", "without a token")
            return await self.calls.fetch_state(
                self.settings.job,
                token,
                tries=1 + len(policy.fetch_waits) if patient else 1,
                waits=policy.fetch_waits,
                deadline=policy.fetch_deadline if patient else policy.status_deadline,
            )
        except TowlineError as error:
            return error

    async def _sync(self, effect: FetchState, state: JobState | TowlineError) -> None:
        """Bring the state and what the socket tells together."""
        recovery, generation = self.recovery, effect.generation
        ended = isinstance(state, JobState) and state.ended
        if isinstance(state, JobState) and ended:
            finding = recovery.state(state)
            if finding is not None:
                self._act(finding, generation)
                return
        if isinstance(state, TowlineError) or state.seq is not None:
            # A replay is worth more than a snapshot, and may still come.
            with anyio.move_on_after(ACK_WAIT):
                while recovery.awaiting_ack:
                    await self._next_batch()
        if isinstance(state, JobState) and not recovery.replaying:
            self._act(recovery.held_end() if ended else recovery.state(state), generation)
        while recovery.replaying:
            with anyio.move_on_after(self.settings.policy.fetch_deadline) as waiting:
                await self._next_batch()
            if waiting.cancelled_caught:
                self._give_up_replay(effect, state)
        if isinstance(state, TowlineError) and recovery.phase is Phase.HOLDING:
            await self._failed(state, Place.SYNC, generation, effect.fetch)

    async def _next_batch(self) -> None:
        if self._batch_came is None:
            self._batch_came = anyio.Event()
        await self._batch_came.wait()

    def _give_up_replay(self, effect: FetchState, state: JobState | TowlineError) -> None:
        held = self.recovery.held_end()
        self.recovery.give_up_replay()
        if held is not None:
            self._act(held, effect.generation)
        elif isinstance(state, JobState):
            self._act(self.recovery.state(state), effect.generation)

    def _look_into_silence(self, state: JobState, effect: FetchState) -> None:
        finding = self.recovery.look(state)
        updates = self.recovery.take()
        if updates or finding is not None:
            self._stall_told = False
            self._publish(updates)
            self._act(finding, effect.generation)
        elif not self._stall_told:
            self._stall_told = True
            silence = anyio.current_time() - self._last_job_message
            self._publish([Stalled(job=self.settings.job, seconds=round(silence, 3))])

    def _settle(self) -> None:
        """The last word of a status fetch is spoken: giving up may be told now."""
        self.settled = True
        if self.snapshot.state is State.EXHAUSTED:
            self.delivery.given_up = self.exhausted
            self._look_again()

    # --- effects: timers -------------------------------------------------------------------------------------------

    def _arm(self, effect: Arm) -> None:
        delay = effect.delay.draw(self.settings.random)
        if effect.timer is Timer.STALL:
            self._stall_ticket = effect.ticket
        self.timers.arm(effect.timer, effect.ticket, delay)

    def _disarm(self, effect: Disarm) -> None:
        self.timers.disarm(effect.timer)

    def _expired(self, timer: Timer | str, ticket: int) -> None:
        if not isinstance(timer, Timer):
            self._renewal = anyio.CancelScope()
            self.tasks.start_soon(self._renew_token, self._renewal, name="towline token")
        elif timer is Timer.STALL:
            self._silence_limit_reached(ticket)
        elif timer is Timer.STABILITY and self._nothing_came_since():
            self.timers.arm(timer, ticket, self.settings.policy.ping_after)
        else:
            self.post(_EXPIRIES[timer](ticket=ticket))

    def _silence_limit_reached(self, ticket: int) -> None:
        """The stall timer is not moved at each message: it looks back, and goes on if one has come."""
        remaining = self._last_job_message + self.settings.policy.stall_after[0] - anyio.current_time()
        if not self._silent and remaining > 0:
            self.timers.arm(Timer.STALL, ticket, remaining)
        else:
            first, self._silent = not self._silent, True
            self.post(StalledEvent(ticket=ticket, first=first))

    def _nothing_came_since(self) -> bool:
        link = self._link
        return link is not None and link.websocket is not None and link.websocket.last_received <= link.connected_at

    # --- telling ---------------------------------------------------------------------------------------------------

    def _tell(self, change: StateChange) -> None:
        """Tell of a change of state, after the effects that belong before it."""
        state, cause = change.state, change.cause
        lost_link = change.previous in _LINKED and state in _TRYING
        why = "" if cause is None else f" ({escape(cause.text)})"
        _LOG.info("%s -> %s%s", change.previous.value, state.value, why)
        self._follow_state(state)
        with self._turn():
            if lost_link:
                self.handlers.call(self.settings.on_disconnected, change)
            self.handlers.call(self.settings.on_state, change)
        if state is State.CANCELLED:
            self.handlers.give_up_after(HANDLERS_WAIT)
        self._look_again()

    def _follow_state(self, state: State) -> None:
        """What lives with a state, beside what the machine asks for."""
        if state is not State.EXHAUSTED:
            self.delivery.given_up = None
        if state is State.CONNECTED:
            self.counts["connects"] += 1
            if self._link is not None:
                self._link.connected_at = anyio.current_time()
            self._await_renewal()
        else:
            self.timers.disarm(_RENEWAL)
        if state is State.IDLE or state is State.CANCELLED:
            if self._renewal is not None:
                self._renewal.cancel()
            if self.outcome is None:
                self.delivery.stop()
        else:
            self.delivery.stopped = False
        if state is State.CANCELLED:
            for scope in self._user_calls:
                scope.cancel()

    def _look_again(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        self.delivery.look()

    async def wait_changed(self) -> None:
        """Wait until there is a reason to look again at how things stand."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, once that was delivered."""
        return self.delivery.outcome

    def exhausted(self) -> Exhausted:
        """The error that tells of giving up, with the last failure as its cause."""
        snapshot = self.snapshot
        text = "no attempt was made" if snapshot.cause is None else snapshot.cause.text
        error = Exhausted(snapshot.reason or "budget", text)
        error.__cause__ = self.last_error
        return error

    # --- what is kept on record ------------------------------------------------------------------------------------

    def _await_renewal(self) -> None:
        """Renew a token in time while connected; it changes nothing but the token."""
        expires = self.tokens.expires
        if expires is not None and self.tokens.renewable:
            left = expires - self.settings.wall_time()
            if left > 0:
                self.timers.arm(_RENEWAL, 0, max(left - RENEW_BEFORE + 1, _RENEWAL_SPACING))

    async def _renew_token(self, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await self.tokens.get()
            except TowlineError as error:
                _LOG.warning("the token could not be renewed: %s", escape(str(error)))
            if self.snapshot.state is State.CONNECTED:
                self._await_renewal()

    def _moved(self) -> None:
        self.journal.cursor_moved()

    def _save_cursor(self, effect: SaveCursor) -> None:
        self.journal.flush()

    def _end_taken(self) -> None:
        if self.outcome is not None:
            self.journal.ended(self.outcome)

    # --- the life of the engine ------------------------------------------------------------------------------------

    def start(self, cursor: Cursor | None) -> None:
        """Take the job up after `cursor`."""
        self.recovery = Recovery(self.settings.job, codec=self.settings.codec, cursor=cursor)
        self.delivery.begin(cursor)
        self.journal.begin(cursor)

    def start_ended(self, outcome: Outcome) -> None:
        """Hold an end that is on record: nothing is dialled."""
        self.snapshot = Snapshot(outcome=OUTCOME_KINDS[type(outcome)])
        self.delivery.begin(None)
        self.delivery.outcome = outcome
        self.delivery.end(None)
        self.journal.begin(None, ended=True)

    async def stop(self, *, leave: bool) -> None:
        """Close what is open and write what is due. With `leave` nothing of it runs any more after that."""
        self.request(Close(accepted=self.cancel_accepted))
        await self.all_gone()
        if leave:
            await self.handlers.settle(HANDLERS_WAIT)
            self._left_at = anyio.current_time()
        await self.journal.settle(last=leave)

    # --- calls for the user ----------------------------------------------------------------------------------------

    async def fetch_result(self, max_bytes: int) -> Any:
        """The job's result, wherever it is."""
        outcome = self.outcome
        if outcome is None:
            raise StateUnreachable("the job's result", self.snapshot.state.value)
        if not isinstance(outcome, JobComplete):
            return None
        url = outcome.result_url
        if url is None:
            return outcome.result
        data = await self._authorised(
            lambda token: self.calls.fetch_result(self.settings.job, url, token, max_body=max_bytes)
        )
        return self.settings.codec.decode_result(outcome.pipeline, data)

    async def cancel_job(self) -> CancelAnswer:
        """Ask the server to stop the job."""
        self._raise_if_cancelled("cancel_job")
        with anyio.CancelScope() as scope:
            self._user_calls.add(scope)
            try:
                return await self._ask_to_stop()
            finally:
                self._user_calls.discard(scope)
        self._raise_if_cancelled("cancel_job")
        raise AssertionError("only cancel() ends a call")

    def _raise_if_cancelled(self, request: str) -> None:
        if self.snapshot.state is State.CANCELLED:
            raise Cancelled(request, State.CANCELLED.value, "it was cancelled, which is final")

    async def _ask_to_stop(self) -> CancelAnswer:
        # Until it is answered, asking again is the same request.
        key = self._cancel_key = self._cancel_key or uuid.uuid4().hex
        answer = await self._authorised(lambda token: self.calls.cancel_job(self.settings.job, token, key))
        self._cancel_key = None
        if answer == "accepted":
            self.cancel_accepted = True
        elif answer == "too_late":
            # It has ended already: its state tells how, wherever the socket is.
            with suppress(TowlineError):
                state = await self._authorised(lambda token: self.calls.fetch_state(self.settings.job, token, tries=1))
                if state.ended and self.outcome is None and self.snapshot.state is not State.IDLE:
                    self._act(self.recovery.look(state), self.snapshot.generation)
        return answer

    async def _authorised(self, call: Callable[[Secret], Awaitable[T]]) -> T:
        """Make a call; with a fresh token again, if the server does not take the one in use."""
        try:
            return await call(await self.tokens.get())
        except UnexpectedResponse as error:
            if error.status != 401 or not self.tokens.renewable:
                raise
        return await call(await self.tokens.get(fresh=True))


def _is_of_the_job(frame: Frame) -> bool:
    """Whether the job has spoken: a heartbeat is none of its words."""
    if isinstance(frame, JobProgressFrame):
        return not frame.payload.keep_alive
    return not isinstance(frame, PingFrame | PongFrame | ReadyAckFrame)


# One table for all engines: a connection that idles should cost little.
_PERFORM: Final[dict[type, Callable[[Engine, Any], None]]] = {
    Dial: Engine._dial,
    AbandonDial: Engine._abandon_dial,
    Greet: Engine._greet,
    FetchState: Engine._fetch_state,
    CancelFetch: Engine._cancel_fetch,
    CloseSocket: Engine._close_socket,
    Probe: Engine._probe,
    Arm: Engine._arm,
    Disarm: Engine._disarm,
    ReleaseBuffer: Engine._release_buffer,
    Deliver: Engine._deliver,
    SaveCursor: Engine._save_cursor,
    StateChange: Engine._tell,
}
