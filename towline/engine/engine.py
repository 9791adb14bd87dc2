"""The engine: turns the state machine's effects into work on sockets, clocks and files, and the results into events.

With its parts (`_links`, `_data_path`, `_fetches`, `_requests`) it is the only async code that knows the state machine.
Its rules:

- Run to completion. An event raised while effects are performed or a handler runs is queued, never nested.
- A request may come between any two bytecodes of any thread. It steps at once, before it returns, and touches nothing
  else; the loop is woken and performs its effects. Effects left by an older generation are then skipped, unless they
  release something.
- Asynchronous work carries the generation in which it started; a result from an older generation is stale.
- One socket. A socket that is no longer used is closed before the next attempt opens one.
- Data frames go from the socket to the subscribers and bypass the state machine, which gets only what they mean for the
  lifecycle.
- No task outlives the connection's block; cleanup is shielded and has a deadline.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
from msgspec.structs import replace

from .._exceptions import Exhausted, TowlineError, UnexpectedFailure
from .._loop import Loop
from .._tasks import Tasks, failure_of, is_failure, unexpected
from .._text import escape
from .._updates import OUTCOME_KINDS, Outcome, StateChange
from ..runner._steps import Levels, Steps
from ..runner._timers import Timers
from ..statemachine import (
    EXPIRIES,
    AbandonDial,
    AnyEffect,
    AnyEvent,
    Arm,
    AskState,
    CancelFetch,
    Cause,
    Close,
    CloseSocket,
    Deliver,
    Dial,
    Disarm,
    Facts,
    FetchState,
    Greet,
    Lost,
    Place,
    Probe,
    Recorder,
    Refused,
    ReleaseBuffer,
    SaveCursor,
    SkipState,
    Snapshot,
    State,
    Timer,
    TokenRejected,
    Unavailable,
    Verdict,
    classify,
)
from .attempts import Links
from .calls import JobRequests
from .delivery import Delivery
from .handlers import Handlers
from .intake import DataPath
from .journal import Journal
from .looks import Fetches
from .sequencer import Cursor, End, Recovery
from .settings import Settings
from .tokens import RENEW_BEFORE, TokenSource

_LOG: Final = logging.getLogger("towline")

#: The one timer outside the state machine: it renews the token and raises no event.
_RENEWAL: Final = "token renewal"
_RENEWAL_SPACING: Final = 5.0

#: Seconds that coroutine handlers may continue after `cancel()`.
HANDLERS_WAIT: Final = 0.5

# Effects that release something or report a fact: always performed, whatever has happened since.
_ALWAYS_PERFORMED: Final = (AbandonDial, CancelFetch, CloseSocket, Disarm, Deliver, SaveCursor, StateChange)
_LINKED: Final = frozenset({State.SYNCING, State.CONNECTED})
_TRYING: Final = frozenset({State.CONNECTING, State.RECONNECTING, State.BACKGROUNDED, State.EXHAUSTED})


class Engine:
    """Drives one connection. `Connection` creates it and calls it from its public methods."""

    def __init__(self, settings: Settings, tasks: Tasks, steps: Steps) -> None:
        self.settings = settings
        self.tasks = tasks
        self.clock = Loop().time
        self.steps = steps
        self.recorder = Recorder(settings.policy)
        self.counts: Counter[str] = Counter()
        self.last_error: BaseException | None = None
        #: How often each state was entered, so that a wait for one does not miss a short visit.
        self.visits: Counter[State] = Counter()
        # Created when a task waits for a change of state, and set at the next change.
        self._changed: anyio.Event | None = None
        #: Whether the status fetch of `exhausted` has finished, so that giving up may be reported.
        self.settled = False
        self.links = Links(self)
        self.data = DataPath(self)
        self.fetches = Fetches(self)
        self.requests = JobRequests(self)
        self.handlers = Handlers(tasks, lambda: self.snapshot.state is State.CANCELLED)
        self.delivery = Delivery(
            catch_up=self.pump,
            moved=self._moved,
            end_taken=self._end_taken,
            overflowed=self.data.overflowed,
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
        steps.facts = self.facts
        # The step that was processed last, the effects still to perform, and the events and calls waiting.
        self._taken = steps.take_first()
        self._effects: deque[tuple[int, AnyEffect | StateChange]] = deque()
        self._events: deque[AnyEvent] = deque()
        self._calls: deque[Callable[[], object]] = deque()
        self._pumping = False
        self._renewal: anyio.CancelScope | None = None

    # --- events in -------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The state machine's current snapshot."""
        return self.steps.snapshot

    @property
    def path_up(self) -> bool:
        """Whether the host has a network path, according to its last report."""
        return self.steps.last.levels.path_up

    def facts(self, levels: Levels | None = None) -> Facts:
        """The current facts; `levels` replaces what the host reported."""
        levels = self.steps.last.levels if levels is None else levels
        return Facts(
            now=self.clock(),
            path_up=levels.path_up,
            foreground=levels.foreground,
            token_id=self.tokens.token_id,
            renewable=self.tokens.renewable,
            last_sign=self.data.last_sign,
            state_required=self.settings.strict_sync,
        )

    def post(self, event: AnyEvent) -> None:
        """Queue an event and process it in order. For the engine's own tasks."""
        self._events.append(event)
        self.pump()

    def take(self, event: AnyEvent) -> None:
        """Process a request at once, on the loop; raises `ForbiddenRequest` if the state does not allow it."""
        try:
            self.steps.add(event)
        finally:
            self.pump()

    def request(self, event: AnyEvent) -> None:
        """Step at once for a request; its effects follow. Safe from any thread, signal handler or finalizer.

        Raises `ForbiddenRequest` if the state does not allow it.
        """
        self.change(lambda levels: (levels, event))

    def change(self, news: Callable[[Levels], tuple[Levels, AnyEvent | None]]) -> None:
        """Step at once for a change of the host's levels; otherwise like `request`."""
        try:
            self.steps.change(news)
        finally:
            self.tasks.call_soon(self.pump)

    def soon(self, call: Callable[[], object]) -> None:
        """Have the loop make a call soon. Safe from any thread, signal handler or finalizer."""
        self._calls.append(call)
        self.tasks.call_soon(self.pump)

    def pump(self) -> None:
        """Perform everything that is waiting: calls, effects of steps, events. Runs on the loop."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while True:
                if self._calls:
                    self._perform(self._calls.popleft())
                elif self._effects:
                    generation, effect = self._effects.popleft()
                    if generation == self.snapshot.generation or isinstance(effect, _ALWAYS_PERFORMED):
                        self._perform(_PERFORM[type(effect)], self, effect)
                elif not self.process_steps():
                    if not self._events:
                        break
                    self.steps.add(self._events.popleft())
        finally:
            self._pumping = False

    def process_steps(self) -> bool:
        """Record the steps added since, and queue their effects; returns False if there are none."""
        before = self._taken
        while (stepped := self._taken.following) is not None:
            self._taken = stepped
            entry, after = stepped.entry, stepped.after
            if entry is None:
                continue
            self.recorder.record(stepped.before, entry)
            if entry.verdict in (Verdict.STALE, Verdict.IGNORED):
                self.counts[f"{entry.verdict.value}_events"] += 1
            self._effects.extend((after.generation, effect) for effect in stepped.effects)
            if after.state is not stepped.before.state:
                self.visits[after.state] += 1
                # Report a cause with the change it led to; giving up always has a cause.
                news = after.cause is not stepped.before.cause or after.state is State.EXHAUSTED
                cause = after.cause if news else None
                change = StateChange(previous=entry.source, state=after.state, cause=cause, at=entry.facts.now)
                self._effects.append((after.generation, change))
        return self._taken is not before

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Call the program's functions inside this block: their requests are performed after it."""
        outer, self._pumping = self._pumping, True
        try:
            yield
        finally:
            self._pumping = outer
        self.pump()

    def _perform(self, call: Callable[..., object], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            self.broke(unexpected(error, "the engine"))

    # --- failures --------------------------------------------------------------------------------------------------

    def broke(self, failure: UnexpectedFailure) -> None:
        """Give up after a failure that no part of the engine expected."""
        self.last_error = failure
        cause = Cause(code="unexpected", text=str(failure))
        self.post(Refused(generation=self.snapshot.generation, reason="protocol", cause=cause))

    async def failed(self, error: TowlineError, place: Place, generation: int, fetch: int | None = None) -> None:
        """Turn an error into the event that it means."""
        if place is not Place.STATUS:
            # Without its traceback, which would keep the attempt's objects alive.
            self.last_error = error.with_traceback(None)
        settings = self.settings
        held = self.recovery.held_end() if place is Place.SOCKET else None
        if held is not None:
            # The replay broke off, but a state had reported the end already.
            self.data.act(held, generation)
            return
        meaning = classify(
            error,
            place,
            path_up=self.path_up,
            renewable=self.tokens.renewable,
            strict_sync=settings.strict_sync,
            cancel_accepted=self.snapshot.cancel_accepted,
            state_answered=self.fetches.answered,
        )
        if place is not Place.STATUS and not isinstance(meaning, AskState):
            try:
                meaning = settings.reclassified(error, place, meaning)
            except BaseException as raised:
                if not is_failure(raised):
                    raise
                self.handlers.report(raised)
        if isinstance(meaning, AskState):
            answer = await self.fetches.ask_state(meaning)
            if isinstance(answer, End):
                self.data.act(answer, generation)
                return
            meaning = answer
        if isinstance(meaning, Unavailable):
            self.data.act(self.recovery.unavailable(), generation)
        elif isinstance(meaning, Lost):
            self.post(Lost(generation=generation, fetch=fetch, cause=meaning.cause))
        elif isinstance(meaning, Refused):
            self.post(replace(meaning, generation=generation, fetch=fetch))
        elif isinstance(meaning, TokenRejected):
            self.post(TokenRejected(generation=generation, fetch=fetch, cause=meaning.cause, by_fetch=meaning.by_fetch))

    def settle(self) -> None:
        """Report giving up now that the status fetch has finished."""
        self.settled = True
        if self.snapshot.state is State.EXHAUSTED:
            self.delivery.given_up = self.exhausted
            self._wake_waiters()

    # --- effects: timers -------------------------------------------------------------------------------------------

    def _arm(self, effect: Arm) -> None:
        delay = effect.delay.draw(self.settings.random)
        self.timers.arm(effect.timer, effect.ticket, delay)

    def _disarm(self, effect: Disarm) -> None:
        self.timers.disarm(effect.timer)

    def _expired(self, timer: Timer | str, ticket: int) -> None:
        if not isinstance(timer, Timer):
            self._renewal = anyio.CancelScope()
            self.tasks.start_soon(self._renew_token, self._renewal, name="towline token")
        elif timer is Timer.STABILITY and self.links.is_silent_since_connected():
            self.timers.arm(timer, ticket, self.settings.policy.ping_after)
        else:
            self.post(EXPIRIES[timer](ticket=ticket))

    # --- reporting -------------------------------------------------------------------------------------------------

    def _report_change(self, change: StateChange) -> None:
        """Report a change of state, after the effects that precede it."""
        state, cause = change.state, change.cause
        lost_link = change.previous in _LINKED and state in _TRYING
        why = "" if cause is None else f" ({escape(cause.text)})"
        _LOG.info("%s -> %s%s", change.previous.value, state.value, why)
        self._follow_state(state)
        if lost_link:
            self.handlers.call(self.settings.on_disconnected, change)
        self.handlers.call(self.settings.on_state, change)
        if state is State.CANCELLED:
            self.handlers.give_up_after(HANDLERS_WAIT)
        self._wake_waiters()

    def _follow_state(self, state: State) -> None:
        """Update everything that depends on the state outside the state machine."""
        if state is not State.EXHAUSTED:
            self.delivery.given_up = None
        if state is State.CONNECTED:
            self.counts["connects"] += 1
            if self.links.current is not None:
                self.links.current.connected_at = anyio.current_time()
            self._schedule_renewal()
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
            self.requests.give_up()

    def _wake_waiters(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        self.delivery.look()

    async def wait_changed(self) -> None:
        """Wait until something has changed and conditions must be checked again."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, after the end was delivered."""
        return self.delivery.outcome

    def exhausted(self) -> Exhausted:
        """The error for giving up, with the last failure as its cause."""
        snapshot = self.snapshot
        text = "no attempt was made" if snapshot.cause is None else snapshot.cause.text
        error = Exhausted(snapshot.reason or "budget", text)
        if snapshot.reason != "stalled":
            error.__cause__ = self.last_error
        return error

    # --- stored data -----------------------------------------------------------------------------------------------

    def _schedule_renewal(self) -> None:
        """Schedule the renewal of the token while connected; it affects only the token."""
        expires = self.tokens.expires
        if expires is not None and self.tokens.renewable:
            left = expires - self.settings.wall_time()
            if left > 0:
                self.timers.arm(_RENEWAL, 0, max(left - RENEW_BEFORE + 1, _RENEWAL_SPACING))

    async def _renew_token(self, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await self.tokens.get()
            except BaseException as error:
                failure = await failure_of(error, "renewing the token")
                _LOG.warning("the token could not be renewed: %s", escape(str(failure)))
            if self.snapshot.state is State.CONNECTED:
                self._schedule_renewal()

    def _moved(self) -> None:
        self.journal.cursor_moved()

    def _save_cursor(self, effect: SaveCursor) -> None:
        self.journal.flush()

    def _end_taken(self) -> None:
        if self.outcome is not None:
            self.journal.ended(self.outcome)

    # --- start and stop --------------------------------------------------------------------------------------------

    def start(self, cursor: Cursor | None) -> None:
        """Follow the job from `cursor` on."""
        self.recovery = Recovery(self.settings.job, codec=self.settings.codec, cursor=cursor)
        self.delivery.begin(cursor)
        self.journal.begin(cursor)

    def start_ended(self, outcome: Outcome) -> None:
        """Start with an outcome from the store: no connection is made."""
        if not self.steps.begin_with(self._taken, Snapshot(outcome=OUTCOME_KINDS[type(outcome)])):
            return
        self.delivery.begin(None)
        self.delivery.outcome = outcome
        self.delivery.end(None)
        self.journal.begin(None, ended=True)

    async def stop(self, *, leave: bool) -> None:
        """Close what is open and write what is due. After `leave` nothing is running any more."""
        self.take(Close())
        await self.links.all_gone()
        if leave:
            await self.handlers.settle(HANDLERS_WAIT)
            # A request of another thread may have come just before the block was left.
            self.take(Close())
            await self.links.all_gone()
        await self.journal.settle(last=leave)


# One table for all engines, so that an idle connection costs little.
_PERFORM: Final[dict[type, Callable[[Engine, Any], None]]] = {
    Dial: lambda engine, effect: engine.links.dial(effect),
    AbandonDial: lambda engine, effect: engine.links.abandon_dial(effect),
    Greet: lambda engine, effect: engine.links.greet(effect),
    CloseSocket: lambda engine, effect: engine.links.close_socket(effect),
    Probe: lambda engine, effect: engine.links.probe(effect),
    FetchState: lambda engine, effect: engine.fetches.fetch_state(effect),
    CancelFetch: lambda engine, effect: engine.fetches.cancel_fetch(effect),
    SkipState: lambda engine, effect: engine.data.skip_state(effect),
    ReleaseBuffer: lambda engine, effect: engine.data.release_buffer(effect),
    Deliver: lambda engine, effect: engine.data.deliver(effect),
    Arm: Engine._arm,
    Disarm: Engine._disarm,
    SaveCursor: Engine._save_cursor,
    StateChange: Engine._report_change,
}
