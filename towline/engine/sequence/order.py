"""Where the follower stands: which item comes next, which is a duplicate, and which leaves a gap."""

from __future__ import annotations

from typing import Final

from ..._facts import Mark, Numbered, Position, Snapshot
from .held import Held

#: How many of a job's former logs, and of its delivered marks, are remembered.
LOGS_REMEMBERED: Final = 16
MARKS_REMEMBERED: Final = 256

#: After so many gaps that a replay has shown again, the numbers of this log are known to have gaps.
OWN_GAPS: Final = 3


class Order:
    """The cursor of one job, and what is known of its server's numbers. It decides by position alone."""

    def __init__(self, cursor: Position | None) -> None:
        #: The position up to which updates were delivered; None before the first, and without positions.
        self.applied = cursor
        #: Whether this link has its gaps decided by the job's state.
        self.by_state = True
        #: The epoch of this link's log, None before its first numbered item.
        self.link_epoch: str | None = None
        # The delivered marks, oldest first.
        self._marks: dict[str, None] = {cursor.text: None} if isinstance(cursor, Mark) else {}
        # The epochs of former logs: facts from these are out of date.
        self._former_epochs: tuple[str, ...] = ()
        self._has_numbered = False
        self._has_unnumbered = False
        # The last gap (cursor, and first position after it), how many a replay has confirmed, and the cursor from which
        # this link replays.
        self._gap: tuple[Position, Numbered] | None = None
        self._own_gaps = 0
        self._replays_from: Position | None = None
        # Whether this link began without the cursor. Its first item then leaves a gap that was reported already.
        self._may_jump = False

    def opened(self, *, by_state: bool, after: Position | None, may_jump: bool) -> None:
        """Start a new link, which begins after the position `after`."""
        self.by_state = by_state
        self.link_epoch = None
        self._replays_from, self._may_jump = after, may_jump

    # --- positions -------------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The number of the last delivered item, 0 without numbers."""
        return self.applied.seq if isinstance(self.applied, Numbered) else 0

    def is_same_log(self, at: Position | None) -> bool:
        """Whether a position is in the log of the delivered items."""
        return isinstance(at, Numbered) and isinstance(self.applied, Numbered) and at.epoch == self.applied.epoch

    def is_of_another_log(self, at: Position | None) -> bool:
        """Whether a position belongs to another log than this link's; then it is out of date."""
        if not isinstance(at, Numbered):
            return False
        return at.epoch in self._former_epochs or (self.link_epoch is not None and self.link_epoch != at.epoch)

    @property
    def is_unnumbered(self) -> bool:
        """Whether the server's items have no numbers. Then the number of a state says nothing about them."""
        return self._has_unnumbered and not self._has_numbered

    def enter_log(self, epoch: str) -> None:
        """Remember that this link uses the log `epoch`, so it is the current one."""
        self.link_epoch = epoch
        self._former_epochs = tuple(over for over in self._former_epochs if over != epoch)

    def move_to(self, position: Position) -> bool:
        """Move the cursor; returns whether it is in another log now."""
        before, self.applied = self.applied, position
        if isinstance(position, Mark):
            self._marks.pop(position.text, None)
            self._marks[position.text] = None
            if len(self._marks) > MARKS_REMEMBERED:
                del self._marks[next(iter(self._marks))]
            return False
        if isinstance(before, Numbered) and before.epoch == position.epoch:
            return False
        if isinstance(before, Numbered):
            self._former_epochs = (*self._former_epochs, before.epoch)[-LOGS_REMEMBERED:]
        self._own_gaps = 0
        return True

    # --- items -----------------------------------------------------------------------------------------------------

    def is_out_of_date(self, item: Held) -> bool:
        """Note how the server numbers its items; returns whether this one belongs to a former log."""
        self._has_numbered = self._has_numbered or item.epoch is not None
        self._has_unnumbered = self._has_unnumbered or item.at is None
        return item.epoch in self._former_epochs and self.link_epoch is not None

    def is_old(self, item: Held) -> bool:
        """Whether the item was delivered before."""
        if isinstance(item.at, Mark):
            # The same mark may stand for a later snapshot, which shows only news anyway. An empty mark is no position.
            text = item.at.text
            return text != "" and text in self._marks and not isinstance(item.update, Snapshot)
        return self.is_same_log(item.at) and item.last <= self.seq

    def reaches_into(self, item: Held) -> bool:
        """Whether only the first part of a merged item was delivered before."""
        return item.first <= self.seq < item.last and self.is_same_log(item.at)

    def joins(self, item: Held, *, is_live: bool) -> bool:
        """Whether an item is the next to be delivered."""
        if isinstance(item.update, Snapshot) or not isinstance(item.at, Numbered):
            return not self.is_old(item)
        if not isinstance(self.applied, Numbered):
            # The server's states have no position in its log: start the log at this first item.
            return is_live
        return self._comes_next(item) or self._is_no_gap(item)

    def _comes_next(self, item: Held) -> bool:
        return self.is_same_log(item.at) and item.first == self.seq + 1

    def _is_no_gap(self, item: Held) -> bool:
        """Whether to deliver an item after a gap: it was reported already, or it is the server's own numbering.

        The server left the numbers out itself if a replay from the cursor shows the same gap again.
        """
        applied, at = self.applied, item.at
        if self.by_state or applied is None or not isinstance(at, Numbered) or self.is_old(item):
            return False
        if self._may_jump or (self.is_same_log(at) and self._own_gaps >= OWN_GAPS):
            return True
        return self._replays_from == applied and self._gap == (applied, Numbered(item.first, at.epoch))

    def is_new_log(self, item: Held) -> bool:
        """Note that the item is delivered; returns whether it is the first of a new log that was not reported."""
        jumped, self._may_jump = self._may_jump, self._may_jump and item.at is None
        if jumped or not isinstance(item.at, Numbered) or not isinstance(self.applied, Numbered):
            return False
        if self.is_same_log(item.at):
            self._own_gaps += not self._comes_next(item)
            return False
        return True

    def gap_before(self, item: Held) -> str:
        """Remember the gap before an item, and describe it."""
        if self.applied is not None and isinstance(item.at, Numbered):
            self._gap = (self.applied, Numbered(item.first, item.at.epoch))
        if not self.is_same_log(item.at):
            return f"the server's log restarted, at event {item.first}"
        return f"expected event {self.seq + 1}, got {item.first}"
