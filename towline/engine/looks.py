"""Fetches of the job's state: to sync, to check whether the job ended meanwhile, to check on a silence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, TypeAlias

import anyio

from .._exceptions import DeadlineExceeded, NetworkError, StateUnreachable, TowlineError, UnexpectedResponse
from .._facts import Ask, Ended, Fact, GetResult, GetState, Numbered
from .._secret import Secret
from .._tasks import Tasks, failure_of
from .._updates import AnyUpdate, Stalled
from ..sources import UnusableAnswer, call
from ..statemachine import AnyEvent, AskState, Facts, FetchState, Lost, Place, Purpose, Refused, Snapshot, State
from ..statemachine import StillSilent as StillSilentEvent
from .intake import Intake
from .reader import Reader
from .sequence.findings import End, Finding
from .sequence.placing import state_of
from .sequence.sequencer import Sequencer
from .settings import Settings
from .tokens import TokenSource

#: Seconds that a fetched state waits for the server's answer to the opening, which may start a replay instead.
ACK_WAIT: Final = 1.0

#: Statuses of temporary failures, worth a retry.
RETRIED: Final = frozenset({408, 425, 429}) | frozenset(range(500, 600))

#: The largest state, in bytes.
MAX_STATE: Final = 16 << 20

#: After so many temporary failures a state counts without the call that completes it.
_INCOMPLETE: Final = 4

#: The facts of a state call.
StateFacts: TypeAlias = tuple[Fact, ...]


@dataclass(slots=True, eq=False, repr=False)
class Looks:
    """Runs one state fetch at a time and combines its answer with what the link brings.

    `act` turns a finding into an event, `publish` delivers updates, `failed` gets the error of a fetch, `finished` is
    called when no fetch is running any more.
    """

    settings: Settings
    tasks: Tasks
    reader: Reader
    tokens: TokenSource
    sequencer: Sequencer
    intake: Intake
    _: KW_ONLY
    snapshot: Callable[[], Snapshot]
    facts: Callable[[], Facts]
    post: Callable[[AnyEvent], object]
    publish: Callable[[list[AnyUpdate]], object]
    act: Callable[[Finding, int], object]
    failed: Callable[[TowlineError, Place, int, int], Awaitable[object]]
    finished: Callable[[], object]
    _current: anyio.CancelScope | None = field(default=None, init=False)
    _incomplete: int = field(default=0, init=False)
    #: Whether the state call has worked once.
    answered: bool = field(default=False, init=False)

    @property
    def running(self) -> bool:
        """Whether a fetch is running."""
        return self._current is not None

    def fetch_state(self, effect: FetchState) -> None:
        """Start a fetch, replacing the current one."""
        self.cancel_fetch()
        self._current = anyio.CancelScope()
        if effect.purpose is Purpose.SYNC:
            self.sequencer.resync()
        self.tasks.start_soon(self._run, effect, self._current, name="towline fetch")

    def cancel_fetch(self) -> None:
        """Give up the current fetch."""
        scope, self._current = self._current, None
        if scope is not None:
            scope.cancel()

    async def ask_state(self, meaning: AskState) -> Lost | Refused | End:
        """Fetch the state once to decide what a failure means."""
        try:
            facts = await self.fetch(await self.tokens.get(), self.settings.policy.fetch_deadline)
        except UnexpectedResponse as error:
            return meaning.gone if meaning.gone is not None and error.status in (404, 410) else meaning.otherwise
        except BaseException as error:
            await failure_of(error, "a state call", self.tasks.log)
            return meaning.otherwise
        if not has_ended(facts):
            return meaning.otherwise
        finding = self.sequencer.look(facts, is_complete=meaning.is_complete)
        return finding if isinstance(finding, End) else meaning.otherwise

    async def fetch(self, token: Secret | None, deadline: float) -> StateFacts:
        """Make the state call once; raises `UnexpectedResponse` if the answer says nothing about the job.

        Raises `StateUnreachable` if the protocol has no such call.
        """
        facts = await self._read_answer(GetState(), token, deadline)
        self.answered = True
        more = next((fact.want for fact in facts if isinstance(fact, Ask)), None)
        if more is None:
            return facts
        try:
            return await self._read_answer(more, token, deadline)
        except TowlineError as error:
            self._incomplete += 1
            if is_temporary(error) and self._incomplete < _INCOMPLETE:
                raise
            return facts

    async def _read_answer(self, want: GetState | GetResult, token: Secret | None, deadline: float) -> StateFacts:
        asked = self.reader.ask(want, token)
        if asked is None:
            raise StateUnreachable("the job's state", "from a server without a state call")
        answer, retry_after = await call(asked, self.settings.access, deadline=deadline, max_body=MAX_STATE)
        facts = self.reader.read(want, answer)
        if state_of(facts) is None:
            raise UnusableAnswer(answer, "the job's state was not sent", retry_after=retry_after)
        return facts

    async def _run(self, effect: FetchState, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await anyio.sleep(effect.delay)
                state = await self._fetched(effect)
                if effect.purpose is Purpose.SYNC:
                    await self._sync(effect, state)
                else:
                    await self._look(effect, state)
        finally:
            if self._current is scope:
                self._current = None
                self.finished()

    async def _look(self, effect: FetchState, state: StateFacts | TowlineError) -> None:
        """React to a clear answer only: the end, a sign of the job, or that the job is gone."""
        if isinstance(state, TowlineError):
            await self.failed(state, Place.STATUS, effect.generation, effect.fetch)
        if effect.purpose is Purpose.STALL:
            self._look_into_silence(state, effect)
        elif not isinstance(state, TowlineError):
            self.intake.note_state(state, effect.generation, moved=self.sequencer.is_ahead(state))
            if has_ended(state):
                # After giving up there is no link that could show what came before.
                is_last = self.snapshot().state is State.EXHAUSTED
                self.act(self.sequencer.look(state, may_wait=not is_last), effect.generation)

    def _look_into_silence(self, answer: StateFacts | TowlineError, effect: FetchState) -> None:
        """Process the state call's answer after a silence of the job; report the silence if it continues."""
        if not isinstance(answer, TowlineError):
            finding = self.sequencer.look(answer)
            updates = self.sequencer.take()
            moved = finding is not None or bool(updates)
            if self.intake.note_state(answer, effect.generation, moved=moved):
                self.publish(updates)
                self.act(finding, effect.generation)
                return
        snapshot = self.snapshot()
        if snapshot.state is not State.CONNECTED:
            return
        silence = snapshot.silent_seconds(self.facts())
        self.publish([Stalled(job=self.settings.job, seconds=round(silence, 3))])
        self.post(StillSilentEvent(generation=effect.generation, fetch=effect.fetch))

    async def _fetched(self, effect: FetchState) -> StateFacts | TowlineError:
        patient = effect.purpose is Purpose.SYNC
        try:
            if patient:
                return await self._fetched_patiently(await self.tokens.get(fresh=effect.fresh_token))
            token = self.tokens.held
            if token is None and (self.settings.token_required or self.settings.provider is not None):
                return StateUnreachable("the job's state", "without a token")
            return await self.fetch(token, self.settings.policy.status_deadline)
        except BaseException as error:
            return await failure_of(error, "a state call", self.tasks.log)

    async def _fetched_patiently(self, token: Secret | None) -> StateFacts:
        """Make the state call with the policy's retries, each after its wait or the server's longer advice.

        5xx, 408, 425, 429, timeouts and errors of the network are retried. Advice beyond the deadline of a try ends
        the tries.
        """
        policy = self.settings.policy
        for wait in policy.fetch_waits:
            advice = 0.0
            try:
                return await self.fetch(token, policy.fetch_deadline)
            except TowlineError as error:
                advice = getattr(error, "retry_after", None) or 0.0
                if not is_temporary(error) or advice > policy.fetch_deadline:
                    raise
            await anyio.sleep(max(wait, advice))
        return await self.fetch(token, policy.fetch_deadline)

    async def _sync(self, effect: FetchState, state: StateFacts | TowlineError) -> None:
        """Combine the state with what the link brings."""
        sequencer, generation = self.sequencer, effect.generation
        ended = False
        if not isinstance(state, TowlineError):
            ended = has_ended(state)
            self.intake.note_state(state, generation, moved=sequencer.is_ahead(state))
            if ended:
                finding = sequencer.state(state)
                if finding is not None:
                    self.act(finding, generation)
                    return
        if isinstance(state, TowlineError) or is_numbered(state):
            # A replay is better than a snapshot, and may still come.
            with anyio.move_on_after(ACK_WAIT):
                while sequencer.awaiting_ack:
                    await self.intake.next_batch()
        while sequencer.replaying:
            reached = sequencer.applied
            with anyio.move_on_after(self.settings.policy.fetch_deadline) as waiting:
                while sequencer.replaying and sequencer.applied == reached:
                    await self.intake.next_batch()
            if waiting.cancelled_caught and not self.intake.is_paused:
                sequencer.give_up_replay()
        if not sequencer.is_waiting:
            return
        if isinstance(state, TowlineError):
            await self.failed(state, Place.SYNC, generation, effect.fetch)
        else:
            self.act(sequencer.held_end() if ended else sequencer.state(state), generation)


def is_temporary(error: TowlineError) -> bool:
    """Whether a failed call is worth a retry."""
    if isinstance(error, UnexpectedResponse):
        return error.status in RETRIED
    return isinstance(error, NetworkError | DeadlineExceeded)


def has_ended(facts: StateFacts) -> bool:
    """Whether a state says that the job has ended."""
    return any(isinstance(fact, Ended) for fact in facts)


def is_numbered(facts: StateFacts) -> bool:
    """Whether a state has a position in a numbered log."""
    state = state_of(facts)
    return state is not None and isinstance(state.at, Numbered)
