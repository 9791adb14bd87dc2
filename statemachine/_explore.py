"""Breadth first through every reachable situation of a lifecycle, and invariants that must hold there.

A `World` says what can happen next. Two situations with the same key count as one, and the first that was found stands
for all of them, so every trace is a run that the machine really makes.

An invariant is a plain function. One of steps gets the situation before and the move, one of the graph the exploration.
Both return what is wrong; the explorer adds the shortest trace that shows it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from .._exceptions import ForbiddenRequest, InvalidArgument
from ._advance import TableSnapshot, advance, enter, suppose
from ._cells import Kind
from ._table import Table
from ._trace import Journey, Passage

N = TypeVar("N")


class By(Enum):
    """Who causes a move."""

    OWN = "own"
    """The machine's timers and the deadlines of its own work: it happens without anyone else."""
    PEER = "peer"
    """The server, say: it may happen again and again, but nothing may depend on it."""
    OUTSIDE = "outside"
    """The user, the host, or a late result of abandoned work: it may happen, but not again and again by itself."""


class Pace(Enum):
    """What a move means for an endless cycle."""

    PROGRESS = "progress"
    """It ends the cycle: it takes a while, or is a success."""
    FREE = "free"
    """It may be part of a cycle."""
    WORK = "work"
    """Work that must not repeat without end, such as an attempt."""


class Move(NamedTuple, Generic[N]):
    """One thing that can happen. `what` describes it for the trace; None: only time passes."""

    what: Any
    after: N
    effects: tuple[Any, ...] = ()
    by: By = By.OWN
    pace: Pace = Pace.PROGRESS


StepInvariant: TypeAlias = Callable[[N, Move[N]], str | None]


@runtime_checkable
class World(Protocol[N]):
    """What can happen to a lifecycle. All methods are pure."""

    table: Table[Any, Any, Any, Any]
    name: str
    invariants: Sequence[StepInvariant[N]]

    def state(self, situation: N) -> Enum:
        """The state of the table that the situation is in."""

    def start(self) -> N:
        """The first situation."""

    def key(self, situation: N) -> Hashable:
        """What distinguishes situations: finite, with times and counts cut to what guards compare them with."""

    def moves(self, situation: N) -> Iterator[Move[N]]:
        """Everything that can happen next, always in the same order."""

    def rests(self, situation: N) -> bool:
        """Whether the lifecycle may stay here: it has ended, has succeeded, or has a reason to wait."""

    def trace(self, path: Sequence[tuple[N, Move[N]]]) -> bytes:
        """A path from the start as JSON, for `towline trace`."""


class Violation(NamedTuple):
    """An invariant that does not hold, what is wrong, and the shortest trace that shows it, for `towline trace`."""

    invariant: str
    wrong: str
    trace: bytes


Path: TypeAlias = list[tuple[N, Move[N]]]


@dataclass(eq=False)
class Exploration(Generic[N]):
    """The graph: situations in the order they were found, the move that led to each, and the ways between them."""

    world: World[N]
    situations: list[N]
    origins: list[tuple[int, Move[N]] | None] = field(default_factory=lambda: [None])
    #: For each situation: where a move leads, who causes it, its pace.
    ways: list[list[tuple[int, By, Pace]]] = field(default_factory=list)
    moves: int = 0
    violations: list[Violation] = field(default_factory=list)

    def path(self, place: int, *cycle: int) -> Path[N]:
        """The shortest path to a situation, and on through a cycle as far as the concrete situations allow."""
        path: Path[N] = []
        here, key = self.situations[place], self.world.key
        while (origin := self.origins[place]) is not None:
            place = origin[0]
            path.insert(0, (self.situations[place], origin[1]))
        for target in cycle:
            wanted = key(self.situations[target])
            moves = [move for move in self.world.moves(here) if _repeats(move.by, move.pace)]
            moves = sorted((one for one in moves if key(one.after) == wanted), key=lambda one: one.pace is Pace.FREE)
            if not moves:
                break
            path.append((here, moves[0]))
            here = moves[0].after
        return path


def _repeats(by: By, pace: Pace) -> bool:
    """Whether such a move may be part of an endless cycle."""
    return by is not By.OUTSIDE and pace is not Pace.PROGRESS


#: Returns what is wrong with a graph, and a path that shows it.
GraphInvariant: TypeAlias = Callable[[Exploration[Any]], "tuple[str, Path[Any]] | None"]


def every_state(found: Exploration[Any]) -> tuple[str, Path[Any]] | None:
    """Every state is reached."""
    reached = {found.world.state(one) for one in found.situations}
    names = [state.value for state in found.world.table.states if state not in reached]
    return (f"never reached: {', '.join(names)}", found.path(len(found.situations) - 1)) if names else None


def way_out(found: Exploration[Any]) -> tuple[str, Path[Any]] | None:
    """Every situation reaches one where it may rest, without the user or the host."""
    entries: list[list[int]] = [[] for _ in found.situations]
    for place, ways in enumerate(found.ways):
        for target, by, _ in ways:
            if by is By.OWN:
                entries[target].append(place)
    safe = {place for place, one in enumerate(found.situations) if found.world.rests(one)}
    new = list(safe)
    while new:
        for place in entries[new.pop()]:
            if place not in safe:
                safe.add(place)
                new.append(place)
    stuck = next((place for place in range(len(entries)) if place not in safe), None)
    return None if stuck is None else ("no way out without the user or the host", found.path(stuck))


def no_endless_work(found: Exploration[Any]) -> tuple[str, Path[Any]] | None:
    """No cycle repeats work without progress, unless it needs the user or the host."""
    ways = [[target for target, by, pace in some if _repeats(by, pace)] for some in found.ways]
    cycle = _cycles(ways)
    for place, some in enumerate(found.ways):
        for target, by, pace in some:
            if _repeats(by, pace) and pace is Pace.WORK and cycle[place] == cycle[target]:
                return "a cycle repeats work without progress", found.path(place, target, *_way(ways, target, place))
    return None


def _cycles(ways: Sequence[Iterable[int]]) -> list[int]:
    """The strongly connected component of each place, by Kosaraju's algorithm."""
    entries: list[list[int]] = [[] for _ in ways]
    for place, targets in enumerate(ways):
        for target in targets:
            entries[target].append(place)
    finished, seen = list[int](), [False] * len(ways)
    for root in range(len(ways)):
        walk = [(root, iter(ways[root]))] if not seen[root] else []
        seen[root] = True
        while walk:
            place, rest = walk[-1]
            following = next((target for target in rest if not seen[target]), None)
            if following is None:
                finished.append(walk.pop()[0])
            else:
                seen[following] = True
                walk.append((following, iter(ways[following])))
    component = [-1] * len(ways)
    for root in reversed(finished):
        new = [root] if component[root] < 0 else []
        while new:
            place = new.pop()
            if component[place] < 0:
                component[place] = root
                new += entries[place]
    return component


def _way(ways: Sequence[Iterable[int]], start: int, end: int) -> list[int]:
    """The shortest way from a place to another, which exists."""
    came, queue = {start: start}, deque([start])
    while end not in came:
        here = queue.popleft()
        for target in ways[here]:
            if target not in came:
                came[target] = here
                queue.append(target)
    way = []
    while end != start:
        way.append(end)
        end = came[end]
    return way[::-1]


GRAPH_INVARIANTS: Final[tuple[GraphInvariant, ...]] = (every_state, way_out, no_endless_work)


def explore(
    world: World[N], graph: Sequence[GraphInvariant] = GRAPH_INVARIANTS, limit: int = 1_000_000
) -> Exploration[N]:
    """Visit every reachable situation, up to the first bad step; if there is none, ask the graph's invariants.

    Raises `InvalidArgument` after `limit` situations.
    """
    found = Exploration(world, [world.start()])
    places = {world.key(found.situations[0]): 0}
    for place, here in enumerate(found.situations):
        ways = list[tuple[int, By, Pace]]()
        found.ways.append(ways)
        for move in world.moves(here):
            found.moves += 1
            if wrong := [(one.__name__, said) for one in world.invariants if (said := one(here, move))]:
                trace = world.trace([*found.path(place), (here, move)])
                found.violations += [Violation(name, said, trace) for name, said in wrong]
                return found
            target = places.setdefault(world.key(move.after), len(found.situations))
            if target == len(found.situations):
                if target >= limit:
                    raise InvalidArgument("world", f"{world.name} has over {limit:,} situations: its key is not finite")
                found.situations.append(move.after)
                found.origins.append((place, move))
            ways.append((target, move.by, move.pace))
    for rule in graph:
        if problem := rule(found):
            found.violations.append(Violation(rule.__name__, problem[0], world.trace(problem[1])))
    return found


# --- any table ---------------------------------------------------------------------------------------------------


class TableWorld:
    """Every event in every state of a table, and any running timer as the next to expire.

    Without `cut` the data is left out: every branch may apply, no matter what its guard says. With `cut` the steps are
    those of `advance` from `data` on, and `cut(data)` is what guards can distinguish in it: hashable and finite. An
    event has no value. `invariants` are your own; they get the `TableSnapshot` before and the move.
    """

    def __init__(
        self,
        table: Table[Any, Any, Any, Any],
        data: Any = None,
        cut: Callable[[Any], Hashable] | None = None,
        invariants: Sequence[StepInvariant[TableSnapshot[Any, Any]]] = (),
    ) -> None:
        self.table = table
        self.name = table.name
        self.invariants = invariants
        self._cut = cut
        self._data = data
        self._expires = {rule.expiry: timer for timer, rule in table.timers.items()}

    def start(self) -> TableSnapshot[Any, Any]:
        """The table's initial state."""
        start = TableSnapshot[Any, Any](self.table.initial, self._data)
        return enter(self.table, start, perform=self._cut is not None).snapshot

    def state(self, situation: TableSnapshot[Any, Any]) -> Enum:
        """The snapshot's state."""
        state: Enum = situation.state
        return state

    def key(self, situation: TableSnapshot[Any, Any]) -> Hashable:
        """The state, the running timers, and what guards can distinguish in the data."""
        running = frozenset(timer for timer, _ in situation.armed)
        return situation.state, running, None if self._cut is None else self._cut(situation.data)

    def moves(self, situation: TableSnapshot[Any, Any]) -> Iterator[Move[TableSnapshot[Any, Any]]]:
        """Every event that is handled here."""
        table = self.table
        for event in table.events:
            timer = self._expires.get(event)
            if timer is None:
                by, pace = By.OUTSIDE, Pace.FREE
            elif any(timer is running for running, _ in situation.armed):
                by, pace = By.OWN, Pace.WORK if table.timers[timer].seconds == 0 else Pace.PROGRESS
            else:
                continue
            if self._cut is None:
                taken = [suppose(table, situation, event, branch) for branch in table.cell(event, situation.state)]
            else:
                try:
                    taken = [advance(table, situation, event)]
                except ForbiddenRequest:
                    continue
            for after, effects, branch in taken:
                if branch is not None and branch.kind in (Kind.MOVED, Kind.KEPT):
                    what = event.value, situation.state.value, after.state.value, branch.kind.value
                    yield Move(what, after, effects, by, pace)

    def rests(self, situation: TableSnapshot[Any, Any]) -> bool:
        """Whether the state is final or has a reason to wait."""
        return situation.state in self.table.final or bool(self.table.waits.get(situation.state))

    def trace(self, path: Sequence[tuple[TableSnapshot[Any, Any], Move[TableSnapshot[Any, Any]]]]) -> bytes:
        """A path as a `Journey`, one second for each event."""
        passages = tuple(
            Passage(at=float(at), event=event, source=source, target=target, verdict=verdict)
            for at, (event, source, target, verdict) in enumerate(move.what for _, move in path)
        )
        states = tuple(state.value for state in self.table.states)
        return Journey(table=self.table.name, states=states, passages=passages).to_json()
