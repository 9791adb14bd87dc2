"""What a hub has done since it was made, as numbers; the hot paths only add one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class HubStatistics(NamedTuple):
    """A hub's numbers at one moment. All but `sockets` and `jobs_at_work` only grow.

    `jobs_ended` is by terminal type, `refusals` by HTTP status, `closes` by close code; `log_failures` are writes and
    reads the log did not do.
    """

    sockets: int
    jobs_at_work: int
    sockets_opened: int
    jobs_started: int
    jobs_ended: Mapping[str, int]
    frames_sent: int
    refusals: Mapping[int, int]
    closes: Mapping[int, int]
    log_failures: int


class Counters:
    """The numbers while they grow."""

    def __init__(self) -> None:
        self.sockets = 0
        self.jobs_at_work = 0
        self.sockets_opened = 0
        self.jobs_started = 0
        self.jobs_ended: Counter[str] = Counter()
        self.frames_sent = 0
        self.refusals: Counter[int] = Counter()
        self.closes: Counter[int] = Counter()
        self.log_failures = 0

    def snapshot(self) -> HubStatistics:
        """The numbers now."""
        return HubStatistics(
            sockets=self.sockets,
            jobs_at_work=self.jobs_at_work,
            sockets_opened=self.sockets_opened,
            jobs_started=self.jobs_started,
            jobs_ended=dict(self.jobs_ended),
            frames_sent=self.frames_sent,
            refusals=dict(self.refusals),
            closes=dict(self.closes),
            log_failures=self.log_failures,
        )
