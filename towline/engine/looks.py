"""Fetches of the job's state: to sync, to check whether the job ended meanwhile, to check on a silence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from .._exceptions import StateUnreachable, TowlineError, UnexpectedResponse
from .._tasks import Tasks, failure_of
from .._updates import AnyUpdate, Stalled
from ..protocols.wire import JobState
from ..sources import JobCalls
from ..statemachine import AnyEvent, AskState, Facts, FetchState, Lost, Place, Purpose, Refused, Snapshot, State
from ..statemachine import StillSilent as StillSilentEvent
from .intake import Intake
from .recovery import End, Finding, Phase, Recovery
from .settings import Settings
from .tokens import TokenSource

#: Seconds that a fetched state waits for the server's answer to `ready`, which may start a replay instead.
ACK_WAIT: Final = 1.0


class Looks:
    """Runs one state fetch at a time and combines its answer with the socket's frames.

    `act` turns a finding into an event, `publish` delivers updates, `failed` gets the error of a fetch, `finished` is
    called when no fetch is running any more.
    """

    __slots__ = (
        "_act",
        "_calls",
        "_current",
        "_facts",
        "_failed",
        "_finished",
        "_intake",
        "_post",
        "_publish",
        "_recovery",
        "_settings",
        "_snapshot",
        "_tasks",
        "_tokens",
        "answered",
    )

    def __init__(
        self,
        settings: Settings,
        tasks: Tasks,
        calls: JobCalls,
        tokens: TokenSource,
        recovery: Recovery,
        intake: Intake,
        *,
        snapshot: Callable[[], Snapshot],
        facts: Callable[[], Facts],
        post: Callable[[AnyEvent], object],
        publish: Callable[[list[AnyUpdate]], object],
        act: Callable[[Finding, int], object],
        failed: Callable[[TowlineError, Place, int, int], Awaitable[object]],
        finished: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._calls = calls
        self._tokens = tokens
        self._recovery = recovery
        self._intake = intake
        self._snapshot = snapshot
        self._facts = facts
        self._post = post
        self._publish = publish
        self._act = act
        self._failed = failed
        self._finished = finished
        self._current: anyio.CancelScope | None = None
        #: Whether the state call has worked once.
        self.answered = False

    @property
    def running(self) -> bool:
        """Whether a fetch is running."""
        return self._current is not None

    def fetch_state(self, effect: FetchState) -> None:
        """Start a fetch, replacing the current one."""
        self.cancel_fetch()
        self._current = anyio.CancelScope()
        if effect.purpose is Purpose.SYNC:
            self._recovery.resync()
        self._tasks.start_soon(self._run, effect, self._current, name="towline fetch")

    def cancel_fetch(self) -> None:
        """Give up the current fetch."""
        scope, self._current = self._current, None
        if scope is not None:
            scope.cancel()

    async def ask_state(self, meaning: AskState) -> Lost | Refused | End:
        """Fetch the state once to decide what a failure means."""
        try:
            token = await self._tokens.get()
            state = await self._calls.fetch_state(
                self._settings.job, token, tries=1, deadline=self._settings.policy.fetch_deadline
            )
        except UnexpectedResponse as error:
            return meaning.gone if meaning.gone is not None and error.status in (404, 410) else meaning.otherwise
        except BaseException as error:
            await failure_of(error, "a state call")
            return meaning.otherwise
        self.answered = True
        if not state.ended:
            return meaning.otherwise
        finding = self._recovery.look(state)
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
                self._finished()

    async def _look(self, effect: FetchState, state: JobState | TowlineError) -> None:
        """React to a clear answer only: the end, a sign of the job, or that the job is gone."""
        if isinstance(state, TowlineError):
            await self._failed(state, Place.STATUS, effect.generation, effect.fetch)
        if effect.purpose is Purpose.STALL:
            self._look_into_silence(state, effect)
        elif isinstance(state, JobState):
            self._intake.note_state(state, effect.generation, moved=self._recovery.is_ahead(state))
            if state.ended:
                self._act(self._recovery.look(state), effect.generation)

    def _look_into_silence(self, answer: JobState | TowlineError, effect: FetchState) -> None:
        """Process the state call's answer after a silence of the job; report the silence if it continues."""
        if isinstance(answer, JobState):
            finding = self._recovery.look(answer)
            updates = self._recovery.take()
            moved = finding is not None or bool(updates)
            if self._intake.note_state(answer, effect.generation, moved=moved):
                self._publish(updates)
                self._act(finding, effect.generation)
                return
        snapshot = self._snapshot()
        if snapshot.state is not State.CONNECTED:
            return
        silence = snapshot.silent_seconds(self._facts())
        self._publish([Stalled(job=self._settings.job, seconds=round(silence, 3))])
        self._post(StillSilentEvent(generation=effect.generation, fetch=effect.fetch))

    async def _fetched(self, effect: FetchState) -> JobState | TowlineError:
        policy = self._settings.policy
        patient = effect.purpose is Purpose.SYNC
        try:
            token = await self._tokens.get(fresh=effect.fresh_token) if patient else self._tokens.held
            if token is None:
                return StateUnreachable("the job's state", "without a token")
            state = await self._calls.fetch_state(
                self._settings.job,
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
        recovery, generation = self._recovery, effect.generation
        ended = isinstance(state, JobState) and state.ended
        if isinstance(state, JobState):
            self._intake.note_state(state, generation, moved=recovery.is_ahead(state))
        if isinstance(state, JobState) and ended:
            finding = recovery.state(state)
            if finding is not None:
                self._act(finding, generation)
                return
        if isinstance(state, TowlineError) or state.seq is not None:
            # A replay is better than a snapshot, and may still come.
            with anyio.move_on_after(ACK_WAIT):
                while recovery.awaiting_ack:
                    await self._intake.next_batch()
        if isinstance(state, JobState) and not recovery.replaying:
            self._act(recovery.held_end() if ended else recovery.state(state), generation)
        while recovery.replaying:
            with anyio.move_on_after(self._settings.policy.fetch_deadline) as waiting:
                await self._intake.next_batch()
            if waiting.cancelled_caught:
                self._give_up_replay(effect, state)
        if isinstance(state, TowlineError) and recovery.phase is Phase.HOLDING:
            await self._failed(state, Place.SYNC, generation, effect.fetch)

    def _give_up_replay(self, effect: FetchState, state: JobState | TowlineError) -> None:
        held = self._recovery.held_end()
        self._recovery.give_up_replay()
        if held is not None:
            self._act(held, effect.generation)
        elif isinstance(state, JobState):
            self._act(self._recovery.state(state), effect.generation)
