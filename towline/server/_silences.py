"""Which workers elsewhere have been silent for too long, by the hub's own clock: a worker's may be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .log._base import Job


class Silences:
    """The silences of jobs whose pipeline has a limit, in seconds.

    A silence begins with the first look that finds no change, so the time for which a hub was down does not count.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def find(self, jobs: Iterable[Job], now: float) -> list[Job]:
        """Look at all jobs that have not ended, and give those whose worker is lost. `now` is in seconds.

        A job without a sign of life waits for a worker, which may take any time.
        """
        seen, lost = {}, []
        for job in jobs:
            limit = self._limits.get(job.pipeline)
            if limit is None or job.updated is None:
                continue
            sign = (job.seq, job.updated)
            before, since = self._seen.get(job.id, (None, now))
            seen[job.id] = sign, since if sign == before else now
            if now - seen[job.id][1] >= limit:
                lost.append(job)
        self._seen = seen
        return lost

    def forget(self) -> None:
        """Start again: the log could not be read, so reports may have been refused too."""
        self._seen = {}
