"""What a hub has done since it was made, as numbers; the hot paths only add one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class HubStatistics(NamedTuple):
    """A hub's numbers at one moment. All but `sockets`, `streams` and `jobs_at_work` only grow.

    `streams` are event streams. `jobs_ended` is by terminal type, `refusals` by HTTP status, `closes` by close code (of
    an event stream, by the one a socket would have had); `log_failures` are writes and reads the log did not do.
    """

    sockets: int
    streams: int
    jobs_at_work: int
    sockets_opened: int
    streams_opened: int
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
        self.streams = 0
        self.jobs_at_work = 0
        self.sockets_opened = 0
        self.streams_opened = 0
        self.jobs_started = 0
        self.jobs_ended: Counter[str] = Counter()
        self.frames_sent = 0
        self.refusals: Counter[int] = Counter()
        self.closes: Counter[int] = Counter()
        self.log_failures = 0

    def watch(self, by: int, *, stream: bool) -> None:
        """Count a watcher that comes (1) or goes (-1)."""
        if stream:
            self.streams += by
            self.streams_opened += by > 0
        else:
            self.sockets += by
            self.sockets_opened += by > 0

    def snapshot(self) -> HubStatistics:
        """The numbers now."""
        return HubStatistics(
            sockets=self.sockets,
            streams=self.streams,
            jobs_at_work=self.jobs_at_work,
            sockets_opened=self.sockets_opened,
            streams_opened=self.streams_opened,
            jobs_started=self.jobs_started,
            jobs_ended=dict(self.jobs_ended),
            frames_sent=self.frames_sent,
            refusals=dict(self.refusals),
            closes=dict(self.closes),
            log_failures=self.log_failures,
        )
