"""The connection's lifecycle as the runner runs it: its steps from the first on, and the host's reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from .._exceptions import ForbiddenRequest
from ..runner import Driver, Stepped, Steps, Taken
from ..statemachine import AnyEffect, AnyEvent, Entry, Facts, Policy, Snapshot, step


class Levels(NamedTuple):
    """The host's reports: its current levels, not events."""

    path_up: bool = True
    path_identity: str | None = None
    foreground: bool = True


ConnectionStep: TypeAlias = Stepped[Snapshot, AnyEffect, Levels, Entry]
ConnectionRunner: TypeAlias = Driver[Snapshot, AnyEvent, AnyEffect, Levels, Entry]


class Lifecycle:
    """The steps of one connection. It exists before the engine, so that a request works at any moment."""

    def __init__(self, policy: Policy) -> None:
        #: The protocol may add to it before the engine starts.
        self.policy = policy
        #: Makes the current facts from the host's levels; the engine replaces it.
        self.facts: Callable[[Levels], Facts] = _facts_before_entering
        self.steps: Steps[Snapshot, AnyEvent, AnyEffect, Levels, Entry] = Steps(Snapshot(), Levels(), self._take)

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot."""
        return self.steps.snapshot

    def _take(self, before: Snapshot, event: AnyEvent, levels: Levels) -> Taken[Snapshot, AnyEffect, Entry]:
        facts = self.facts(levels)
        try:
            after, effects, verdict = step(before, event, facts, self.policy)
        except ForbiddenRequest as error:
            entry = Entry(event=event, facts=facts, source=before.state, target=before.state, verdict=None)
            return Taken(before, (), entry, error)
        return Taken(
            after,
            effects,
            Entry(event=event, facts=facts, source=before.state, target=after.state, verdict=verdict),
        )


def _facts_before_entering(levels: Levels) -> Facts:
    return Facts(now=0.0, path_up=levels.path_up, foreground=levels.foreground, token_id=None, renewable=False)
