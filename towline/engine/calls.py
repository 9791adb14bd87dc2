"""The HTTP calls that the user requests: cancel the job (until `cancel()` gives it up), fetch its result."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, TypeVar

import anyio

from .._exceptions import Cancelled, StateUnreachable, TowlineError, UnexpectedResponse
from .._facts import CancelAnswer, CancelJob, CancelWord, Fact, GetResult, Value, Want
from .._secret import Secret
from .._tasks import failure_of
from .._updates import JobComplete, JobFailed, Outcome
from ..sources import UnusableAnswer, call
from ..statemachine import AnyEvent, CancelAccepted, Snapshot, State
from .looks import StateFacts, has_ended
from .reader import Reader
from .settings import Settings
from .tokens import TokenSource

T = TypeVar("T")

_RESULT: Final = "the job's result"

#: The deadline of a cancel request, and of each wait for more of a result, in seconds.
_CANCEL_DEADLINE: Final = 10.0
_RESULT_DEADLINE: Final = 30.0
#: The largest answer to a cancel request, in bytes.
_MAX_ANSWER: Final = 1 << 20


@dataclass(slots=True, eq=False, repr=False)
class RequestedCalls:
    """Makes the calls, and repeats one with a fresh token if the server rejects the current one.

    `fetch_state` makes the state call once, with a token and a deadline in seconds. `ended` gets the state of a job
    that has ended.
    """

    settings: Settings
    reader: Reader
    tokens: TokenSource
    _: KW_ONLY
    fetch_state: Callable[[Secret | None, float], Awaitable[StateFacts]]
    snapshot: Callable[[], Snapshot]
    outcome: Callable[[], Outcome | None]
    post: Callable[[AnyEvent], object]
    ended: Callable[[StateFacts], object]
    _running: set[anyio.CancelScope] = field(default_factory=set, init=False)
    _cancel_key: str | None = field(default=None, init=False)

    def give_up(self) -> None:
        """Cancel the running requests to cancel the job: the connection was cancelled."""
        for scope in self._running:
            scope.cancel()

    async def fetch_result(self, max_bytes: int) -> Any:
        """Return the job's result, from the outcome or from the server."""
        outcome, state = self.outcome(), self.snapshot().state.value
        if outcome is None:
            raise StateUnreachable(_RESULT, state, "wait for `result()` first")
        if not isinstance(outcome, JobComplete):
            ended = "failed" if isinstance(outcome, JobFailed) else "was canceled"
            raise StateUnreachable(_RESULT, state, f"the job {ended} and has no result")
        # A result of null is a result; if there is none, `problem` says so.
        if outcome.result_url is None and (outcome.result is not None or outcome.problem is None):
            return outcome.result
        want = GetResult(outcome)
        try:
            return await self._with_token(lambda token: self._fetch_result(want, token, max_bytes))
        except UnexpectedResponse as error:
            if error.status not in (404, 410):
                raise
            raise StateUnreachable(_RESULT, state, f"the server has none (HTTP status {error.status})") from error

    async def _fetch_result(self, want: GetResult, token: Secret | None, max_bytes: int) -> Any:
        facts, unusable = await self._call(want, token, _RESULT_DEADLINE, max_bytes)
        for fact in facts:
            if isinstance(fact, Value):
                return fact.value
        raise unusable("the result was not sent")

    async def cancel_job(self) -> CancelWord:
        """Ask the server to cancel the job."""
        self._raise_if_cancelled("cancel_job")
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                return await self._request_cancel()
            finally:
                self._running.discard(scope)
        self._raise_if_cancelled("cancel_job")
        raise AssertionError("only cancel() ends a call")

    def _raise_if_cancelled(self, request: str) -> None:
        if self.snapshot().state is State.CANCELLED:
            raise Cancelled(request, State.CANCELLED.value, "it was cancelled, which is final: make a new Connection")

    async def _request_cancel(self) -> CancelWord:
        # Until it is answered, a repeat is the same request.
        key = self._cancel_key = self._cancel_key or uuid.uuid4().hex
        answer = await self._with_token(lambda token: self._cancel(CancelJob(key), token))
        self._cancel_key = None
        if answer == "accepted":
            self.post(CancelAccepted())
        elif answer == "too_late":
            # The job has ended already: its state says how, in any state of the link.
            with suppress(TowlineError):
                deadline = self.settings.policy.fetch_deadline
                state = await self._with_token(lambda token: self.fetch_state(token, deadline))
                if has_ended(state) and self.outcome() is None and self.snapshot().state is not State.IDLE:
                    self.ended(state)
        return answer

    async def _cancel(self, want: CancelJob, token: Secret | None) -> CancelWord:
        facts, unusable = await self._call(want, token, _CANCEL_DEADLINE, _MAX_ANSWER)
        for fact in facts:
            if isinstance(fact, CancelAnswer):
                return fact.answer
        raise unusable("the cancel request was not accepted: the job or the path of the call does not exist there")

    async def _call(
        self, want: Want, token: Secret | None, deadline: float, max_body: int
    ) -> tuple[tuple[Fact, ...], Callable[[str], UnexpectedResponse]]:
        """The facts of a call's answer, and what makes the error if they are not the ones expected."""
        asked = self.reader.ask(want, token)
        if asked is None:
            state = self.snapshot().state.value
            raise StateUnreachable("an answer of the server", state, "its protocol has no such call")
        answer, retry_after = await call(
            asked,
            self.settings.access,
            deadline=deadline,
            max_body=max_body,
            whole=not isinstance(want, GetResult),
        )
        facts = self.reader.read(want, answer)
        return facts, lambda problem: UnusableAnswer(answer, problem, retry_after=retry_after)

    async def _with_token(self, make: Callable[[Secret | None], Awaitable[T]]) -> T:
        """Make a call, again with a fresh token if the server rejects the current one; translate its errors."""
        try:
            return await self._with_fresh_token(make)
        except BaseException as error:
            raise await failure_of(error, "a call about the job", self.reader.log)  # noqa: B904 - it has its cause

    async def _with_fresh_token(self, make: Callable[[Secret | None], Awaitable[T]]) -> T:
        try:
            return await make(await self.tokens.get())
        except UnexpectedResponse as error:
            if error.status != 401 or not self.tokens.renewable:
                raise
        return await make(await self.tokens.get(fresh=True))
