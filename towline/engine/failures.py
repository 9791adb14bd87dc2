"""Turns each error of an attempt, a socket or a state call into the event that it means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from .._exceptions import TowlineError, UnexpectedFailure
from .._tasks import is_failure
from ..statemachine import (
    AnyEvent,
    AskState,
    Cause,
    Lost,
    Place,
    Refused,
    Snapshot,
    TokenRejected,
    Unavailable,
    classify,
)
from .recovery import End, Finding
from .settings import Settings


class Failures:
    """Classifies errors, and asks for the job's state where only that can decide.

    - `path_up`, `renewable` and `answered` are facts: a network path is there, a token can be renewed, the state call
      has worked before.
    - `held_end` returns the end that a state reported during a replay, once.
    - `ask_state` decides by the job's state; `act` turns a finding into an event; `skip_state` syncs without a state.
    - `report` gets an error that a function of the program raised.
    """

    __slots__ = (
        "_act",
        "_answered",
        "_ask_state",
        "_held_end",
        "_path_up",
        "_post",
        "_renewable",
        "_report",
        "_settings",
        "_skip_state",
        "_snapshot",
        "last",
    )

    def __init__(
        self,
        settings: Settings,
        *,
        snapshot: Callable[[], Snapshot],
        path_up: Callable[[], bool],
        renewable: Callable[[], bool],
        answered: Callable[[], bool],
        held_end: Callable[[], End | None],
        ask_state: Callable[[AskState], Awaitable[Lost | Refused | End]],
        act: Callable[[Finding, int], object],
        skip_state: Callable[[], object],
        post: Callable[[AnyEvent], object],
        report: Callable[[BaseException], object],
    ) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._path_up = path_up
        self._renewable = renewable
        self._answered = answered
        self._held_end = held_end
        self._ask_state = ask_state
        self._act = act
        self._skip_state = skip_state
        self._post = post
        self._report = report
        #: The latest error of an attempt, a socket or a sync.
        self.last: BaseException | None = None

    def unexpected(self, failure: UnexpectedFailure) -> Refused:
        """The event that gives up after a failure that no part of the engine expected."""
        self.last = failure
        cause = Cause(code="unexpected", text=str(failure))
        return Refused(generation=self._snapshot().generation, reason="protocol", cause=cause)

    async def failed(self, error: TowlineError, place: Place, generation: int, fetch: int | None = None) -> None:
        """Turn an error into the event that it means."""
        if place is not Place.STATUS:
            # Without its traceback, which would keep the attempt's objects alive.
            self.last = error.with_traceback(None)
        held = self._held_end() if place is Place.SOCKET else None
        if held is not None:
            # The replay broke off, but a state had reported the end already.
            self._act(held, generation)
            return
        meaning = classify(
            error,
            place,
            path_up=self._path_up(),
            renewable=self._renewable(),
            strict_sync=self._settings.strict_sync,
            cancel_accepted=self._snapshot().cancel_accepted,
            state_answered=self._answered(),
        )
        if place is not Place.STATUS and not isinstance(meaning, AskState):
            try:
                meaning = self._settings.reclassified(error, place, meaning)
            except BaseException as raised:
                if not is_failure(raised):
                    raise
                self._report(raised)
        if isinstance(meaning, AskState):
            answer = await self._ask_state(meaning)
            if isinstance(answer, End):
                self._act(answer, generation)
                return
            meaning = answer
        if isinstance(meaning, Unavailable):
            self._skip_state()
        elif isinstance(meaning, Lost):
            self._post(Lost(generation=generation, fetch=fetch, cause=meaning.cause))
        elif isinstance(meaning, Refused):
            self._post(replace(meaning, generation=generation, fetch=fetch))
        elif isinstance(meaning, TokenRejected):
            self._post(
                TokenRejected(generation=generation, fetch=fetch, cause=meaning.cause, by_fetch=meaning.by_fetch)
            )
