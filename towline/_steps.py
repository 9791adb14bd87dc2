"""The steps of one connection's machine, in the one order in which they happened.

Anybody may add a step between any two bytecodes: a task, another thread, a signal handler or a finalizer that runs in
the middle of somebody else's step. There is no lock to wait for and nothing to be queued. A step is computed from the
last one and takes its place behind it by one atomic operation; where another was quicker, it is computed again from
that one. So the state has changed when `add` returns, and what it answers is true.

Only the state changes here. The engine performs the steps' effects later, on the loop, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ._exceptions import ForbiddenRequest
from .statemachine import AnyEffect, AnyEvent, Entry, Facts, Policy, Snapshot, step


class Levels(NamedTuple):
    """What the host says of itself: how it stands, not what happened."""

    path_up: bool = True
    path_identity: str | None = None
    foreground: bool = True


class Stepped:
    """One step: the snapshots before and after, what the host says, the effects. `entry` None: no event was taken."""

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
        """Put `other` behind this step; False where another is there already. Atomic."""
        return self._following.setdefault(None, other) is other


class Steps:
    """The row of steps, from the first on. `facts` says how the world stands, given what the host says."""

    def __init__(self, policy: Policy) -> None:
        self._policy: Final = policy
        self.facts: Callable[[Levels], Facts] = _facts_before_entering
        self._first: Stepped | None = Stepped(Snapshot(), Snapshot(), Levels(), None, ())
        # The last step, or one before it: the rest of the way is walked.
        self._near_last = self._first

    @property
    def last(self) -> Stepped:
        """The step that nothing follows yet."""
        last = self._near_last
        while (following := last.following) is not None:
            last = following
        self._near_last = last
        return last

    @property
    def snapshot(self) -> Snapshot:
        """How the machine stands now."""
        return self.last.after

    def add(self, event: AnyEvent) -> Stepped:
        """Take an event; raises `ForbiddenRequest` for a request that the state does not allow."""
        return self.change(lambda levels: (levels, event))

    def change(self, news: Callable[[Levels], tuple[Levels, AnyEvent | None]]) -> Stepped:
        """Take what the host says, and the event that comes of it. `news` is pure: it may be called more than once."""
        while True:
            last = self.last
            levels, event = news(last.levels)
            stepped, forbidden = self._step(last.after, levels, event)
            if last.follow_with(stepped):
                if forbidden is not None:
                    raise forbidden
                return stepped

    def take_first(self) -> Stepped:
        """Return the step to begin with, once: each step keeps all that follow, so this one must not be kept here."""
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("the first step was taken already")
        return first

    def begin_with(self, first: Stepped, snapshot: Snapshot) -> bool:
        """Begin with a snapshot that is on record; False where a request came first."""
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
