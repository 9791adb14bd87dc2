"""Turns each error of an attempt, a source or a state call into the event that it means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

from msgspec.structs import replace

from .._exceptions import ProtocolFailed, TowlineError, UnexpectedFailure
from .._facts import Ended, Fact, Follow, GetState, Meaning, Means, Want
from ..sources import ResponseEnded, UnusableAnswer, received_of
from ..statemachine import (
    Advice,
    AnyEvent,
    AskState,
    Cause,
    Lost,
    Place,
    Refused,
    Reopen,
    Snapshot,
    SourceRefused,
    TokenRejected,
    Unavailable,
    cause_of,
    classify,
)
from .attempts import Link
from .reader import Reader
from .sequence.findings import End, Finding
from .settings import Settings

_GONE: Final = (404, 410)
#: What the answer to a state call may mean. No other meaning ends a link that works.
_SAID_BY_FETCH: Final[dict[Place, tuple[Meaning, ...]]] = {
    Place.SYNC: ("auth", "refused", "gone"),
    Place.STATUS: ("refused", "gone"),
}


@dataclass(slots=True, eq=False, repr=False)
class Failures:
    """Lets the protocol say what an error means, and otherwise classifies it.

    - `want` is what the current link was asked for.
    - `path_up`, `renewable` and `answered` are facts: a network path is there, a token can be renewed, the state call
      has worked before.
    - `moved` says whether the current link has brought the follower to another position.
    - `held_end` returns the end that a state reported during a replay, once; `awaited_end` the end that waited for a
      link which has now ended in order; `end_of` the end in an answer.
    - `retry` is the wait that the server asked for on this link; `forget_cursor` starts the next attempt without it.
    - `ask_state` decides by the job's state; `act` turns a finding into an event; `skip_state` syncs without a state.
    """

    settings: Settings
    reader: Reader
    _: KW_ONLY
    want: Callable[[], Follow | None]
    snapshot: Callable[[], Snapshot]
    path_up: Callable[[], bool]
    renewable: Callable[[], bool]
    answered: Callable[[], bool]
    moved: Callable[[], bool]
    held_end: Callable[[], End | None]
    awaited_end: Callable[[], End | None]
    end_of: Callable[[tuple[Fact, ...]], Finding]
    ask_state: Callable[[AskState], Awaitable[Lost | Refused | End]]
    act: Callable[[Finding, int], object]
    skip_state: Callable[[], object]
    post: Callable[[AnyEvent], object]
    retry: Callable[[], float | None]
    forget_cursor: Callable[[], object]
    #: The latest error of an attempt, a source or a sync.
    last: BaseException | None = field(default=None, init=False)

    def unexpected(self, failure: UnexpectedFailure) -> Refused:
        """The event that gives up after a failure that no part of the engine expected."""
        self.last = failure
        cause = Cause(code="unexpected", text=str(failure))
        return Refused(generation=self.snapshot().generation, reason="protocol", cause=cause)

    async def failed(self, error: TowlineError, place: Place, generation: int, fetch: int | None = None) -> None:
        """Turn an error into the event that it means."""
        if place is not Place.STATUS:
            # Without its traceback, which would keep the attempt's objects alive.
            self.last = error.with_traceback(None)
        held = self.held_end() if place is Place.SOCKET else None
        if held is None and place is Place.SOCKET and isinstance(error, ResponseEnded):
            held = self.awaited_end()
        if held is not None:
            # A state had reported the end already: the replay broke off, or a stream showed that nothing is missing.
            self.act(held, generation)
            return
        facts = self._read(error, place)
        said: Meaning | None
        if any(isinstance(fact, Ended) for fact in facts):
            found = self.end_of(facts)
            if isinstance(found, End) or place not in (Place.UPGRADE, Place.SOCKET):
                self.act(found, generation)
                return
            said = "lost"  # the end waits for a link that shows what came before, so this attempt is over
        else:
            said = next((fact.what for fact in facts if isinstance(fact, Means)), None)
        cause = self._advised(cause_of(error, place, path_up=self.path_up()), place)
        await self._decide(error, said, cause, place, generation, fetch)

    def _advised(self, cause: Cause, place: Place) -> Cause:
        """The cause with the wait that the server asked for on this link, if the error brought no advice."""
        retry = self.retry() if place is Place.SOCKET and cause.advice is None else None
        return cause if retry is None else replace(cause, advice=Advice(retry_after=retry))

    async def meant(self, said: Meaning, link: Link) -> None:
        """Turn what a message said about its link into the event that it means."""
        cause = Cause(code=said, text=f"the server's message means: {said}")
        await self._decide(None, said, cause, Place.SOCKET, link.generation, None)

    def _read(self, error: TowlineError, place: Place) -> tuple[Fact, ...]:
        """What the protocol reads from an error; nothing if the server said nothing, or the protocol fails."""
        received = received_of(error)
        want: Want | None = self.want() if place in (Place.UPGRADE, Place.SOCKET) else GetState()
        if received is None or want is None or place is Place.TOKEN:
            return ()
        try:
            return self.reader.read(want, received)
        except TowlineError as failure:
            if isinstance(failure, ProtocolFailed):
                self.last = failure
            return ()

    async def _decide(
        self,
        error: TowlineError | None,
        said: Meaning | None,
        cause: Cause,
        place: Place,
        generation: int,
        fetch: int | None,
    ) -> None:
        by_fetch = place in _SAID_BY_FETCH
        if by_fetch and said not in _SAID_BY_FETCH[place]:
            said = None
        meaning: Lost | TokenRejected | Refused | AskState | Unavailable | None
        if said == "source":
            self.post(SourceRefused(generation=generation, cause=cause))
            return
        if said == "cursor":
            self.forget_cursor()
            self.post(Reopen(generation=generation, cause=cause))
            return
        match said:
            case "lost":
                meaning = Lost(cause=cause)
            case "auth":
                meaning = TokenRejected(cause=cause, by_fetch=by_fetch)
            case "refused":
                meaning = Refused(reason="protocol", cause=cause, by_fetch=by_fetch, final=True)
            case "gone":
                meaning = Refused(reason="gone", cause=cause, by_fetch=by_fetch)
            case "ended":
                gone = Refused(reason="gone", cause=cause)
                meaning = AskState(otherwise=Lost(cause=cause), gone=gone, is_complete=error is None)
            case None if isinstance(error, ResponseEnded):
                # Many servers end a stream so when the job has ended. Ask before the next link: it may end at once.
                meaning = AskState(otherwise=Lost(cause=cause, after_news=self.moved()))
            case None if place is Place.SOCKET and isinstance(error, UnusableAnswer) and error.status in _GONE:
                # A poll. Once one has worked, the job was there; before, it may not have been stored yet.
                known = self.snapshot().peer_known
                meaning = Refused(reason="gone", cause=cause) if known else Lost(cause=cause)
            case _ if error is None:
                meaning = Lost(cause=cause)
            case _:
                meaning = classify(
                    error,
                    place,
                    path_up=self.path_up(),
                    renewable=self.renewable(),
                    strict_sync=self.settings.require_state,
                    cancel_accepted=self.snapshot().cancel_accepted,
                    state_answered=self.answered(),
                )
        if isinstance(meaning, AskState):
            answer = await self.ask_state(meaning)
            if isinstance(answer, End):
                self.act(answer, generation)
                return
            meaning = answer
        if isinstance(meaning, Unavailable):
            self.skip_state()
        elif isinstance(meaning, Lost | Refused | TokenRejected):
            self.post(replace(meaning, generation=generation, fetch=fetch, cause=cause))
