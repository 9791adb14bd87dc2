"""The steps of one connection's state machine, in the order in which they happened.

Any code may add a step between any two bytecodes: a task, another thread, a signal handler, or a finalizer that runs in
the middle of another step. There is no lock and no queue. A step is computed from the last one and appended by one
atomic operation. If another step was faster, it is computed again from that one. So the state has changed when `add`
returns, and the returned step is accurate.

Only the state changes here. The engine performs the steps' effects later, on the loop, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from .._exceptions import ForbiddenRequest
from ..statemachine import AnyEffect, AnyEvent, Entry, Facts, Policy, Snapshot, step


class Levels(NamedTuple):
    """The host's reports: its current levels, not events."""

    path_up: bool = True
    path_identity: str | None = None
    foreground: bool = True


class Stepped:
    """One step: the snapshots before and after, the host's levels, the effects. `entry` is None without an event."""

    __slots__ = ("_following", "after", "before", "effects", "entry", "levels")

    def __init__(
        self, before: Snapshot, after: Snapshot, levels: Levels, entry: Entry | None, effects: tuple[AnyEffect, ...]
    ) -> None:
        self.before = before
        self.after = after
        self.levels = levels
        self.entry = entry
        self.effects = effects
        self._following: dict[None, Stepped] = {}

    @property
    def following(self) -> Stepped | None:
        """The step after this one, or None while this is the last."""
        return self._following.get(None)

    def follow_with(self, other: Stepped) -> bool:
        """Append `other` to this step; False if another step follows already. Atomic."""
        return self._following.setdefault(None, other) is other


class Steps:
    """The sequence of steps, from the first on. `facts` makes the current facts from the host's levels."""

    def __init__(self, policy: Policy) -> None:
        self._policy: Final = policy
        self.facts: Callable[[Levels], Facts] = _facts_before_entering
        self._first: Stepped | None = Stepped(Snapshot(), Snapshot(), Levels(), None, ())
        # The last step or an earlier one, from which `last` walks on.
        self._near_last = self._first

    @property
    def last(self) -> Stepped:
        """The step that no other follows yet."""
        last = self._near_last
        while (following := last.following) is not None:
            last = following
        self._near_last = last
        return last

    @property
    def snapshot(self) -> Snapshot:
        """The state machine's current snapshot."""
        return self.last.after

    def add(self, event: AnyEvent) -> Stepped:
        """Process an event; raises `ForbiddenRequest` for a request that the state does not allow."""
        return self.change(lambda levels: (levels, event))

    def change(self, news: Callable[[Levels], tuple[Levels, AnyEvent | None]]) -> Stepped:
        """Change the host's levels and process the resulting event. `news` must be pure: it may run repeatedly."""
        while True:
            last = self.last
            levels, event = news(last.levels)
            stepped, forbidden = self._step(last.after, levels, event)
            if last.follow_with(stepped):
                if forbidden is not None:
                    raise forbidden
                return stepped

    def take_first(self) -> Stepped:
        """Return the first step, once: each step keeps all later ones, so this one must not be kept here."""
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("the first step was taken already")
        return first

    def begin_with(self, first: Stepped, snapshot: Snapshot) -> bool:
        """Start with a stored snapshot; returns False if a request came first."""
        return first.follow_with(Stepped(snapshot, snapshot, Levels(), None, ()))

    def _step(
        self, before: Snapshot, levels: Levels, event: AnyEvent | None
    ) -> tuple[Stepped, ForbiddenRequest | None]:
        if event is None:
            return Stepped(before, before, levels, None, ()), None
        facts = self.facts(levels)
        try:
            after, effects, verdict = step(before, event, facts, self._policy)
        except ForbiddenRequest as error:
            entry = Entry(event=event, facts=facts, source=before.state, target=before.state, verdict=None)
            return Stepped(before, before, levels, entry, ()), error
        entry = Entry(event=event, facts=facts, source=before.state, target=after.state, verdict=verdict)
        return Stepped(before, after, levels, entry, effects), None


def _facts_before_entering(levels: Levels) -> Facts:
    return Facts(now=0.0, path_up=levels.path_up, foreground=levels.foreground, token_id=None, renewable=False)
