"""The updates that a sync buffers: what each covers, and how to merge them when there are too many."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from ..._facts import Numbered, Position, Snapshot
from ..._updates import AnyUpdate, Progress, merge


class Held(NamedTuple):
    """One buffered fact, or several merged: its update, and its position.

    `update` is None for a fact with nothing to show. `first` is the first number that it covers, 0 without numbers.
    `more`: the next facts share this position, so the cursor does not move yet.
    """

    update: AnyUpdate | Snapshot | None
    at: Position | None
    first: int
    more: bool = False

    @property
    def epoch(self) -> str | None:
        """The log of its position, None without numbers."""
        return self.at.epoch if isinstance(self.at, Numbered) else None

    @property
    def last(self) -> int:
        """The last number that it covers, 0 without numbers."""
        return self.at.seq if isinstance(self.at, Numbered) else 0

    @property
    def shown_count(self) -> int | None:
        """The count that it shows."""
        return self.update.processed_count if isinstance(self.update, Progress) else None


def first_of(update: AnyUpdate | None, at: Position | None) -> int:
    """The first number that an update at a position covers: a server may have merged progress. 0 without numbers."""
    if not isinstance(at, Numbered):
        return 0
    merged_from = update.first_seq if isinstance(update, Progress) and update.seq == at.seq else None
    return at.seq if merged_from is None else min(merged_from, at.seq)


def is_covered(item: Held, floor: int | None) -> bool:
    """Whether a snapshot with the count `floor` already includes the item."""
    return floor is not None and item.shown_count is not None and item.shown_count <= floor


def without(item: Held, seq: int) -> Held:
    """The item without its events up to `seq`, which a snapshot covers; an item may be several merged."""
    if item.first > seq:
        return item
    update = item.update
    if isinstance(update, Progress):
        covered = seq + 1 - item.first
        update = replace(update, first_seq=seq + 1, merged=max(1, update.merged - covered))
    return item._replace(update=update, first=seq + 1)


def uncovered(held: list[Held], floor: int | None) -> list[Held]:
    """What a snapshot with the count `floor` leaves to show. An item keeps its position even if nothing is left."""
    return [
        item._replace(update=None) if is_covered(item, floor) else item
        for item in held
        if item.at is not None or not is_covered(item, floor)
    ]


def continuing(held: list[Held], applied: Numbered, before: int) -> list[Held]:
    """The items that continue the delivered ones, and that a replay from the number `before` will not repeat."""
    early: list[Held] = []
    reached = applied.seq
    for item in held:
        if item.epoch == applied.epoch and item.first == reached + 1 and item.last < before:
            early.append(item)
            reached = item.last
    return early


def join_state(held: list[Held], before: int, reported: int) -> tuple[list[Held], int] | str:
    """Join the buffered items to a state that covers the numbers up to `reported`; `before` were delivered.

    Returns the items that remain to be delivered, and the number that they follow: `before` if they continue the
    delivered ones without the state. Returns the problem as text if a gap remains.
    """
    held = [item for item in held if item.epoch is None or item.last > before]
    if _first_number(held) == before + 1:
        return held, before
    if reported < before:
        return f"the state is at event {reported}, behind event {before}, which was delivered already"
    held = [item for item in held if item.epoch is None or item.last > reported]
    following = _first_number(held)
    if following is not None and following > reported + 1:
        return f"the state is at event {reported}, but the next event received is {following}"
    return [item if item.epoch is None else without(item, reported) for item in held], reported


def _first_number(held: list[Held]) -> int | None:
    return next((item.first for item in held if item.epoch is not None), None)


def compacted(held: list[Held]) -> list[Held]:
    """The same items, with consecutive progress merged."""
    merged: list[Held] = []
    for item in held:
        both = _merged(merged[-1], item) if merged else None
        if both is None:
            merged.append(item)
        else:
            merged[-1] = both
    return merged


def _merged(older: Held, newer: Held) -> Held | None:
    if type(older.at) is not type(newer.at) or older.more or newer.more:
        return None
    if isinstance(older.at, Numbered):
        if older.epoch != newer.epoch or newer.first != older.last + 1:
            return None
    elif older.at is not None:
        return None  # each mark must be remembered, to recognize its duplicate
    if isinstance(older.update, Snapshot) or isinstance(newer.update, Snapshot):
        return None
    update: AnyUpdate | None
    if older.update is None or newer.update is None:
        # A keep-alive has nothing to show; the merged item keeps its position.
        update = newer.update if older.update is None else older.update
    elif isinstance(older.update, Progress) and isinstance(newer.update, Progress):
        update = merge(older.update, newer.update)
        if update is None:
            return None
    else:
        return None
    return Held(update, newer.at, older.first)
