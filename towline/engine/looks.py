"""The engine's state fetches: to sync, to check whether the job ended meanwhile, to check on a silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from .._exceptions import StateUnreachable, TowlineError, UnexpectedResponse
from .._tasks import failure_of
from ..protocols import JobState
from ..statemachine import AskState, CancelFetch, FetchState, Lost, Place, Purpose, Refused
from .sequencer import End, Phase

if TYPE_CHECKING:
    from .engine import Engine

#: Seconds that a fetched state waits for the server's answer to `ready`, which may start a replay instead.
ACK_WAIT: Final = 1.0


class Fetches:
    """Runs one state fetch at a time and combines its answer with the socket's frames."""

    __slots__ = ("_current", "_engine", "answered")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._current: anyio.CancelScope | None = None
        #: Whether the state call has worked once.
        self.answered = False

    def fetch_state(self, effect: FetchState) -> None:
        """Start a fetch, replacing the current one."""
        self.cancel_fetch()
        self._current = anyio.CancelScope()
        self._engine.settled = False
        if effect.purpose is Purpose.SYNC:
            self._engine.recovery.resync()
        self._engine.tasks.start_soon(self._run, effect, self._current, name="towline fetch")

    def cancel_fetch(self, effect: CancelFetch | None = None) -> None:
        """Give up the current fetch."""
        scope, self._current = self._current, None
        if scope is not None:
            scope.cancel()

    async def ask_state(self, meaning: AskState) -> Lost | Refused | End:
        """Fetch the state once to decide what a failure means."""
        try:
            token = await self._engine.tokens.get()
            state = await self._engine.calls.fetch_state(
                self._engine.settings.job, token, tries=1, deadline=self._engine.settings.policy.fetch_deadline
            )
        except UnexpectedResponse as error:
            return meaning.gone if meaning.gone is not None and error.status in (404, 410) else meaning.otherwise
        except BaseException as error:
            await failure_of(error, "a state call")
            return meaning.otherwise
        self.answered = True
        if not state.ended:
            return meaning.otherwise
        finding = self._engine.recovery.look(state)
        return finding if isinstance(finding, End) else meaning.otherwise

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
                self._engine.settle()

    async def _look(self, effect: FetchState, state: JobState | TowlineError) -> None:
        """React to a clear answer only: the end, a sign of the job, or that the job is gone."""
        if isinstance(state, TowlineError):
            await self._engine.failed(state, Place.STATUS, effect.generation, effect.fetch)
        if effect.purpose is Purpose.STALL:
            self._engine.data.look_into_silence(state, effect)
        elif isinstance(state, JobState):
            self._engine.data.note_state(state, effect.generation, moved=self._engine.recovery.is_ahead(state))
            if state.ended:
                self._engine.data.act(self._engine.recovery.look(state), effect.generation)

    async def _fetched(self, effect: FetchState) -> JobState | TowlineError:
        policy = self._engine.settings.policy
        patient = effect.purpose is Purpose.SYNC
        try:
            token = await self._engine.tokens.get(fresh=effect.fresh_token) if patient else self._engine.tokens.held
            if token is None:
                return StateUnreachable("the job's state", "without a token")
            state = await self._engine.calls.fetch_state(
                self._engine.settings.job,
                token,
                tries=1 + len(policy.fetch_waits) if patient else 1,
                waits=policy.fetch_waits,
                deadline=policy.fetch_deadline if patient else policy.status_deadline,
            )
            self.answered = True
            return state
        except BaseException as error:
            return await failure_of(error, "a state call")

    async def _sync(self, effect: FetchState, state: JobState | TowlineError) -> None:
        """Combine the state with the socket's frames."""
        recovery, generation = self._engine.recovery, effect.generation
        ended = isinstance(state, JobState) and state.ended
        if isinstance(state, JobState):
            self._engine.data.note_state(state, generation, moved=recovery.is_ahead(state))
        if isinstance(state, JobState) and ended:
            finding = recovery.state(state)
            if finding is not None:
                self._engine.data.act(finding, generation)
                return
        if isinstance(state, TowlineError) or state.seq is not None:
            # A replay is better than a snapshot, and may still come.
            with anyio.move_on_after(ACK_WAIT):
                while recovery.awaiting_ack:
                    await self._engine.data.next_batch()
        if isinstance(state, JobState) and not recovery.replaying:
            self._engine.data.act(recovery.held_end() if ended else recovery.state(state), generation)
        while recovery.replaying:
            with anyio.move_on_after(self._engine.settings.policy.fetch_deadline) as waiting:
                await self._engine.data.next_batch()
            if waiting.cancelled_caught:
                self._give_up_replay(effect, state)
        if isinstance(state, TowlineError) and recovery.phase is Phase.HOLDING:
            await self._engine.failed(state, Place.SYNC, generation, effect.fetch)

    def _give_up_replay(self, effect: FetchState, state: JobState | TowlineError) -> None:
        held = self._engine.recovery.held_end()
        self._engine.recovery.give_up_replay()
        if held is not None:
            self._engine.data.act(held, effect.generation)
        elif isinstance(state, JobState):
            self._engine.data.act(self._engine.recovery.state(state), effect.generation)
