"""The newest events of the jobs that move, in memory, for the readers that keep up."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from ._base import Event

_EVENTS: Final = 128  # of one job
_JOBS: Final = 512


class Tails:
    """Lists of events by job, each without a hole. The jobs that have moved last are kept."""

    def __init__(self) -> None:
        self._tails: OrderedDict[str, deque[Event]] = OrderedDict()

    def add(self, event: Event) -> None:
        """Add a job's newest event. After a hole the list starts again; an event that is in it already is left out."""
        tail = self._tails.get(event.job_id)
        if tail is None:
            tail = self._tails[event.job_id] = deque(maxlen=_EVENTS)
            if len(self._tails) > _JOBS:
                self._tails.popitem(last=False)
        else:
            self._tails.move_to_end(event.job_id)
            if event.seq <= tail[-1].seq:
                return
            if event.seq > tail[-1].seq + 1:
                tail.clear()
        tail.append(event)

    def read(self, job_id: str, after: int, limit: int) -> Sequence[Event] | None:
        """Up to `limit` events with a `seq` above `after`; None where the list does not reach back so far."""
        tail = self._tails.get(job_id)
        if tail is None:
            return None
        if tail[-1].seq == after + 1:  # as for nearly every reader that keeps up
            return (tail[-1],)
        first = after - tail[0].seq + 1
        if first < 0:
            return None
        return [tail[index] for index in range(first, min(len(tail), first + limit))]

    def forget(self, job_id: str) -> None:
        """Drop one job's list."""
        self._tails.pop(job_id, None)

    def clear(self) -> None:
        """Drop all lists: events may have been missed."""
        self._tails.clear()
