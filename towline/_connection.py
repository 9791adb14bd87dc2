"""`Connection`: follows one job to its end.

This file is long because its docstrings are the reference; the engine does the work.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio import AsyncContextManagerMixin
from msgspec.structs import replace

from ._exceptions import (
    Cancelled,
    DeadlineExceeded,
    ForbiddenRequest,
    InvalidArgument,
    StateUnreachable,
    TokenProviderFailed,
    TokenStoreError,
    TowlineError,
    UnexpectedFailure,
)
from ._facts import CancelWord, GetState, Position, Protocol, RefreshToken
from ._secret import Secret
from ._target import Target
from ._tasks import Tasks, failure_of
from ._text import JobLog
from ._updates import AnyUpdate, Outcome, load_outcome
from .engine.delivery.delivery import Subscription as Subscription
from .engine.delivery.handlers import Handler
from .engine.delivery.journal import load_cursor
from .engine.engine import Engine
from .engine.lifecycle import Levels, Lifecycle
from .engine.reader import Reader
from .engine.settings import Settings
from .engine.tokens import Token as Token
from .engine.tokens import TokenProvider as TokenProvider
from .engine.tokens import as_token
from .protocols._shared.kept import kept_of
from .protocols._shared.recording import Observed, Observer
from .sources import Access
from .statemachine import (
    AnyEvent,
    Background,
    Cancel,
    Cause,
    Connect,
    Foreground,
    History,
    PathChanged,
    PathLost,
    PathRestored,
    Policy,
    Reason,
    Retry,
    State,
    StateChange,
    Woke,
)
from .storage import Record, RecordKey, Store, TokenStore
from .transport import Limits, Liveness, Network

T = TypeVar("T")

# Shared, because an idle connection should cost little.
_POLICY: Final = Policy()
_LIMITS: Final = Limits()

#: The default limit of `fetch_result` for a result's size, in bytes.
MAX_RESULT: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A snapshot of a connection. Counts start at its creation.

    `cursor` is the position delivered last. `unread_messages` are those that had nothing for the protocol.
    """

    state: State
    generation: int
    retries: int
    cause: Cause | None
    reason: Reason | None
    cursor: Position | None
    dials: int
    connects: int
    messages: int
    updates: int
    gaps: int
    overflows: int
    duplicates: int
    malformed_messages: int
    unread_messages: int
    stale_events: int
    ignored_events: int
    handler_errors: int
    skipped_calls: int
    store_problem: TowlineError | None


class Connection(AsyncContextManagerMixin):
    """Follows one job through disconnects, sleep, and restarts of the server and of this process.

    Use it as an async context manager: entering it connects, leaving it closes the connection; the job goes on. Iterate
    over it to get the updates. It belongs to the event loop and thread that entered it. You may call `cancel`,
    `background`, `foreground`, `retry`, `connect` and the `report_` methods from any thread and any callback.

    - `target`: a protocol (`towline.protocols`), or the URL of a server that speaks Towline's own: `wss`, or `ws` to
      loopback. The `job`'s id is added to its query. Without a target, the store's record of the job names the
      protocol; entering raises `AmbiguousJob` if jobs with this id are on record for several servers.
    - `token`: text, a `Secret`, a `Token` (which may have an expiry), or an async function that returns one of them.
      Without it, the store's is used, which another one replaces once the server has accepted it.
    - `store`: keeps the progress for another process, and the token if it belongs to the job. With a token, nothing is
      stored unless you pass a store. Without a target, or without a token that belongs to the job, the user's default
      `TokenStore` is opened.
    - `store_token`: also store a token that is of an account and not of the job, in the `store` or the default one.
    - `policy`: all timeouts, delays and retry limits. `limits`: limits on what the server may cost.
    - `network`: how the server is reached: proxy, TLS, and whether unencrypted connections are allowed.
    - `on_update` (gets what iteration gives, the end too), `on_state` (gets a `StateChange`): plain functions are
      called at once, coroutine functions in order in a task. If one raises, the error is logged and counted. What waits
      for a slow one is joined, and at last the engine stops reading; of 256 waiting changes of the state the oldest
      are dropped.

    Raises `InvalidArgument` at once for invalid arguments.
    """

    def __init__(
        self,
        target: str | Protocol | None = None,
        *,
        job: str | None = None,
        token: str | Secret | Token | TokenProvider | None = None,
        store: Store | None = None,
        store_token: bool = False,
        policy: Policy | None = None,
        limits: Limits | None = None,
        network: Network | None = None,
        on_update: Handler[AnyUpdate] | None = None,
        on_state: Handler[StateChange] | None = None,
    ) -> None:
        if token is not None and not callable(token):
            token = _checked_token(token)
        self._network = network or Network()
        self._target = Target(target, job, allow_insecure=self._network.allow_insecure)
        self._job = self._target.job
        self._log = JobLog(self._job)
        self._token = token
        self._store = store
        self._store_token = store_token
        self._engine: Engine | None = None
        # The thread that may use the engine: None before the block is entered and after it is left.
        self._thread: int | None = None
        self._event_loop: anyio.lowlevel.EventLoopToken | None = None
        self._entered = self._left = False
        # Created here, so that `cancel()` works at any moment, even before there is an engine.
        policy = policy or _POLICY
        self._lifecycle = Lifecycle(policy)
        self._tasks: Tasks | None = None
        self._opening: anyio.CancelScope | None = None
        self._policy = policy
        self._limits = limits or _LIMITS
        self._on_update, self._on_state = on_update, on_state
        # `towline.testing.controlled` replaces these two.
        self._random: Callable[[], float] = random.random
        self._wall_time: Callable[[], float] = time.time
        self._observer: Observer | None = None

    def __repr__(self) -> str:
        return f"<Connection to job {self._job!r}: {self.state.value}>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        if self._entered:
            raise ForbiddenRequest("entering", self.state.value, "a Connection is entered once: make a new one")
        self._entered = True
        self._thread = threading.get_ident()
        self._event_loop = anyio.lowlevel.current_token()
        try:
            async with Tasks(log=self._log) as self._tasks:
                settings, record = await self._open()
                cursor = None if record is None or record.cursor is None else load_cursor(record.cursor)
                engine = Engine(settings, self._tasks, self._lifecycle, cursor)
                self._engine = engine
                try:
                    self._begin(engine, record)
                    yield self
                finally:
                    self._left = True
                    await engine.stop(leave=True)
        finally:
            self._left, self._thread = True, None

    async def _open(self) -> tuple[Settings, Record | None]:
        with anyio.CancelScope() as self._opening:
            self._raise_if_cancelled("entering")
            found = await self._resume()
        self._opening = None
        self._raise_if_cancelled("entering")
        return found

    def _handle_requests(self) -> None:
        """Apply requests that were made meanwhile."""
        if self._engine is not None:
            self._engine.runner.pump()
        elif self._opening is not None and self.state is State.CANCELLED:
            self._opening.cancel()

    async def _resume(self) -> tuple[Settings, Record | None]:
        """Return the settings and the stored record; the record completes the settings."""
        target, store = self._target, self._store
        record: Record | None = None
        needed = self._token is None and target.has_token_of_job
        if target.url is None or needed or self._store_token:
            store = store or TokenStore()
        if store is not None:
            try:
                record = await target.find(store, needed=needed)
            except BaseException as error:
                failure = await failure_of(error, "the store", self._log)
                # With url and token given, the connection works without the store. The first save reports the problem.
                at_hand = target.url is not None and not needed
                if not (at_hand and isinstance(failure, TokenStoreError | UnexpectedFailure)):
                    raise failure  # noqa: B904 - it has its cause
        protocol = target.protocol(record)
        url = target.parse(protocol.url)
        if record is not None:
            record.for_address(protocol.name, url.address)
        policy, limit = self._policy, getattr(protocol, "stall_limit", None)
        if limit is not None and policy.stall_limit is None:
            policy = self._lifecycle.policy = replace(policy, stall_limit=limit)
        reader = Reader(protocol)
        access = Access(
            origins=target.origins(protocol),
            limits=self._limits,
            liveness=Liveness(ping_after=policy.ping_after, lost_after=policy.lost_after),
            connect_deadline=policy.connect_deadline,
            network=self._network,
            wall_time=self._wall_time,
            random=self._random,
        )
        kept = kept_of(protocol)
        token_of_job = getattr(protocol, "token_of_job", False)
        settings = Settings(
            protocol=protocol if self._observer is None else Observed(protocol, self._observer),
            access=access,
            policy=policy,
            has_state_call=reader.ask(GetState(), None) is not None,
            exchanges_tokens=reader.ask(RefreshToken(), Secret("any")) is not None,
            require_state=getattr(protocol, "require_state", False),
            token_required=token_of_job,
            # A key that is on record stays there.
            token_stored=token_of_job or self._store_token or (self._token is None and record is not None),
            store=store,
            record_key=RecordKey(protocol.name, url.address, self._job),
            parameters=kept.parameters,
            secrets=kept.secrets,
            results=getattr(protocol, "results", {}),
            provider=self._token if callable(self._token) else None,
            on_update=self._on_update,
            on_state=self._on_state,
        )
        return settings, record

    def _begin(self, engine: Engine, record: Record | None) -> None:
        given: Token | None = None
        if isinstance(self._token, Token):
            given = self._token
        elif record is not None and record.token is not None:
            given = Token(record.token, expires=record.expires, refresh=True)
        engine.tokens.give(given)
        if record is not None and record.outcome is not None:
            engine.start_ended(load_outcome(record.outcome, engine.settings.results))
            return
        engine.start()
        kept = engine.settings.parameters, engine.settings.secrets
        is_new = (
            record is None
            or (given is not None and record.token != given.secret)
            or (dict(record.parameters), dict(record.secrets)) != kept
        )
        if is_new and (given is not None or not engine.settings.token_required):
            if given is None or record is None or record.token is None:
                engine.journal.token_changed(given)
            else:
                engine.store_if_accepted(given)
        engine.runner.take(Connect())

    def _engine_of(self, request: str) -> Engine:
        if self._engine is None:
            self._raise_if_cancelled(request)
            raise ForbiddenRequest(
                request, "not entered", "enter its block first: `async with`, or `with` for a blocking one"
            )
        return self._engine

    def _raise_if_cancelled(self, request: str) -> None:
        if self.state is State.CANCELLED:
            raise Cancelled(request, State.CANCELLED.value, "it was cancelled, which is final: make a new Connection")

    def _on_loop(self, call: Callable[[], T]) -> T:
        """Run `call` on the connection's own thread; safe from any thread."""
        if self._thread is None or threading.get_ident() == self._thread:
            return call()
        try:
            return anyio.from_thread.run_sync(call, token=self._event_loop)
        except anyio.RunFinishedError:
            # The loop has ended meanwhile, so nothing runs in parallel with this thread.
            return call()

    def _restart(self, event: Connect | Retry, token: Token | None = None) -> None:
        engine = self._engine_of(event.trigger.value)
        if self._left:
            self._raise_if_cancelled(event.trigger.value)
            raise ForbiddenRequest(event.trigger.value, "left", "its block was left: make a new Connection")
        if token is not None:
            engine.tokens.give(token)
        engine.runner.request(event)
        if token is not None:
            engine.runner.soon(lambda: engine.store_if_accepted(token))

    # --- updates ---------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Subscription:
        """Iterate over the updates until the job's end. See `updates`."""
        return self.updates()

    def updates(self, *, wait: bool = False) -> Subscription:
        """Iterate over the updates. Each of several iterators gets all updates from its start on.

        An iterator that is kept but not read lets at most `Limits.max_waiting` bytes of output or 256 updates wait;
        then nothing more is read from the server until it is read or dropped, or its reader calls `result`, or ends
        while another task waits there.

        Ends after the job's end, and on `cancel()` and `aclose()`. Raises `Exhausted` when the engine gives up; with
        `wait` it waits until the connection is revived. If it starts after the end, it yields the end.
        """
        return self._engine_of("iteration").delivery.subscribe(wait=wait)

    @property
    def state(self) -> State:
        """The connection's current state."""
        return self._lifecycle.snapshot.state

    @property
    def job(self) -> str:
        """The job's id."""
        return self._job

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, or None if that is not known yet."""
        return None if self._engine is None else self._engine.outcome

    async def result(self) -> Outcome:
        """Wait for the job's end and return it: completed, failed or cancelled.

        Meanwhile an iterator that this task read last, or no task, or one that has ended (10 seconds before, and no
        other followed), does not stop the reading: of what it has not read, too much is dropped, and a `Resynced`
        reports that. One that another task reads is waited for (`updates`), and a coroutine function that is
        `on_update` too, so that one must not wait for the end.

        Raises `Exhausted` when the engine gives up, `Cancelled` after `cancel()`, `StateUnreachable` after `aclose()`.
        """
        engine = self._engine_of("result")
        engine.runner.pump()
        with engine.delivery.end_awaited():
            while engine.outcome is None:
                self._raise_if_unreachable(engine, "the job's end")
                await engine.runner.wait_changed()
        engine.journal.ended(engine.outcome)
        return engine.outcome

    async def wait_for(self, *states: State, timeout: float | None = None) -> State:
        """Wait until the connection is, or briefly was, in one of `states`; returns that state.

        Raises `DeadlineExceeded` after `timeout` seconds. Also raises, without waiting for the timeout, when the
        connection cannot reach any of the states by itself: `Exhausted`, `Cancelled`, or `StateUnreachable` (the job
        has ended or the connection was closed).
        """
        if not states:
            raise InvalidArgument("states", "pass at least one state")
        engine = self._engine_of("wait_for")
        runner = engine.runner
        runner.pump()
        visits = {state: runner.visits[state] for state in states}
        name = " or ".join(state.value for state in visits)
        with anyio.move_on_after(timeout):
            while True:
                if engine.snapshot.state in visits:
                    return engine.snapshot.state
                for state, count in visits.items():
                    if runner.visits[state] > count:
                        return state
                self._raise_if_unreachable(engine, name)
                await runner.wait_changed()
        raise DeadlineExceeded(f"the state {name}", timeout or 0.0)

    def _raise_if_unreachable(self, engine: Engine, wanted: str) -> None:
        self._raise_if_cancelled(f"waiting for {wanted}")
        state = engine.snapshot.state
        if state is State.IDLE:
            if engine.outcome is not None:
                raise StateUnreachable(wanted, "the job has ended")
            hint = "its block was left: make a new Connection" if self._left else "`connect()` follows the job again"
            raise StateUnreachable(wanted, state.value, hint)
        if state is State.EXHAUSTED and engine.given_up:
            raise engine.exhausted()

    # --- requests --------------------------------------------------------------------------------------------------

    def connect(self, *, token: str | Secret | Token | None = None) -> None:
        """Follow the job again after `aclose()` or exhaustion, with another fixed token if you pass one.

        Raises `JobEnded` after the job's end, `Cancelled` after `cancel()`, `ForbiddenRequest` if the server refused
        this same token. Does nothing if the connection is already active.
        """
        given = None if token is None else _checked_token(token)
        self._restart(Connect(new_token=given is not None), given)

    def retry(self) -> None:
        """Connect now and skip the current wait (backoff, network, background). Raises as `connect`."""
        self._restart(Retry())

    def cancel(self) -> bool:
        """Stop following for good; the job goes on. Allowed in any state, from any thread or callback, and repeatedly.

        The state changes before this returns. Within a second every task, socket, timer and callback is gone. Returns
        True, or False if the job's end came first: `outcome` then holds it. Each call returns the same value.
        """

        stepped = self._lifecycle.steps.add(Cancel())
        if self._tasks is not None:
            self._tasks.call_soon(self._handle_requests)
        return stepped.after.state is State.CANCELLED

    async def cancel_job(self) -> CancelWord:
        """Ask the server to cancel the job. Following goes on, and the end is delivered like any other.

        Returns `accepted`, `too_late` (the job had ended: its end is delivered) or `unknown`. Raises the errors of the
        call (`UnexpectedResponse`, `NetworkError`, `DeadlineExceeded`, `TokenRefused`); you may call it again.
        """
        return await self._engine_of("cancel_job").requested.cancel_job()

    def background(self, *, grace: float | None = None) -> None:
        """Report that the app is in the background: after the grace the connection is closed and stays closed.

        `grace` is in seconds, by default the policy's. Use 0 for a host that is about to sleep.
        """
        if grace is not None and not grace >= 0:
            raise InvalidArgument("grace", "must not be negative")
        self._set_foreground(False, Background(grace=grace))

    def foreground(self) -> None:
        """Report that the app is in the foreground again."""
        self._set_foreground(True, Foreground())

    def report_network(self, up: bool, identity: str | None = None) -> None:
        """Report the host's network path; `identity` distinguishes paths (interface and address).

        A lost path stops connection attempts and probes the socket; another path probes the socket. Nothing happens if
        the report repeats the last one, or only adds the first identity to a path already up.
        """

        def report(levels: Levels) -> tuple[Levels, AnyEvent | None]:
            event: AnyEvent | None = None
            if up != levels.path_up:
                event = PathRestored() if up else PathLost()
            elif up and levels.path_identity is not None and identity != levels.path_identity:
                event = PathChanged()
            return levels._replace(path_up=up, path_identity=identity), event

        self._engine_of("report_network").runner.change(report)

    def report_wake(self) -> None:
        """Report that the host was suspended and has woken."""
        event = Woke()
        self._engine_of(event.trigger.value).runner.request(event)

    def _set_foreground(self, foreground: bool, event: AnyEvent) -> None:
        def change(levels: Levels) -> tuple[Levels, AnyEvent | None]:
            # A second report of the background must not restart the grace.
            if levels.foreground or not isinstance(event, Background) or event.grace is not None:
                return levels._replace(foreground=foreground), event
            return levels, None

        self._engine_of(event.trigger.value).runner.change(change)

    async def aclose(self) -> None:
        """Stop following; the job goes on, and `connect()` follows it again. Waits for the close, but not for long."""
        await self._engine_of("aclose").stop(leave=False)

    async def fetch_result(self, *, max_bytes: int = MAX_RESULT) -> Any:
        """Return the job's result, and fetch it if it did not come with the end.

        It has its pipeline's type if it fits, otherwise it is plain JSON. None is returned only for a result of null.

        Raises `StateUnreachable` before the end, and if there is no result (the job failed or was canceled, or the
        server has none). Also raises `UnexpectedResponse`, `MessageTooBig` past `max_bytes`, and `MalformedMessage` if
        it is not JSON. You may call it again.
        """
        return await self._engine_of("fetch_result").requested.fetch_result(max_bytes)

    # --- diagnostics -----------------------------------------------------------------------------------------------

    def observe(self, observer: Observer) -> None:
        """Call `observer` with each want and what the server said to it, for a recording. Call this before entering.

        Every known token is masked, and answers to a token's refresh are left out. The observer must not raise.
        """
        if self._entered:
            raise ForbiddenRequest("observing", self.state.value, "call observe() before the connection is entered")
        self._observer = observer

    def statistics(self) -> Statistics:
        """Return the connection's current state and counts."""
        engine = self._engine_of("statistics")
        snapshot, counts, sequencer = engine.snapshot, engine.counts, engine.sequencer
        return Statistics(
            state=snapshot.state,
            generation=snapshot.generation,
            retries=snapshot.retries,
            cause=snapshot.cause,
            reason=snapshot.reason,
            cursor=sequencer.applied,
            dials=counts["dials"],
            connects=engine.runner.visits[State.CONNECTED],
            messages=counts["messages"],
            updates=counts["updates"],
            gaps=counts["gaps"],
            overflows=counts["overflows"],
            duplicates=sequencer.duplicates,
            malformed_messages=counts["malformed_messages"],
            unread_messages=counts["unread_messages"],
            stale_events=counts["stale_events"],
            ignored_events=counts["ignored_events"],
            handler_errors=engine.handlers.errors,
            skipped_calls=engine.handlers.skipped,
            store_problem=engine.journal.problem,
        )

    def history(self) -> History:
        """Return the latest events and their results: `to_json()` gives JSON, which can be replayed. Holds no token."""
        engine = self._engine_of("history")
        engine.runner.process_steps()
        return engine.recorder.history()


def _checked_token(given: str | Secret | Token) -> Token:
    """The token as a `Token`. Raises `InvalidArgument` if no request could carry it."""
    is_text = isinstance(given, str | Secret | Token)
    with suppress(TokenProviderFailed):
        return as_token(given)
    del given  # it may be a token nevertheless, such as bytes, and a traceback with locals must not show it
    problem = "printable ASCII without spaces, and not empty" if is_text else "text, a Secret, a Token or async"
    raise InvalidArgument("token", f"must be {problem}")
