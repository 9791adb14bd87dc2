"""The steps of one lifecycle, in the order in which they happened.

Any code may add a step between any two bytecodes: a task, another thread, a signal handler, or a finalizer that runs in
the middle of another step. There is no lock and no queue. A step is computed from the last one and appended by one
atomic operation. If another step was faster, it is computed again from that one. So the state has changed when `add`
returns, and the returned step is accurate.

Only the state changes here. The runner performs the steps' effects later, on the loop, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from .._exceptions import ForbiddenRequest


class AnySnapshot(Protocol):
    """What a lifecycle knows between two events. Work of an older `generation` is stale."""

    @property
    def state(self) -> Any:
        """The current state."""

    @property
    def generation(self) -> int:
        """Counts the attempts."""


S = TypeVar("S", bound=AnySnapshot)
E = TypeVar("E")
L = TypeVar("L")
N = TypeVar("N")
F = TypeVar("F")


class Taken(NamedTuple, Generic[S, F, N]):
    """What one event led to: the next snapshot, the effects, what is recorded, and the error of a forbidden request."""

    after: S
    effects: tuple[F, ...]
    entry: N | None
    forbidden: ForbiddenRequest | None = None


class Stepped(Generic[S, F, L, N]):
    """One step: the snapshots before and after, the host's levels, the effects. `entry` is None without an event."""

    __slots__ = ("_following", "after", "before", "effects", "entry", "levels")

    def __init__(self, before: S, after: S, levels: L, entry: N | None, effects: tuple[F, ...]) -> None:
        self.before = before
        self.after = after
        self.levels = levels
        self.entry = entry
        self.effects = effects
        self._following: dict[None, Stepped[S, F, L, N]] = {}

    @property
    def following(self) -> Stepped[S, F, L, N] | None:
        """The step after this one, or None while this is the last."""
        return self._following.get(None)

    def follow_with(self, other: Stepped[S, F, L, N]) -> bool:
        """Append `other` to this step; False if another step follows already. Atomic."""
        return self._following.setdefault(None, other) is other


class Steps(Generic[S, E, F, L, N]):
    """The sequence of steps from the first on.

    `take` makes one step from a snapshot, an event and the host's levels (reports of the host that stay true until the
    next report). It must be pure, because it may run repeatedly.
    """

    def __init__(self, initial: S, levels: L, take: Callable[[S, E, L], Taken[S, F, N]]) -> None:
        self._initial: Final = initial
        self._take: Final = take
        self._first: Stepped[S, F, L, N] | None = Stepped(initial, initial, levels, None, ())
        # The last step or an earlier one, from which `last` walks on.
        self._near_last = self._first

    @property
    def last(self) -> Stepped[S, F, L, N]:
        """The step that no other follows yet."""
        last = self._near_last
        while (following := last.following) is not None:
            last = following
        self._near_last = last
        return last

    @property
    def snapshot(self) -> S:
        """The current snapshot."""
        return self.last.after

    def add(self, event: E) -> Stepped[S, F, L, N]:
        """Process an event; raises `ForbiddenRequest` for a request that the state does not allow."""
        return self.change(lambda levels: (levels, event))

    def change(self, news: Callable[[L], tuple[L, E | None]]) -> Stepped[S, F, L, N]:
        """Change the host's levels and process the resulting event. `news` must be pure: it may run repeatedly."""
        while True:
            last = self.last
            levels, event = news(last.levels)
            before, forbidden = last.after, None
            if event is None:
                stepped: Stepped[S, F, L, N] = Stepped(before, before, levels, None, ())
            else:
                after, effects, entry, forbidden = self._take(before, event, levels)
                stepped = Stepped(before, after, levels, entry, effects)
            if last.follow_with(stepped):
                if forbidden is not None:
                    raise forbidden
                return stepped

    def take_first(self) -> Stepped[S, F, L, N]:
        """Return the first step, once: each step keeps all later ones, so this one must not be kept here."""
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("the first step was taken already")
        return first

    def begin_with(self, snapshot: S) -> bool:
        """Start with a stored snapshot; returns False if an event has changed the snapshot before."""
        while (last := self.last).after is self._initial:
            if last.follow_with(Stepped(snapshot, snapshot, last.levels, None, ())):
                return True
        return False
