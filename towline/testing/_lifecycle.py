"""Pytest cases for a table that `Runner` runs: each branch, guard and timer, and random walks, in virtual time.

The shortest way to each branch is found in the pure table (`_lifecycle_model.py`). Then a runner goes this way. After
each move its state, data, timers, recorded events and performed effects must be those that the table gives.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Final, TypeAlias

import anyio.lowlevel

from .._exceptions import ForbiddenRequest, InvalidArgument
from ..runner import Runner
from ..statemachine import Journey, Table, TableSnapshot, timeline
from ..statemachine._cells import name_of
from ._clocks import run_virtual, virtual_time_backends
from ._cover import Place, place_of
from ._lifecycle_model import MARGIN, Model, Move, Raised, Step, Way

#: Moves of a random walk.
_MOVES: Final = 50

Check: TypeAlias = Callable[[TableSnapshot[Any, Any], Any, TableSnapshot[Any, Any], tuple[Any, ...]], object]


class FakeWorld:
    """What `lifecycle_tests` needs to know in addition to the table: its data, the values of events, the effects.

    `data` are one or more initial data. `values` gives, for an event, the values to try; other events come with None.
    Each performed effect is recorded. If you give `effects`, no other effect may be performed, and its function is
    called with the data and returns None: the tests raise the events that would be its results.
    `check(before, event, after, effects)` gets the snapshots around each event and the effects that followed; have it
    raise an error if they are wrong.
    """

    def __init__(
        self,
        *data: object,
        values: Mapping[Any, Sequence[object]] | None = None,
        effects: Mapping[Any, Callable[[Any], object]] | None = None,
        check: Check | None = None,
    ) -> None:
        if not data:
            raise InvalidArgument("data", "pass the initial data of at least one run")
        if asynchronous := [effect for effect, call in (effects or {}).items() if inspect.iscoroutinefunction(call)]:
            raise InvalidArgument("effects", f"use plain functions, not coroutine functions, for {asynchronous}")
        self.data: Final = data
        self.values: Final = values or {}
        self.effects: Final = effects
        self.check: Final = check


def lifecycle_tests(
    table: Table[Any, Any, Any, Any], world: FakeWorld | Callable[[], FakeWorld], *, walks: int = 10, seed: int = 0
) -> Callable[..., None]:
    """Make the pytest cases of a table: `test_door = lifecycle_tests(DOOR, FakeWorld(Data()))`.

    On asyncio and trio, in virtual time, there is a case for each branch (`state-event-position`), one for the
    `coverage`, and random walks, which are the same for the same `seed`. A function as `world` makes a world for each
    run: use it if your functions keep something. A failed walk is shortened until each of its moves is needed. A
    failure shows the trace as JSON, for `towline trace --table`.

    Needs pytest. Raises `InvalidArgument` for a timer without `seconds`.
    """
    import pytest

    if untimed := [timer.value for timer, rule in table.timers.items() if rule.seconds is None]:
        raise InvalidArgument("table", f"give seconds to the timers {', '.join(untimed)}")
    cases = _Cases(table, (lambda: world) if isinstance(world, FakeWorld) else world, seed)
    names = [*cases.places, "coverage", *(f"walk-{number}" for number in range(walks))]

    @pytest.mark.parametrize("backend", virtual_time_backends())
    @pytest.mark.parametrize("case", names)
    def test(case: str, backend: str) -> None:
        cases.run(case, backend)

    return test


# --- one run -----------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """A run that went wrong: its journey, and the moves that it made. The problem is its cause."""

    def __init__(self, run: Runner[Any, Any, Any], moves: list[Move]) -> None:
        super().__init__()
        self.journey: Journey = run.journey()
        self.moves = moves

    def __str__(self) -> str:
        move = self.moves[-1] if self.moves else None
        last = "" if move is None else f" (after {move[0].value}, value {move[1]!r})"
        trace = self.journey.to_json().decode()
        return f"{self.__cause__}{last}\n{timeline(self.journey)}the trace, for `towline trace --table`:\n{trace}"


class _Functions(dict[Any, Callable[[Any], object]]):
    """A function for each effect there is, of any kind."""

    def __init__(self, perform: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self._perform = perform

    def __missing__(self, effect: Any) -> Callable[[Any], object]:
        return partial(self._perform, effect)


async def _drive(model: Model, world: FakeWorld, way: Way) -> list[Step]:
    """Have a runner make the moves; returns its steps. Raises `_Failed`."""
    performed: list[Any] = []

    def perform(effect: Any, data: Any) -> None:
        performed.append(effect)
        if world.effects is not None and (result := world.effects[effect](data)) is not None:
            raise InvalidArgument("effects", f"the function of {effect} returned {result!r}; return None")

    known = None if world.effects is None else {effect: partial(perform, effect) for effect in world.effects}
    run = Runner(model.table, _Functions(perform) if known is None else known, data=way.data, history=100_000)
    taken: list[Step] = []
    made: list[Move] = []
    try:
        now, entered = model.begin(way.data)
        async with run:
            await _settle(run)
            _expect("the effects of the start", performed, list(entered))
            for move in way.moves:
                made.append(move)
                steps, following = model.follow(now, move)
                seen = len(run.journey().passages)
                performed.clear()
                if move is None:
                    await anyio.sleep(min(now.left, default=0) + MARGIN)
                else:
                    with suppress(ForbiddenRequest):
                        run.request(*move)
                await _settle(run)
                recorded = [(one.event, one.source, one.target, one.verdict) for one in run.journey().passages[seen:]]
                _expect("the recorded events", recorded, [step.passage for step in steps])
                _expect("the effects", performed, [effect for step in steps for effect in step.effects])
                _expect("the snapshot", run.snapshot, following.snapshot)
                if world.check is not None:
                    for step in steps:
                        world.check(step.before, step.event, step.after.snapshot, step.effects)
                taken += steps
                now = following
    except Exception as error:
        raise _Failed(run, made) from error
    return taken


async def _settle(run: Runner[Any, Any, Any]) -> None:
    """Have the runner perform what waits, and raise here if its block has ended."""
    await run.wait_for(run.snapshot.state)
    await anyio.lowlevel.checkpoint_if_cancelled()


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{what} of the runner are {found}, but the table gives {expected}")


# --- the cases ---------------------------------------------------------------------------------------------------


class _Cases:
    """The cases of a table, by name. The search and the runs are made when they are first needed, once."""

    def __init__(self, table: Table[Any, Any, Any, Any], world: Callable[[], FakeWorld], seed: int) -> None:
        self.places: dict[str, Place] = {}
        for one in table.branches():
            place = place_of(table, *one)
            self.places[f"{place[1]}-{place[0]}-{place[2]}"] = place
        self._table = table
        self._world = world
        self._seed = seed
        self._runs: dict[tuple[Place, str], list[Step]] = {}

    def run(self, case: str, backend: str) -> None:
        """Raise `AssertionError` if the case fails."""
        if case == "coverage":
            self._check_coverage(backend)
        elif case in self.places:
            self._run_branch(self.places[case], backend)
        else:
            self._walk(random.Random(f"{self._seed} {case}"), backend)

    @cached_property
    def _model(self) -> Model:
        return Model(self._table, self._world().values)

    @cached_property
    def _found(self) -> tuple[dict[Place, Way], dict[tuple[str, str], Raised], int]:
        return self._model.search(self._world().data)

    def _drive(self, way: Way, backend: str) -> list[Step]:
        return run_virtual(_drive, self._model, self._world(), way, backend=backend)

    def _run_branch(self, place: Place, backend: str) -> list[Step]:
        if (place, backend) not in self._runs:
            ways, raised, situations = self._found
            if place not in ways:
                error = raised.get(place[:2])
                why = str(error) if error else f"none of {situations} situations leads there"
                raise AssertionError(f"{self._title(place)} was not reached: {why}") from error
            try:
                self._runs[place, backend] = self._drive(ways[place], backend)
            except _Failed as failed:
                raise AssertionError(f"{self._title(place)}: {failed}") from failed.__cause__
        return self._runs[place, backend]

    def _cell(self, place: Place) -> tuple[Any, ...]:
        return self._table.cell(self._table.events(place[0]), self._table.states(place[1]))

    def _title(self, place: Place) -> str:
        event, state, position = place
        cell = self._cell(place)
        asked = [f"not {name_of(one.when)}" for one in cell[:position]]
        asked += [name_of(cell[position].when)] if cell[position].when else []
        return f"{event} in {state}" + (f" [{', '.join(asked)}]" if asked else "")

    def _check_coverage(self, backend: str) -> None:
        steps: list[Step] = []
        for place in self.places.values():
            with suppress(AssertionError):
                steps += self._run_branch(place, backend)
        covered, timers = {step.place for step in steps}, {step.timer for step in steps}
        missing = [f"the branch {self._title(place)}" for place in self.places.values() if place not in covered]
        answers = {
            (name_of(branch.when), position == place[2])
            for place in covered
            for position, branch in enumerate(self._cell(place)[: place[2] + 1])
        }
        for guard in sorted({name_of(branch.when) for _, _, branch in self._table.branches() if branch.when}):
            missing += [
                f"the guard {guard} with {answer}" for answer in (True, False) if (guard, answer) not in answers
            ]
        missing += [f"the timer {timer.value}" for timer in self._table.timers if timer not in timers]
        if missing:
            raise AssertionError("no case reached\n" + "\n".join(missing))

    def _walk(self, chance: random.Random, backend: str) -> None:
        model, data = self._model, chance.choice(self._world().data)
        now, moves = model.begin(data)[0], list[Move]()
        with suppress(Raised):  # the run gets there, too
            for _ in range(_MOVES):
                moves.append(chance.choice(list(model.moves(now))))
                now = model.follow(now, moves[-1])[1]

        def failure(moves: Sequence[Move]) -> _Failed | None:
            try:
                self._drive(Way(data, tuple(moves)), backend)
            except _Failed as failed:
                return failed
            return None

        if (failed := failure(moves)) is not None:
            failed = _shorten(failed, failure)
            raise AssertionError(f"a random walk failed: {failed}") from failed.__cause__


def _shorten(failed: _Failed, failure: Callable[[Sequence[Move]], _Failed | None]) -> _Failed:
    """Leave out each move without which the walk still fails with an error of the same type."""
    length = math.inf
    while len(failed.moves) < length:
        length = len(failed.moves)
        for at in reversed(range(length)):
            again = failure(failed.moves[:at] + failed.moves[at + 1 :])
            if again is not None and type(again.__cause__) is type(failed.__cause__):
                failed = again
    return failed
