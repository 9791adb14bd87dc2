"""Runs any table: `Runner`. It adds to the driver the table's step, its timers, and effects as functions."""

from __future__ import annotations

import inspect
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

import anyio

from .._exceptions import ForbiddenRequest, InvalidArgument, StateUnreachable, TableError, TowlineError
from .._tasks import Tasks, failure_of, is_failure, unexpected
from ..statemachine import Advance, Journey, Kind, Passage, Table, TableSnapshot, advance, enter, restore, save
from ._driver import Driver
from ._file import SnapshotFile
from ._steps import Stepped, Steps, Taken

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
V = TypeVar("V")


#: Steps of one thread that may interrupt each other.
_MOST_NESTED: Final = 8


class _Occurred(NamedTuple):
    """An event with its value. A result carries the generation of its work, an expiry its timer and ticket."""

    event: Any
    value: object = None
    generation: int | None = None
    expired: tuple[Any, int] | None = None
    is_request: bool = False


class _Due(NamedTuple):
    """An effect, and the data and the generation after the step that requested it."""

    effect: Any
    data: Any
    generation: int


class Runner(Generic[S, E, V]):
    """Runs one lifecycle of a table, on asyncio or trio: `async with Runner(table, effects, data=...) as run:`.

    `data` is your initial data, a frozen dataclass. `effects` gives a function for each effect that actions request
    with `draft.do(effect)`. It gets the data and returns None, an event, or an event with a value. A coroutine function
    or a returned awaitable runs in a task. When the machine leaves the state in which the effect was requested, the
    task is cancelled, and a result that comes too late is stale. An effect that raises becomes the event `failed` with
    the error as its value.

    `saved` is a snapshot that `save` got earlier: its state is entered again. `save` gets the snapshot as JSON before
    the effects of each step, so after a kill the entry of the last state is performed again. `file` does both with a
    file, which one runner at a time may use. `history` is the number of events that `journey` shows.

    Create it in the task that enters it. Raises `InvalidArgument` for a timer without `seconds`, an effect without a
    function, an unusable `saved` or `file`, or a `file` that another runner uses. An error that is no event ends the
    block with `UnexpectedFailure`: of an effect without `failed` or with another result, of `save`, of a guard or an
    action.
    """

    def __init__(
        self,
        table: Table[S, E, Any, Any],
        effects: Mapping[Any, Callable[[Any], object]],
        *,
        data: V,
        failed: E | None = None,
        saved: bytes | None = None,
        save: Callable[[bytes], object] | None = None,
        file: str | Path | None = None,
        history: int = 256,
    ) -> None:
        for timer, rule in table.timers.items():
            if rule.seconds is None:
                raise InvalidArgument("table", f"the timer {timer.value} has no seconds")
        for kind in {type(effect) for effect in effects if isinstance(effect, Enum)}:
            if missing := [member.name for member in kind if member not in effects]:
                raise InvalidArgument("effects", f"{kind.__name__} has no function for {', '.join(missing)}")
        self._table: Final = table
        self._functions: Final = effects
        self._failed: Final = failed
        self._passages: deque[Passage] = deque(maxlen=history)
        self._work: set[anyio.CancelScope] = set()
        self._entered = False
        self._left = False
        self._unsaved = False
        self._nested = threading.local()
        self._file: SnapshotFile | None = None
        if file is not None:
            if saved is not None or save is not None:
                raise InvalidArgument("file", "pass either file= or saved= and save=, not both")
            self._file = SnapshotFile(file)
            saved, save = self._file.read(), self._file.write
        self._save: Final = save
        try:
            start = TableSnapshot(table.initial, data) if saved is None else restore(table, saved, type(data))
            self._start, effects_of_entry, _ = enter(table, start)
        except BaseException as error:
            self._close_file()
            if self._file is not None and isinstance(error, InvalidArgument) and error.name == "saved":
                raise InvalidArgument("file", f"{file} cannot be resumed: {error.problem}; move it away") from error
            raise
        self._tasks = Tasks()
        self._driver: Driver[TableSnapshot[S, V], _Occurred, _Due, None, Passage] = Driver(
            Steps(self._start, None, self._take),
            self._tasks,
            perform=self._perform,
            always=(),
            took=self._took_step,
            changed=lambda _: self._driver.note_change(),
            expired=self._expired_event,
            broke=self._tasks.end_with,
        )
        self._driver.queue_effects(self._start.generation, self._due(effects_of_entry, self._start))

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._entered = True
        self._driver.soon(self._begin)
        return self

    def _begin(self) -> None:
        self._keep((), self._start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._left = True
        self._driver.note_change()
        try:
            return await self._tasks.__aexit__(kind, error, traceback)
        finally:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    # --- for the program -------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> TableSnapshot[S, V]:
        """The present state and data."""
        return self._driver.snapshot

    def request(self, event: E, value: object = None) -> None:
        """Process an event at once: the state has changed when this returns, and its effects follow.

        Safe from any thread, signal handler or finalizer. Raises `ForbiddenRequest` if the state forbids the event, or
        if the block was left.
        """
        self._check_open(event)
        self._driver.request(_Occurred(event, value, is_request=True))

    def post(self, event: E, value: object = None) -> None:
        """Queue an event behind those that wait. For tasks of the same loop.

        Before the block is entered it waits for that. An event that the state forbids is only recorded. Raises
        `ForbiddenRequest` if the block was left.
        """
        self._check_open(event)
        occurred = _Occurred(event, value)
        if self._entered:
            self._driver.post(occurred)
        else:
            self._driver.soon(lambda: self._driver.post(occurred))

    def _check_open(self, event: E) -> None:
        if self._left:
            raise ForbiddenRequest(event.value, self.snapshot.state.value, "the runner's block was left")

    async def wait_for(self, *states: S) -> TableSnapshot[S, V]:
        """Wait until the machine enters one of the states, or is in one; returns the present snapshot.

        Raises `StateUnreachable` in a final state that is none of them, or when the block is left, and
        `ForbiddenRequest` before it is entered.
        """
        if not states:
            raise InvalidArgument("states", "pass at least one state")
        if not self._entered:
            raise ForbiddenRequest("waiting", "not entered", "use `async with` first, and wait inside the block")
        driver = self._driver
        if not self._left:
            driver.pump()
        visits = {state: driver.visits[state] for state in states}
        while True:
            state = self.snapshot.state
            if state in visits or any(driver.visits[one] > count for one, count in visits.items()):
                return self.snapshot
            if state in self._table.final or self._left:
                hint = "the state is final" if state in self._table.final else "the runner's block was left"
                raise StateUnreachable(" or ".join(one.value for one in visits), state.value, hint)
            await driver.wait_changed()

    def journey(self) -> Journey:
        """The recorded run, for `timeline`, `timeline_svg` and `retrace`."""
        states = tuple(state.value for state in self._table.states)
        return Journey(table=self._table.name, states=states, passages=tuple(self._passages))

    # --- steps -----------------------------------------------------------------------------------------------------

    def _take(
        self, before: TableSnapshot[S, V], occurred: _Occurred, levels: None
    ) -> Taken[TableSnapshot[S, V], _Due, Passage]:
        event, source = occurred.event, before.state
        after, forbidden, note = before, None, ""
        due: tuple[_Due, ...] = ()
        is_late = occurred.generation is not None and occurred.generation != before.generation
        if is_late or (occurred.expired is not None and occurred.expired not in before.armed):
            verdict = "stale"
        else:
            try:
                after, effects, branch = self._advance(before, occurred)
            except ForbiddenRequest as error:
                verdict, forbidden = Kind.FORBIDDEN.value, error if occurred.is_request else None
            else:
                assert branch is not None, "only an entry has no branch"
                verdict, due = branch.kind.value, self._due(effects, after)
                note = ", ".join(action.name for action in self._table.performed(branch)) or branch.reason
        passage = Passage(
            at=self._driver.clock(),
            event=event.value,
            source=source.value,
            target=after.state.value,
            verdict=verdict,
            note=note,
        )
        return Taken(after, due, passage, forbidden)

    def _advance(self, before: TableSnapshot[S, V], occurred: _Occurred) -> Advance[S, V]:
        event, nested = occurred.event, self._nested
        nested.depth = getattr(nested, "depth", 0) + 1
        try:
            # A request of a signal handler may interrupt a step. One of a guard or an action would begin it again.
            if nested.depth > _MOST_NESTED:
                raise TableError((f"{event.value}: a guard or an action makes requests; return them from an effect",))
            return advance(self._table, before, event, occurred.value)
        except TowlineError:
            raise
        except Exception as error:
            raise unexpected(error, f"the table {self._table.name} for {event.value}") from error
        finally:
            nested.depth -= 1

    def _due(self, effects: Iterable[Any], after: TableSnapshot[S, V]) -> tuple[_Due, ...]:
        return tuple(_Due(effect, after.data, after.generation) for effect in effects)

    def _took_step(self, stepped: Stepped[TableSnapshot[S, V], _Due, None, Passage]) -> None:
        before, after = stepped.before, stepped.after
        if stepped.entry is not None:
            self._passages.append(stepped.entry)
        if after.generation != before.generation:
            for scope in self._work:
                scope.cancel()
        if after is not before:
            self._keep(before.armed, after)

    def _keep(self, armed: tuple[tuple[Enum, int], ...], after: TableSnapshot[S, V]) -> None:
        """Arm the timers of a snapshot and save it. If that fails, the block ends and no effect follows."""
        if self._unsaved:
            return
        try:
            self._arm_changes(armed, after)
            if self._save is not None:
                self._save(save(self._table, after))
        except Exception as error:
            self._unsaved = True
            self._tasks.end_with(unexpected(error, f"the runner of {self._table.name}"))

    def _arm_changes(self, before: tuple[tuple[Enum, int], ...], after: TableSnapshot[S, V]) -> None:
        for timer, ticket in before:
            if (timer, ticket) not in after.armed:
                self._driver.disarm(timer)
        for timer, ticket in after.armed:
            if (timer, ticket) not in before:
                seconds = self._table.timers[timer].seconds
                drawn = seconds(after) if callable(seconds) else seconds
                if drawn is None or not 0 <= drawn < math.inf:
                    raise InvalidArgument("seconds", f"the timer {timer.value} gave {drawn!r}; use a number from 0")
                self._driver.arm(timer, ticket, drawn)

    def _expired_event(self, timer: Any, ticket: int) -> _Occurred:
        return _Occurred(self._table.timers[timer].expiry, expired=(timer, ticket))

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, due: _Due) -> None:
        if self._unsaved:
            return
        try:
            call = self._functions[due.effect]
        except KeyError:
            missing = InvalidArgument("effects", f"there is no function for {due.effect}")
            self._tasks.end_with(unexpected(missing, f"effect {due.effect}"))
            return
        if inspect.iscoroutinefunction(call):
            self._tasks.start_soon(self._perform_in_task, call, due, None, name=f"effect {due.effect}")
            return
        try:
            result = call(due.data)
        except BaseException as error:
            if not is_failure(error):
                raise
            self._effect_failed(error, due)
            return
        if inspect.isawaitable(result):
            # Only its return value shows that the callable is asynchronous.
            self._tasks.start_soon(self._perform_in_task, call, due, result, name=f"effect {due.effect}")
        else:
            self._report(result, due)

    async def _perform_in_task(self, call: Callable[[Any], Any], due: _Due, started: Any) -> None:
        if due.generation != self.snapshot.generation:
            if inspect.iscoroutine(started):
                started.close()
            return
        with anyio.CancelScope() as scope:
            self._work.add(scope)
            try:
                result = await (call(due.data) if started is None else started)
            except BaseException as error:
                failure = await failure_of(error, f"effect {due.effect}", log=None)
                self._effect_failed(error if isinstance(error, Exception) else failure, due)
            else:
                self._report(result, due)
            finally:
                self._work.discard(scope)

    def _effect_failed(self, error: BaseException, due: _Due) -> None:
        if self._failed is None:
            self._tasks.end_with(unexpected(error, f"effect {due.effect}"))
        else:
            self._driver.post(_Occurred(self._failed, error, due.generation))

    def _report(self, result: Any, due: _Due) -> None:
        event, value = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if isinstance(event, self._table.events):
            self._driver.post(_Occurred(event, value, due.generation))
        elif event is not None:
            problem = f"{due.effect} returned a {type(event).__name__}; return None, an event, or an event with a value"
            self._tasks.end_with(unexpected(InvalidArgument("effects", problem), f"effect {due.effect}"))
