"""Helpers for the sequencer: which position a fact has, and what a fetched state says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from ..._facts import JOB_FACTS, Ended, Fact, Item, Mark, Numbered, Position, Snapshot
from ..._updates import AnyUpdate, Paused, Progress, Resynced, Update, without_place

T = TypeVar("T", bound=Update)


class State(NamedTuple):
    """What a fetched state says: the job's present state, and its end if it has ended."""

    snapshot: Snapshot
    ended: Ended | None

    @property
    def at(self) -> Position | None:
        """The position that the state covers."""
        return self.snapshot.at if self.ended is None else self.ended.at

    @property
    def shown_count(self) -> int | None:
        """The largest count in it."""
        updates = self.snapshot.updates if self.ended is None else (*self.snapshot.updates, self.ended.outcome)
        counts = [count for update in updates if (count := getattr(update, "processed_count", None)) is not None]
        return max(counts, default=None)


def state_of(facts: Iterable[Fact]) -> State | None:
    """Combine the facts of a state call into one state; None if they say nothing about the job."""
    updates: list[AnyUpdate] = []
    at: Position | None = None
    ended: Ended | None = None
    found = False
    for fact in facts:
        if isinstance(fact, Item | Snapshot | Ended):
            found = True
            at = fact.at if fact.at is not None else at
        if isinstance(fact, Snapshot):
            updates += fact.updates
        elif isinstance(fact, Item) and fact.update is not None:
            updates.append(fact.update)
        elif isinstance(fact, Ended):
            ended = fact
    return State(Snapshot(tuple(updates), at), ended) if found else None


def pause_in(facts: Iterable[Fact], before: bool | None = None) -> bool | None:
    """Whether the facts end with a pause of the job; `before` if they show nothing."""
    for fact in facts:
        shown = fact.updates if isinstance(fact, Snapshot) else (fact.update,) if isinstance(fact, Item) else ()
        for update in shown:
            if update is not None:
                before = isinstance(update, Paused)
    return before


def content_of(facts: Iterable[Fact]) -> tuple[object, ...]:
    """What the facts of a state say about the job, without places and times: keep-alives change those alone."""
    content: list[object] = []
    for fact in facts:
        if isinstance(fact, Snapshot):
            content += [without_place(update) for update in fact.updates]
        elif isinstance(fact, Item) and fact.update is not None:
            content.append(without_place(fact.update))
        elif isinstance(fact, Ended):
            content.append(type(fact.outcome))
    return tuple(content)


def positioned(facts: Iterable[Fact]) -> list[tuple[Fact, Position | None, bool]]:
    """Return each fact about the job with its position, and whether the next one has the same.

    A fact without a position has that of the next fact with one, or else of the last before it: facts of one message
    stand at one place.
    """
    about_job = [fact for fact in facts if isinstance(fact, JOB_FACTS)]
    own = [fact.at if isinstance(fact, Item | Snapshot | Ended) else None for fact in about_job]
    last = next((at for at in reversed(own) if at is not None), None)
    placed: list[tuple[Fact, Position | None, bool]] = []
    following: Position | None = None
    for fact, given in zip(reversed(about_job), reversed(own), strict=True):
        at = given if given is not None else following if following is not None else last
        placed.append((fact, at, at is not None and at == following))
        following = at
    return placed[::-1]


def placed_at(update: T, at: Position | None) -> T:
    """The update with the position `at`, unless the protocol has set one."""
    match at:
        case Mark(text) if update.mark is None:
            return replace(update, mark=text)
        case Numbered(seq, epoch) if update.seq is None:
            if isinstance(update, Progress):
                return replace(update, seq=seq, epoch=epoch, first_seq=seq)
            return replace(update, seq=seq, epoch=epoch)
    return update


def without_number(update: T) -> T:
    """The update without a number, where the numbers of states say nothing about the other updates."""
    if update.seq is None and update.epoch is None:
        return update
    if isinstance(update, Progress):
        return replace(update, seq=None, epoch=None, first_seq=None)
    return replace(update, seq=None, epoch=None)


def placed_last(snapshot: Snapshot) -> list[AnyUpdate]:
    """The updates of a snapshot, the last one with its position."""
    return [*snapshot.updates[:-1], *(placed_at(update, snapshot.at) for update in snapshot.updates[-1:])]


def missed_before_end(job: str, applied: int, at: Numbered) -> list[AnyUpdate]:
    """The report of the events between the last delivered one, `applied`, and the end; empty if there are none."""
    missed = at.seq - 1 - applied
    if missed <= 0:
        return []
    return [
        Resynced(job=job, epoch=at.epoch, kind="end", from_seq=applied + 1, to_seq=at.seq - 1, missed=missed),
    ]
