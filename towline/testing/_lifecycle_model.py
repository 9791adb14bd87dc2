"""The runner's behaviour as pure functions of a table: what can happen, what follows, and the way to each branch."""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

from .._exceptions import ForbiddenRequest, InvalidArgument
from ..statemachine import Draft, Table, TableSnapshot, advance, enter
from ..statemachine._cells import name_of
from ._cover import Place, place_of

#: An event with its value; None waits until the next timer expires.
Move: TypeAlias = tuple[Any, object] | None

#: Seconds by which a wait is longer than the timer that it waits for. Timers that differ by less expire together.
MARGIN: Final = 1e-6
#: Situations that the search looks at. A table that counts without end has more.
_MOST_SITUATIONS: Final = 5_000
#: Expiries with no time between them, after which they count as endless.
_MOST_EXPIRIES: Final = 100


class Way(NamedTuple):
    """Initial data, and the moves from there."""

    data: object
    moves: tuple[Move, ...] = ()


class Situation(NamedTuple):
    """A snapshot, and the seconds until its timers expire, in the order of `snapshot.armed`."""

    snapshot: TableSnapshot[Any, Any]
    left: tuple[float, ...] = ()

    @property
    def key(self) -> object:
        """The same for situations from which the same can follow. Data need not be hashable."""
        timers = tuple((timer, round(left, 6)) for (timer, _), left in zip(self.snapshot.armed, self.left, strict=True))
        return self.snapshot.state, repr(self.snapshot.data), timers


class Step(NamedTuple):
    """One event: the branch it takes, the timer that raised it, the effects, and the situation after it."""

    event: Any
    place: Place
    timer: Enum | None
    verdict: str
    effects: tuple[Any, ...]
    before: TableSnapshot[Any, Any]
    after: Situation

    @property
    def passage(self) -> tuple[str, str, str, str]:
        """What the runner records: event, source, target, verdict."""
        return self.event.value, self.before.state.value, self.after.snapshot.state.value, self.verdict


class Raised(Exception):
    """A guard, an action or the time of a timer raised."""

    def __init__(self, event: Any, state: Any, problem: str) -> None:
        super().__init__(f"{event.value} in {state.value}: {problem}")
        self.cell = (event.value, state.value)


class Model:
    """A table, with the values that come with its events."""

    def __init__(self, table: Table[Any, Any, Any, Any], values: Mapping[Any, Sequence[object]]) -> None:
        self.table = table
        self._values = values
        self._timer_of = {rule.expiry: timer for timer, rule in table.timers.items()}
        performed = (one for _, _, branch in table.branches() for one in table.performed(branch))
        guards = (branch.when for _, _, branch in table.branches())
        seconds = (rule.seconds for rule in table.timers.values())
        self._names = {*(one.name for one in performed), *map(name_of, guards), *map(name_of, seconds)}

    def begin(self, data: object) -> tuple[Situation, tuple[Any, ...]]:
        """The situation at the start, and the effects of the entry."""
        after, effects, _ = enter(self.table, TableSnapshot(self.table.initial, data))
        return self._timed(Situation(after), after), effects

    def moves(self, now: Situation) -> Iterator[Move]:
        """What can happen next. While a timer runs, nothing else raises its event."""
        running = {timer for timer, _ in now.snapshot.armed}
        for event in self.table.events:
            if self._timer_of.get(event) not in running:
                yield from ((event, value) for value in self._values.get(event, (None,)))
        if running:
            yield None

    def follow(self, now: Situation, move: Move) -> tuple[list[Step], Situation]:
        """The steps of a move: one, but for a wait as many as timers expire at that moment. Raises `Raised`."""
        if move is not None:
            step = self._step(now, *move)
            return [step], step.after
        steps: list[Step] = []
        now = _later(now, min(now.left, default=0))
        while due := [armed for armed, left in zip(now.snapshot.armed, now.left, strict=True) if not left]:
            timer, _ = min(due, key=lambda armed: armed[1])  # the one that was armed first
            event = self.table.timers[timer].expiry
            if len(steps) == _MOST_EXPIRIES:
                raise Raised(event, now.snapshot.state, f"the timer {timer.value} expires again and again at once")
            steps.append(self._step(now, event, None, timer))
            now = steps[-1].after
        return steps, _later(now, MARGIN)

    def search(self, starts: Sequence[object]) -> tuple[dict[Place, Way], dict[tuple[str, str], Raised], int]:
        """The shortest way to each branch, what raised in which cell, and how many situations were looked at."""
        missing = {place_of(self.table, *one) for one in self.table.branches()}
        ways, raised = dict[Place, Way](), dict[tuple[str, str], Raised]()
        waiting = deque((Way(data), self.begin(data)[0]) for data in starts)
        seen = {now.key for _, now in waiting}
        while waiting and missing and len(seen) < _MOST_SITUATIONS:
            way, now = waiting.popleft()
            for move in self.moves(now):
                longer = Way(way.data, (*way.moves, move))
                try:
                    steps, after = self.follow(now, move)
                except Raised as error:
                    raised.setdefault(error.cell, error)
                    continue
                ways.update((step.place, longer) for step in steps if step.place in missing)
                missing.difference_update(step.place for step in steps)
                if after.key not in seen:
                    seen.add(after.key)
                    waiting.append((longer, after))
        return ways, raised, len(seen)

    def _step(self, now: Situation, event: Any, value: object, timer: Enum | None = None) -> Step:
        before = after = now.snapshot
        effects: tuple[Any, ...] = ()
        try:
            branch = self.table.choose(event, Draft(before, event, value))
            with suppress(ForbiddenRequest):
                after, effects, _ = advance(self.table, before, event, value)
            timed = self._timed(now, after)
        except Exception as error:
            frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            culprit = next((name for name in frames if name in self._names), "the table")
            raise Raised(event, before.state, f"{culprit} raised {error!r}") from error
        place = place_of(self.table, event, before.state, branch)
        return Step(event, place, timer, branch.kind.value, effects, before, timed)

    def _timed(self, now: Situation, after: TableSnapshot[Any, Any]) -> Situation:
        left = dict(zip(now.snapshot.armed, now.left, strict=False))
        for armed in after.armed:
            if armed not in left:
                seconds: Any = self.table.timers[armed[0]].seconds
                left[armed] = seconds(after) if callable(seconds) else seconds
                if not 0 <= left[armed] < math.inf:
                    raise InvalidArgument("seconds", f"the timer {armed[0].value} gave {left[armed]!r}")
        return Situation(after, tuple(left[armed] for armed in after.armed))


def _later(now: Situation, seconds: float) -> Situation:
    return now._replace(left=tuple(max(0, left - seconds) if left - seconds > MARGIN else 0 for left in now.left))
