"""The engine of one connection: puts its parts together and performs the lifecycle's effects with them.

Its rules, next to those of the runner:

- Asynchronous work carries the generation in which it started; a result from an older generation is stale.
- One socket. A socket that is no longer used is closed before the next attempt opens one.
- Data frames go from the socket to the subscribers and bypass the state machine, which gets only what they mean for the
  lifecycle.
- No task outlives the connection's block; cleanup is shielded and has a deadline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from anyio import TaskHandle

from .._exceptions import Exhausted
from .._facts import Position
from .._tasks import Tasks, failure_of
from .._text import escape
from .._updates import OUTCOME_KINDS, Outcome
from ..runner import Driver
from ..statemachine import (
    EXPIRIES,
    AbandonDial,
    AnyEffect,
    AnyEvent,
    Arm,
    CancelFetch,
    Close,
    CloseSocket,
    Deliver,
    Dial,
    Disarm,
    Facts,
    FetchState,
    Greet,
    Opened,
    Probe,
    Recorder,
    ReleaseBuffer,
    RenewToken,
    ReportGivingUp,
    ResumeDelivery,
    SaveCursor,
    SkipState,
    Snapshot,
    State,
    StateChange,
    StopDelivery,
    StopRenewal,
    Timer,
    TokenRenewed,
    Verdict,
)
from .attempts import Attempts
from .calls import RequestedCalls
from .delivery.delivery import Delivery
from .delivery.handlers import Handlers
from .delivery.journal import Journal
from .delivery.publisher import Publisher
from .failures import Failures
from .intake import Intake
from .lifecycle import ConnectionRunner, ConnectionStep, Levels, Lifecycle
from .looks import Looks
from .reader import Reader
from .sequence.sequencer import UNPLACED, Sequencer
from .settings import Settings
from .tokens import Token, TokenSource

#: Seconds that coroutine handlers may continue after `cancel()`.
HANDLERS_WAIT: Final = 0.5

#: Seconds for closing beyond the closing handshake: a slow disk, a slow handler.
_MARGIN: Final = 3.0

# Effects that release something or report a fact: always performed, even if the state has changed since.
_ALWAYS_PERFORMED: Final = (
    AbandonDial,
    CancelFetch,
    CloseSocket,
    Deliver,
    Disarm,
    ResumeDelivery,
    SaveCursor,
    StopDelivery,
    StopRenewal,
)


class Engine:
    """Drives one connection, from `cursor` on. `Connection` creates it and calls it from its public methods."""

    def __init__(self, settings: Settings, tasks: Tasks, lifecycle: Lifecycle, cursor: Position | None) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.recorder = Recorder(settings.policy)
        replays_end = getattr(settings.protocol, "replays_end", False)
        self.sequencer = Sequencer(settings.job, cursor=cursor, replays_end=replays_end)
        self._tasks = tasks
        self._lifecycle = lifecycle
        self._cursor = cursor
        self._renewal: TaskHandle[None, Any] | None = None
        # A given token that goes to the store once the server has accepted it.
        self._unproven: Token | None = None
        self.runner: ConnectionRunner = Driver(
            lifecycle.steps,
            tasks,
            perform=self._perform,
            always=_ALWAYS_PERFORMED,
            took=self._record,
            changed=self._report_change,
            expired=self._expired,
            broke=lambda failure: self.failures.unexpected(failure),
        )
        post, reader = self.runner.post, Reader(settings.protocol)
        self._reader = reader

        def snapshot() -> Snapshot:
            return lifecycle.steps.snapshot

        max_waiting = settings.access.limits.max_waiting
        self.handlers = Handlers(
            tasks,
            lambda: self.snapshot.state is State.CANCELLED,
            made_room=lambda: self.delivery.look_for_room(),
            max_waiting=max_waiting,
        )
        self.delivery = Delivery(
            catch_up=self.runner.pump,
            end_taken=self._end_taken,
            overflowed=lambda: self.publisher.overflowed(),
            soon=self.runner.soon,
            max_waiting=max_waiting,
            handled=settings.on_update is not None,
            handlers_full=lambda: self.handlers.is_full,
        )
        self.journal = Journal(settings, tasks, self._position_to_store)
        self.delivery.moved = self.journal.cursor_moved
        self.tokens = TokenSource(
            settings.job,
            reader,
            settings.access,
            provider=settings.provider,
            exchanges=settings.exchanges_tokens,
            required=settings.token_required,
            deadline=settings.policy.token_deadline,
            changed=self._store_token,
        )
        self.publisher = Publisher(
            self.sequencer,
            self.delivery,
            self.handlers,
            on_update=settings.on_update,
            counts=self.counts,
            snapshot=snapshot,
            post=post,
            turn=self.runner.turn,
            reopening_helps=self._reopening_helps,
        )
        self.intake = Intake(
            settings.job,
            reader,
            self.sequencer,
            counts=self.counts,
            snapshot=snapshot,
            post=post,
            publish=self.publisher.publish,
            act=self.publisher.act,
            is_current=lambda link: self.attempts.current is link,
            no_room=self.delivery.room,
        )
        self.looks = Looks(
            settings,
            tasks,
            reader,
            self.tokens,
            self.sequencer,
            self.intake,
            snapshot=snapshot,
            facts=self.facts,
            post=post,
            publish=self.publisher.publish,
            act=self.publisher.act,
            failed=lambda *args: self.failures.failed(*args),
            finished=self._look_finished,
        )
        self.attempts = Attempts(
            settings,
            tasks,
            reader,
            token=self.tokens.get,
            position=lambda: self.sequencer.applied,
            dialled=lambda: self.counts.update(["dials"]),
            opened=lambda link: post(Opened(generation=link.generation, by_state=link.in_step == "state")),
            received=self.intake.take_in,
            room=self.intake.room,
            failed=lambda *args: self.failures.failed(*args),
            meant=lambda *args: self.failures.meant(*args),
        )
        # Whether giving up waits to be reported until the state fetch has finished.
        self._giving_up = False
        lifecycle.facts = self.facts

    # --- parts that many connections never need -------------------------------------------------------------------

    @cached_property
    def failures(self) -> Failures:
        """What errors mean; made at the first, because an idle connection needs none."""
        return Failures(
            self.settings,
            self._reader,
            want=lambda: None if self.attempts.current is None else self.attempts.current.want,
            snapshot=lambda: self.snapshot,
            path_up=lambda: self._lifecycle.steps.last.levels.path_up,
            renewable=lambda: self.tokens.renewable,
            answered=lambda: self.looks.answered,
            moved=lambda: self.attempts.current is not None and self.attempts.current.began != self.sequencer.applied,
            held_end=self.sequencer.held_end,
            awaited_end=self.sequencer.awaited_end,
            end_of=self.sequencer.look,
            ask_state=self.looks.ask_state,
            act=self.publisher.act,
            skip_state=self.publisher.skip_state,
            post=self.runner.post,
            retry=self._retry_advice,
            forget_cursor=lambda: self.attempts.forget_cursor(),
        )

    @cached_property
    def requested(self) -> RequestedCalls:
        """The calls about the job that the program asks for; made at the first."""
        return RequestedCalls(
            self.settings,
            self._reader,
            self.tokens,
            fetch_state=self.looks.fetch,
            snapshot=lambda: self.snapshot,
            outcome=lambda: self.outcome,
            post=self.runner.post,
            ended=lambda state: self.publisher.act(self.sequencer.look(state), self.snapshot.generation),
        )

    # --- what the parts read ---------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The state machine's current snapshot."""
        return self._lifecycle.steps.snapshot

    def facts(self, levels: Levels | None = None) -> Facts:
        """The current facts; `levels` replaces what the host reported."""
        levels = self._lifecycle.steps.last.levels if levels is None else levels
        tokens = self.tokens
        return Facts(
            now=self.runner.clock(),
            path_up=levels.path_up,
            foreground=levels.foreground,
            token_id=tokens.token_id,
            renewable=tokens.renewable,
            last_sign=self.intake.last_sign,
            renew_in=tokens.renew_in,
            state_required=self.settings.require_state,
            state_call=self.settings.has_state_call and not self._is_polling,
            sources=len(self.settings.protocol.sources),
        )

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, after the end was delivered."""
        return self.delivery.outcome

    @property
    def given_up(self) -> bool:
        """Whether the engine has given up, and the last state fetch has finished."""
        return self.delivery.given_up is not None

    def exhausted(self) -> Exhausted:
        """The error for giving up, with the last failure as its cause."""
        cause = self.snapshot.cause
        error = Exhausted(self.snapshot.reason or "budget", "no attempt was made" if cause is None else cause.text)
        if cause is None or cause.code not in ("gap", "stalled"):
            error.__cause__ = self.failures.last
        return error

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, effect: AnyEffect) -> None:
        _PERFORM[type(effect)](self, effect)

    def _record(self, stepped: ConnectionStep) -> None:
        entry = stepped.entry
        if entry is not None:
            self.recorder.record(stepped.before, entry)
            if entry.verdict in (Verdict.STALE, Verdict.IGNORED):
                self.counts[f"{entry.verdict.value}_events"] += 1

    def _report_change(self, stepped: ConnectionStep) -> None:
        """Report a change of state, after the effects that precede it."""
        before, after, entry = stepped.before, stepped.after, stepped.entry
        # Report a cause with the change it led to; giving up always has a cause.
        news = after.cause is not before.cause or after.state is State.EXHAUSTED
        cause = after.cause if news else None
        at = 0.0 if entry is None else entry.facts.now
        change = StateChange(previous=before.state, state=after.state, cause=cause, at=at)
        why = "" if cause is None else f" ({escape(cause.text)})"
        self._tasks.log.info("%s -> %s%s", before.state.value, after.state.value, why)
        self.handlers.call(self.settings.on_state, change)
        if after.state is State.CONNECTED and self._unproven is not None:
            self._store_token(self._unproven)
        if after.state is State.CANCELLED:
            self.handlers.give_up_after(HANDLERS_WAIT)
        self._wake_waiters()

    def _arm(self, effect: Arm) -> None:
        self.runner.arm(effect.timer, effect.ticket, effect.delay.draw(self.settings.access.random))

    def _expired(self, timer: Timer, ticket: int) -> AnyEvent | None:
        if timer is Timer.STABILITY and self._is_silent_since_connected():
            self.runner.arm(timer, ticket, self.settings.policy.ping_after)
            return None
        return EXPIRIES[timer](ticket=ticket)

    def _is_silent_since_connected(self) -> bool:
        since = self.snapshot.in_step_since
        return since is not None and self.attempts.is_silent_since(since)

    def _greet(self) -> None:
        link = self.attempts.current
        if link is not None:
            found = self.sequencer.opened(link.in_step, link.after, is_stream=not self._is_polling)
            self.publisher.act(found, link.generation)

    @property
    def _is_polling(self) -> bool:
        """Whether each request asks for the state anyway."""
        return self.settings.protocol.sources[self.snapshot.source] == "poll"

    def _reopening_helps(self) -> bool:
        """Whether a gap on this link can be filled by opening it again at the cursor."""
        link = self.attempts.current
        return link is not None and link.in_step != "state" and self.attempts.resumes_at(self.sequencer.applied)

    def _retry_advice(self) -> float | None:
        """The least wait before a reconnect that the server asked for on this link, in seconds."""
        link = self.attempts.current
        return None if link is None or link.source is None else link.source.retry

    # --- giving up and stopping ------------------------------------------------------------------------------------

    def _report_giving_up(self) -> None:
        self._giving_up = True
        if not self.looks.running:
            self._look_finished()

    def _look_finished(self) -> None:
        if self._giving_up:
            self._giving_up = False
            self.delivery.given_up = self.exhausted
            self._wake_waiters()

    def _resume_delivery(self) -> None:
        self._giving_up = False
        self.delivery.given_up = None
        self.delivery.stopped = False

    def _stop_delivery(self, effect: StopDelivery) -> None:
        self.delivery.stop()
        if effect.final and "requested" in vars(self):
            self.requested.give_up()

    def _wake_waiters(self) -> None:
        self.runner.note_change()
        self.delivery.look()

    # --- the token and the store -----------------------------------------------------------------------------------

    def store_if_accepted(self, token: Token) -> None:
        """Store a given token when the server has accepted it. It may be wrong, and the stored one right."""
        self._unproven = token
        if self.snapshot.state is State.CONNECTED:
            self._store_token(token)

    def _store_token(self, token: Token) -> None:
        self._unproven = None
        self.journal.token_changed(token)

    def _renew_token(self) -> None:
        self._renewal = self._tasks.start_soon(self._renew, name="towline token")

    async def _renew(self) -> None:
        try:
            await self.tokens.get()
        except BaseException as error:
            failure = await failure_of(error, "renewing the token", self._tasks.log)
            self._tasks.log.warning("the token could not be renewed: %s", escape(str(failure)))
        self.runner.post(TokenRenewed())

    def _stop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()

    def _end_taken(self) -> None:
        if self.outcome is not None:
            self.journal.ended(self.outcome)

    def _position_to_store(self) -> Position | None:
        # With positions, one that no consumer has reached is not stored: the next process gets the updates again.
        without = self.sequencer.applied is None and self.sequencer.outlet.has_shown
        return UNPLACED if without else self.delivery.position()

    # --- start and stop --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Follow the job."""
        self.delivery.begin(self.sequencer.applied)
        self.journal.begin(self._cursor)

    def start_ended(self, outcome: Outcome) -> None:
        """Start with an outcome from the store: no connection is made."""
        if not self.runner.begin_with(Snapshot(outcome=OUTCOME_KINDS[type(outcome)])):
            return
        self.delivery.begin(None)
        self.delivery.outcome = outcome
        self.delivery.end(None)
        self.journal.begin(None, ended=True)

    async def stop(self, *, leave: bool) -> None:
        """Close the link and write the record. With `leave`, also wait until no task of the engine runs any more."""

        async def released() -> None:
            await self.attempts.all_gone()
            if leave:
                await self.handlers.settle(HANDLERS_WAIT)
                # A request of another thread may have come just before the block was left.
                self.runner.take(Close())
                await self.attempts.all_gone()
            await self.journal.settle(last=leave)

        await self.runner.stop(Close(), released, seconds=self.settings.policy.close_wait + _MARGIN)


# One table for all engines, so that an idle connection costs little.
_PERFORM: Final[dict[type, Callable[[Engine, Any], object]]] = {
    Dial: lambda engine, effect: engine.attempts.dial(effect),
    AbandonDial: lambda engine, _: engine.attempts.abandon_dial(),
    Greet: lambda engine, _: engine._greet(),
    CloseSocket: lambda engine, effect: engine.attempts.close_socket(effect),
    Probe: lambda engine, _: engine.attempts.probe(),
    FetchState: lambda engine, effect: engine.looks.fetch_state(effect),
    CancelFetch: lambda engine, _: engine.looks.cancel_fetch(),
    SkipState: lambda engine, _: engine.publisher.skip_state(),
    ReleaseBuffer: lambda engine, _: engine.publisher.release_buffer(),
    Deliver: lambda engine, effect: engine.publisher.deliver(effect),
    Arm: lambda engine, effect: engine._arm(effect),
    Disarm: lambda engine, effect: engine.runner.disarm(effect.timer),
    SaveCursor: lambda engine, _: engine.journal.flush(),
    RenewToken: lambda engine, _: engine._renew_token(),
    StopRenewal: lambda engine, _: engine._stop_renewal(),
    ReportGivingUp: lambda engine, _: engine._report_giving_up(),
    ResumeDelivery: lambda engine, _: engine._resume_delivery(),
    StopDelivery: lambda engine, effect: engine._stop_delivery(effect),
}
