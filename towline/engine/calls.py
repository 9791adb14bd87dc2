"""The HTTP calls that the user requests: cancel the job, fetch its result. `cancel()` gives them up."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import anyio

from .._exceptions import Cancelled, StateUnreachable, TowlineError, UnexpectedResponse
from .._secret import Secret
from .._tasks import failure_of
from .._updates import JobComplete, JobFailed, Outcome
from ..protocols.wire import CancelAnswer, Codec, JobState
from ..sources import JobCalls
from ..statemachine import AnyEvent, CancelAccepted, Snapshot, State
from .tokens import TokenSource

T = TypeVar("T")

_RESULT: Final = "the job's result"


class RequestedCalls:
    """Makes the calls, and repeats one with a fresh token if the server rejects the current one.

    `ended` gets the state of a job that has ended.
    """

    __slots__ = (
        "_calls",
        "_cancel_key",
        "_codec",
        "_ended",
        "_job",
        "_outcome",
        "_post",
        "_running",
        "_snapshot",
        "_tokens",
    )

    def __init__(
        self,
        job: str,
        codec: Codec,
        calls: JobCalls,
        tokens: TokenSource,
        *,
        snapshot: Callable[[], Snapshot],
        outcome: Callable[[], Outcome | None],
        post: Callable[[AnyEvent], object],
        ended: Callable[[JobState], object],
    ) -> None:
        self._job = job
        self._codec = codec
        self._calls = calls
        self._tokens = tokens
        self._snapshot = snapshot
        self._outcome = outcome
        self._post = post
        self._ended = ended
        self._running: set[anyio.CancelScope] = set()
        self._cancel_key: str | None = None

    def give_up(self) -> None:
        """Cancel the running calls: the connection was cancelled."""
        for scope in self._running:
            scope.cancel()

    async def fetch_result(self, max_bytes: int) -> Any:
        """Return the job's result, from the outcome or from the server."""
        outcome, state = self._outcome(), self._snapshot().state.value
        if outcome is None:
            raise StateUnreachable(_RESULT, state, "wait for `result()` first")
        if not isinstance(outcome, JobComplete):
            ended = "failed" if isinstance(outcome, JobFailed) else "was canceled"
            raise StateUnreachable(_RESULT, state, f"the job {ended} and has no result")
        url = outcome.result_url
        # A result of null is a result; if there is none, `problem` says so.
        if url is None and (outcome.result is not None or outcome.problem is None):
            return outcome.result
        try:
            data = await self._with_token(
                lambda token: self._calls.fetch_result(self._job, url, token, max_body=max_bytes)
            )
        except UnexpectedResponse as error:
            if error.status not in (404, 410):
                raise
            raise StateUnreachable(_RESULT, state, f"the server has none (HTTP status {error.status})") from error
        return self._codec.decode_whole_result(outcome.pipeline, data).value

    async def cancel_job(self) -> CancelAnswer:
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
        if self._snapshot().state is State.CANCELLED:
            raise Cancelled(request, State.CANCELLED.value, "it was cancelled, which is final: make a new Connection")

    async def _request_cancel(self) -> CancelAnswer:
        # Until it is answered, a repeat is the same request.
        key = self._cancel_key = self._cancel_key or uuid.uuid4().hex
        answer = await self._with_token(lambda token: self._calls.cancel_job(self._job, token, key))
        self._cancel_key = None
        if answer == "accepted":
            self._post(CancelAccepted())
        elif answer == "too_late":
            # The job has ended already: its state says how, whatever the socket's state is.
            with suppress(TowlineError):
                state = await self._with_token(lambda token: self._calls.fetch_state(self._job, token, tries=1))
                if state.ended and self._outcome() is None and self._snapshot().state is not State.IDLE:
                    self._ended(state)
        return answer

    async def _with_token(self, call: Callable[[Secret], Awaitable[T]]) -> T:
        """Make a call, again with a fresh token if the server rejects the current one; translate its errors."""
        try:
            return await self._with_fresh_token(call)
        except BaseException as error:
            raise await failure_of(error, "a call about the job")  # noqa: B904 - it has its cause

    async def _with_fresh_token(self, call: Callable[[Secret], Awaitable[T]]) -> T:
        try:
            return await call(await self._tokens.get())
        except UnexpectedResponse as error:
            if error.status != 401 or not self._tokens.renewable:
                raise
        return await call(await self._tokens.get(fresh=True))
