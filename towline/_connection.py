"""The front door: one connection that follows one job to its end.

Long for its docstrings, which are the reference; the work is done by the engine.
"""

from __future__ import annotations

import random as random_module
import ssl as ssl_module
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio import AsyncContextManagerMixin

from ._delivery import Subscription
from ._engine import Engine
from ._exceptions import (
    Cancelled,
    DeadlineExceeded,
    ForbiddenRequest,
    InvalidArgument,
    StateUnreachable,
    TokenRefused,
    TokenStoreError,
    TowlineError,
    UnexpectedFailure,
)
from ._handlers import Handler
from ._recovery import Cursor
from ._secret import Secret
from ._settings import Classifier, Settings
from ._steps import Levels, Steps
from ._tasks import Tasks, failure_of
from ._tokens import Token, TokenProvider, is_usable
from ._updates import Outcome, Progress, StateChange, load_outcome
from .statemachine import (
    AnyEvent,
    Background,
    Cancel,
    Cause,
    Connect,
    Foreground,
    PathChanged,
    PathLost,
    PathRestored,
    Policy,
    Reason,
    Recording,
    Retry,
    State,
    Woke,
)
from .storage import Record, Store, TokenStore
from .transport import (
    CancelAnswer,
    Codec,
    Headers,
    Limits,
    Network,
    SystemNetwork,
    Templates,
    check_headers,
    check_subprotocols,
    encode_job_id,
    parse_origin,
    parse_url,
)
from .transport._handshake import RESERVED

T = TypeVar("T")

#: Most bytes of a result that `fetch_result` takes, unless told otherwise.
MAX_RESULT: Final = 256 << 20

# What the closing of everything may take beyond the closing handshake: a slow disk, a slow handler.
_MARGIN: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """How a connection fares, at one moment. Counts are since its making; `cursor` is (epoch, seq) handed on."""

    state: State
    generation: int
    retries: int
    cause: Cause | None
    reason: Reason | None
    cursor: tuple[str, int] | None
    dials: int
    connects: int
    messages: int
    updates: int
    gaps: int
    overflows: int
    duplicates: int
    malformed_messages: int
    unfit_fields: int
    unknown_messages: int
    foreign_messages: int
    stale_events: int
    ignored_events: int
    handler_errors: int
    skipped_calls: int
    store_problem: TowlineError | None


class Connection(AsyncContextManagerMixin):
    """Follows one job through drops, sleep, restarts of the server and of this process.

    Use it as an async context manager: entering it connects, leaving it closes what is open; the job goes on. Iterate
    over it for the updates. It belongs to the event loop and thread that entered it; `cancel`, `background`,
    `foreground`, `retry`, `connect` and the `report_` methods may be called from any thread and any callback.

    - `url`: a `wss` URL, or `ws` to loopback (elsewhere with `allow_insecure=True`). Left out, it is taken from the
      store. The job's id is added to its query.
    - `token`: text, a `Secret`, an async function that gives one, or left out: then it is taken from the store.
      `refresh=True` lets the server exchange a text token for a fresh one; a stored token may always be exchanged.
    - `store`: where token and progress are kept for another process. Given a token, nothing is stored unless a store is
      given; without a token the user's default `TokenStore` is opened.
    - `pipelines`: result types of your own, by pipeline name (anything msgspec decodes).
    - `policy`: every number. `limits`: what the server may cost.
    - `proxy`: an `http`, `https` or `socks5` URL (the extra `socks`); without it the environment's counts. `network`
      replaces the dialling whole, `ssl` the TLS context.
    - `api_origin`: where the HTTP calls go if not to the URL's own origin. `templates`: their paths; by default they
      begin with what stands before `/ws/progress` in the URL's path.
    - `headers`, `subprotocols`: added to the upgrade. `token_subprotocol="name"` sends the token as the subprotocol
      `name.<token>` in place of the header; `token_in_query=True` sends it in the URL, where servers log it.
    - `strict_sync`: a server that keeps no state of the job is not accepted.
    - `classify`: your own word on errors and application close codes: "lost", "token_rejected", "refused" or None.
    - `on_state`, `on_disconnected` (both get a `StateChange`), `on_progress`: plain functions, called at once, or
      coroutine functions, called in order in a task. One that raises is logged and counted; one that is slow gets
      merged progress, and if it is 256 calls behind, not every call.
    - `random`, `wall_time`: for tests.

    Raises `InvalidArgument` at once for what cannot be right.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        job: str,
        token: str | Secret | TokenProvider | None = None,
        token_expires: float | None = None,
        refresh: bool = False,
        store: Store | None = None,
        pipelines: Mapping[str, type] | None = None,
        policy: Policy | None = None,
        limits: Limits | None = None,
        headers: Headers = (),
        subprotocols: Iterable[str | Secret] = (),
        token_subprotocol: str | None = None,
        token_in_query: bool = False,
        ssl: ssl_module.SSLContext | None = None,
        proxy: str | None = None,
        network: Network | None = None,
        allow_insecure: bool = False,
        api_origin: str | None = None,
        templates: Templates | None = None,
        strict_sync: bool = False,
        classify: Classifier | None = None,
        on_state: Handler[StateChange] | None = None,
        on_progress: Handler[Progress] | None = None,
        on_disconnected: Handler[StateChange] | None = None,
        random: Callable[[], float] = random_module.random,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        encode_job_id(job)
        # Hidden first of all: a traceback that prints locals must not show it.
        token = Secret(token) if isinstance(token, str) else token
        given: object = token
        if isinstance(given, Secret):
            _check_token(given)
        elif given is not None and not callable(given):
            del token, given  # it may be one all the same: bytes, say
            raise InvalidArgument("token", "must be text, a Secret or an async function")
        if proxy is not None:
            if network is not None:
                raise InvalidArgument("proxy", "cannot be combined with network, which dials in its own way")
            network = SystemNetwork(proxy=proxy)
        if token_subprotocol is not None and token_in_query:
            raise InvalidArgument("token_in_query", "cannot be combined with token_subprotocol: choose one")
        headers = tuple(headers.items() if isinstance(headers, Mapping) else headers)
        check_headers(headers, reserved=RESERVED | {"authorization"})
        subprotocols = check_subprotocols(subprotocols)
        check_subprotocols([] if token_subprotocol is None else [token_subprotocol])
        self._job = job
        self._url = url
        self._allow_insecure = allow_insecure
        self._api_origin = api_origin
        if url is not None:
            parse_url(url, allow_insecure=allow_insecure)
        if api_origin is not None:
            parse_origin(api_origin, allow_insecure=allow_insecure)
        self._token = token
        self._token_expires = token_expires
        self._store = store
        self._engine: Engine | None = None
        # The thread that may touch the engine: None before the block is entered and after it was left.
        self._thread: int | None = None
        self._event_loop: anyio.lowlevel.EventLoopToken | None = None
        self._entered = self._left = False
        # From the start, so that `cancel()` finds it at any moment, and before there is an engine.
        self._steps = Steps(policy or Policy())
        self._tasks: Tasks | None = None
        self._opening: anyio.CancelScope | None = None
        pipelines = dict(pipelines or {})
        self._options: dict[str, Any] = {
            "job": job,
            "policy": policy or Policy(),
            "limits": limits or Limits(),
            "codec": Codec(pipelines),
            "pipelines": pipelines,
            "templates": templates,
            "headers": headers,
            "subprotocols": subprotocols,
            "token_subprotocol": token_subprotocol,
            "token_in_query": token_in_query,
            "ssl": ssl,
            "network": network,
            "provider": token if callable(token) else None,
            "refresh": refresh,
            "strict_sync": strict_sync,
            "classify": classify,
            "on_state": on_state,
            "on_progress": on_progress,
            "on_disconnected": on_disconnected,
            "random": random,
            "wall_time": wall_time,
        }

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
            async with Tasks() as self._tasks:
                settings, record = await self._open()
                tasks = self._tasks
                engine = Engine(settings, tasks, self._steps)
                tasks.unforeseen = engine.broke
                self._engine = engine
                try:
                    self._begin(engine, record)
                    yield self
                finally:
                    await self._end(engine, leave=True)
        finally:
            self._left, self._thread = True, None

    async def _open(self) -> tuple[Settings, Record | None]:
        with anyio.CancelScope() as self._opening:
            self._raise_if_cancelled("entering")
            found = await self._resume()
        self._raise_if_cancelled("entering")
        return found

    def _take_turn(self) -> None:
        """Make felt what was requested meanwhile."""
        if self._engine is not None:
            self._engine.pump()
        elif self._opening is not None and self.state is State.CANCELLED:
            self._opening.cancel()

    async def _resume(self) -> tuple[Settings, Record | None]:
        """What is on record of the job, and the settings with what the record adds to them."""
        store, record = self._store, None
        if self._token is None or self._url is None:
            store = store or TokenStore()
        if store is not None:
            try:
                record = await store.read(self._job)
            except BaseException as error:
                failure = await failure_of(error, "the store")
                # With the token at hand the connection goes on without the store. The first save says what is wrong.
                at_hand = self._token is not None and self._url is not None
                if not (at_hand and isinstance(failure, TokenStoreError | UnexpectedFailure)):
                    raise failure  # noqa: B904 - it has its cause
        text = self._url
        if text is None:
            if record is None:
                raise TokenRefused(f"job {self._job!r} is not on record: give its url and token")
            text = record.context.get("url")
            if text is None:
                raise InvalidArgument("url", "the record of the job does not hold one")
        url = parse_url(text, allow_insecure=self._allow_insecure)
        if record is not None and str(url.origin) != record.origin:
            if self._token is None:
                record.for_origin(str(url.origin))
            record = None
        origin = self._api_origin
        if origin is None and record is not None:
            origin = record.context.get("api_origin")
        api = url if origin is None else parse_origin(origin, allow_insecure=self._allow_insecure)
        options = dict(self._options)
        if self._token is None:
            options["refresh"] = True
        if options["templates"] is None:
            options["templates"] = Templates.beside(url) if origin is None else Templates()
        return Settings(url=url, api=api, store=store, **options), record

    def _begin(self, engine: Engine, record: Record | None) -> None:
        given: Token | None = None
        if isinstance(self._token, Secret):
            given = Token(self._token, self._token_expires)
        elif record is not None and record.token is not None:
            given = Token(record.token, record.expires)
        engine.tokens.give(given)
        if record is not None and record.outcome is not None:
            engine.start_ended(load_outcome(record.outcome, engine.settings.pipelines))
            return
        cursor = record.cursor if record is not None else None
        engine.start(None if cursor is None else Cursor(*cursor))
        if given is not None and (record is None or record.token != given.secret):
            engine.journal.token_changed(given)
        engine.take(Connect())

    async def _end(self, engine: Engine, *, leave: bool) -> None:
        policy = engine.settings.policy
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + policy.close_wait + _MARGIN):
            await engine.stop(leave=leave)

    def _engine_of(self, request: str) -> Engine:
        if self._engine is None:
            self._raise_if_cancelled(request)
            raise ForbiddenRequest(request, "not entered", "use `async with Connection(...)` first")
        return self._engine

    def _raise_if_cancelled(self, request: str) -> None:
        if self.state is State.CANCELLED:
            raise Cancelled(request, State.CANCELLED.value, "it was cancelled, which is final: make a new Connection")

    def _on_loop(self, call: Callable[[], T]) -> T:
        """Run `call` on the connection's own thread, from any."""
        if self._thread is None or threading.get_ident() == self._thread:
            return call()
        try:
            return anyio.from_thread.run_sync(call, token=self._event_loop)
        except anyio.RunFinishedError:
            # The loop has ended meanwhile, and nothing runs beside this thread.
            return call()

    def _request(self, event: AnyEvent) -> None:
        self._engine_of(event.trigger.value).request(event)

    def _begin_anew(self, event: Connect | Retry, token: Token | None = None) -> None:
        engine = self._engine_of(event.trigger.value)
        if self._left:
            self._raise_if_cancelled(event.trigger.value)
            raise ForbiddenRequest(event.trigger.value, "left", "its block was left: make a new Connection")
        if token is not None:
            engine.tokens.give(token)
        engine.request(event)
        if token is not None:
            engine.soon(lambda: engine.journal.token_changed(token))

    # --- updates ---------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Subscription:
        """The updates, to the job's end. See `updates`."""
        return self.updates()

    def updates(self, *, wait: bool = False) -> Subscription:
        """Iterate over the updates; several may do so, each gets all from its beginning on.

        Ends after the job's end, and on `cancel()` and `aclose()`. Raises `Exhausted` when the engine gives up; with
        `wait` it waits for a revival instead. Begun after the end, it yields the end.
        """
        return self._engine_of("iteration").delivery.subscribe(wait=wait)

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._steps.snapshot.state

    @property
    def job(self) -> str:
        """The job's id."""
        return self._job

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, or None while that is not known."""
        return None if self._engine is None else self._engine.outcome

    async def result(self) -> Outcome:
        """Wait for the job's end and return it: complete, failed or canceled.

        Raises `Exhausted` when the engine gives up, `Cancelled` after `cancel()`, `StateUnreachable` after `aclose()`.
        """
        engine = self._engine_of("result")
        engine.pump()
        while engine.outcome is None:
            self._raise_if_out_of_reach(engine, "the job's end")
            await engine.wait_changed()
        engine.journal.ended(engine.outcome)
        return engine.outcome

    async def wait_for(self, *states: State, timeout: float | None = None) -> State:
        """Wait until the connection is in one of `states`, or was for a moment meanwhile, and return which.

        Raises `DeadlineExceeded` after `timeout` seconds, and at once, or as soon as it is so, where none of them can
        come about by itself any more: `Exhausted`, `Cancelled`, or `StateUnreachable` once the job has ended or the
        connection was closed.
        """
        if not states:
            raise InvalidArgument("states", "name at least one")
        engine = self._engine_of("wait_for")
        engine.pump()
        visits = {state: engine.visits[state] for state in states}
        name = " or ".join(state.value for state in visits)
        with anyio.move_on_after(timeout):
            while True:
                if engine.snapshot.state in visits:
                    return engine.snapshot.state
                for state, count in visits.items():
                    if engine.visits[state] > count:
                        return state
                self._raise_if_out_of_reach(engine, name)
                await engine.wait_changed()
        raise DeadlineExceeded(f"the state {name}", timeout or 0.0)

    def _raise_if_out_of_reach(self, engine: Engine, wanted: str) -> None:
        self._raise_if_cancelled(f"waiting for {wanted}")
        state = engine.snapshot.state
        if state is State.IDLE:
            if engine.outcome is not None:
                raise StateUnreachable(wanted, "the job has ended")
            hint = "its block was left: make a new Connection" if self._left else "`connect()` follows the job again"
            raise StateUnreachable(wanted, state.value, hint)
        if state is State.EXHAUSTED and engine.settled:
            raise engine.exhausted()

    # --- requests --------------------------------------------------------------------------------------------------

    def connect(self, *, token: str | Secret | None = None) -> None:
        """Follow the job again after `aclose()` or exhaustion, with another fixed token if one is given.

        Raises `JobEnded` after the job's end, `Cancelled` after `cancel()`, `ForbiddenRequest` if the server refused
        this very token. Does nothing where the connection is at it already.
        """
        given = None
        if token is not None:
            given = Token(token if isinstance(token, Secret) else Secret(token))
            _check_token(given.secret)
        self._begin_anew(Connect(new_token=given is not None), given)

    def retry(self) -> None:
        """Make an attempt now, whatever is waited for: the backoff, the path, the foreground. Raises as `connect`."""
        self._begin_anew(Retry())

    def cancel(self) -> bool:
        """Stop following for good; the job goes on. Lawful in any state, from any thread or callback, and again.

        The state changes before this returns; within a second nothing is left: no task, socket, timer or callback.
        Returns True, or False if the job's end came first: `outcome` then holds it. Each call gives the same answer.
        """

        stepped = self._steps.add(Cancel())
        if self._tasks is not None:
            self._tasks.call_soon(self._take_turn)
        return stepped.after.state is State.CANCELLED

    async def cancel_job(self) -> CancelAnswer:
        """Ask the server to stop the job; following goes on, and tells of the end as of any other.

        Returns `accepted`, `too_late` (it had ended: the end is delivered) or `unknown`. Raises the errors of the call
        (`UnexpectedResponse`, `NetworkError`, `DeadlineExceeded`, `TokenRefused`); it may be called again.
        """
        return await self._engine_of("cancel_job").requests.cancel_job()

    def background(self, *, grace: float | None = None) -> None:
        """The host goes to the background: after the grace everything is closed, and nothing is dialled.

        `grace` is in seconds, the policy's if left out; 0 is for a host that is about to sleep.
        """
        if grace is not None and not grace >= 0:
            raise InvalidArgument("grace", "must not be negative")
        self._set_foreground(False, Background(grace=grace))

    def foreground(self) -> None:
        """The host is back."""
        self._set_foreground(True, Foreground())

    def report_path(self, up: bool, identity: str | None = None) -> None:
        """Tell how the host's network path stands; `identity` tells one path from another (interface and address).

        A lost path holds dials back and doubts the socket; another one doubts the socket. Told twice the same, nothing
        happens, nor when the identity of a path that was taken to be up is told for the first time.
        """

        def report(levels: Levels) -> tuple[Levels, AnyEvent | None]:
            event: AnyEvent | None = None
            if up != levels.path_up:
                event = PathRestored() if up else PathLost()
            elif up and levels.path_identity is not None and identity != levels.path_identity:
                event = PathChanged()
            return levels._replace(path_up=up, path_identity=identity), event

        self._engine_of("report_path").change(report)

    def report_wake(self) -> None:
        """Tell that the host was suspended and has woken."""
        self._request(Woke())

    def _set_foreground(self, foreground: bool, event: AnyEvent) -> None:
        def change(levels: Levels) -> tuple[Levels, AnyEvent | None]:
            # Told twice of the background, the grace does not begin anew.
            if levels.foreground or not isinstance(event, Background) or event.grace is not None:
                return levels._replace(foreground=foreground), event
            return levels, None

        self._engine_of(event.trigger.value).change(change)

    async def aclose(self) -> None:
        """Stop watching; the job goes on, and `connect()` follows it again. Waits, bounded, for the close."""
        await self._end(self._engine_of("aclose"), leave=False)

    async def fetch_result(self, *, max_bytes: int = MAX_RESULT) -> Any:
        """The job's result, fetched if it did not come with the end: of its pipeline's type where it fits, else plain
        JSON. None is returned only for a result of null.

        Raises `StateUnreachable` before the end and where there is no result (the job failed or was canceled, or the
        server has none), `UnexpectedResponse`, `MessageTooBig` past `max_bytes`, `MalformedMessage` for what is not
        JSON. It may be called again.
        """
        return await self._engine_of("fetch_result").requests.fetch_result(max_bytes)

    # --- looking at it ---------------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """How it fares now."""
        engine = self._engine_of("statistics")
        snapshot, counts, recovery = engine.snapshot, engine.counts, engine.recovery
        return Statistics(
            state=snapshot.state,
            generation=snapshot.generation,
            retries=snapshot.retries,
            cause=snapshot.cause,
            reason=snapshot.reason,
            cursor=recovery.applied,
            dials=counts["dials"],
            connects=counts["connects"],
            messages=counts["messages"],
            updates=counts["updates"],
            gaps=counts["gaps"],
            overflows=counts["overflows"],
            duplicates=recovery.duplicates,
            malformed_messages=counts["malformed_messages"],
            unfit_fields=engine.settings.codec.unfit_fields,
            unknown_messages=recovery.unknown,
            foreign_messages=recovery.foreign,
            stale_events=counts["stale_events"],
            ignored_events=counts["ignored_events"],
            handler_errors=engine.handlers.errors,
            skipped_calls=engine.handlers.skipped,
            store_problem=engine.journal.problem,
        )

    def history(self) -> Recording:
        """The last events and what became of them: JSON through `to_json()`, and replayable. Holds no token."""
        engine = self._engine_of("history")
        engine.take_up_steps()
        return engine.recorder.recording()


def _check_token(token: Secret) -> None:
    if not is_usable(token):
        raise InvalidArgument("token", "must be printable ASCII without spaces, and not empty")
