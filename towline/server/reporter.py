"""How a worker elsewhere reports a job's progress and end: a Celery task, an arq or taskiq function, any process.

It blocks, for a millisecond or so, and may be used from any thread, one call at a time. Needs the `redis` extra.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from operator import index
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import UNSET, Struct

from .._exceptions import HubStorageError, InvalidArgument, JobEnded, JobFailure
from ._settings import HubLimits
from .log._base import ENDS, Job
from .log._drafts import Draft, completed_in_log, failed, progressed, started
from .log._redis_store import RedisStore


class Reporter:
    """Reports on one job. Make one for each run of the task: it says how far the previous run came.

    `checkpoint` is the last one that was given, `processed` the last count that was reported. A task that its engine
    calls again after a worker died continues from there, in the same epoch, and nothing is reported twice.

    Every call raises `JobEnded` once the job has ended, because it was canceled: stop working then. It raises
    `HubStorageError` if Redis does not answer: the report may have been written or not, and the call may be repeated.
    """

    def __init__(self, store: RedisStore, job_id: str, *, base_path: str = "") -> None:
        self._store = store
        self._base_path = base_path
        job = store.job(job_id)
        if not isinstance(job, Job):
            raise InvalidArgument("job_id", f"the job is {job.value}")
        self._job = job
        self.job_id: Final = job_id
        self.pipeline: Final = job.pipeline
        self.checkpoint: Final[Any] = None if job.checkpoint is None else msgspec.json.decode(job.checkpoint)
        self.processed: int = job.processed or 0
        # What the previous run reported is not reported again, not even its last count.
        self._reported_before: Final = -1 if job.processed is None else job.processed
        self.total: int | None = job.total
        self._started = job.seq > 0
        self._unanswered: Draft | None = None  # what may be in the log, or not
        if not job.running:
            raise JobEnded("report", job.status, "the job has ended")

    @classmethod
    def from_url(cls, url: str, job_id: str, *, prefix: str = "towline", base_path: str = "") -> Reporter:
        """Make a reporter with its own connection to the hub's Redis; `base_path` is where the hub is mounted.

        Raises `InvalidArgument` for a job that is not there, `JobEnded` for one that has ended.
        """
        store = RedisStore(url, prefix)
        try:
            return cls(store, job_id, base_path=base_path)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the job goes on."""
        self._store.close()

    def start(self, total: int | None = None, estimated_duration: float | None = None) -> None:
        """Report that the work begins: how many items, and how many seconds it may take. Reported once per job."""
        self.total = None if total is None else index(total)
        if not self._started:
            self._report(started(self.total, estimated_duration))
            self._started = True

    def progress(
        self,
        done: int,
        total: int | None = None,
        item: str | None = None,
        *,
        status: str = "processing",
        checkpoint: object = UNSET,
    ) -> None:
        """Report that `done` items are done, now at `item`, and keep `checkpoint` (any JSON value) with it.

        A count below one reported before, in any run, is dropped together with its checkpoint. Raises `TypeError`
        for a count that is not whole.
        """
        done = index(done)
        if total is not None:
            self.total = index(total)
        if not self._started:
            self.start(self.total)
        if done >= self.processed and done != self._reported_before:
            self._report(progressed(done, self.total, item, status, checkpoint))
            self.processed = done

    def keep_alive(self) -> None:
        """Report only that the worker lives, for a hub that ends silent jobs (`dispatch(silent_for=)`)."""
        if not self._store.touch(self.job_id, time.time_ns() // 1_000_000):
            job = self._store.job(self.job_id)
            raise JobEnded("report", job.status if isinstance(job, Job) else job.value, "the job has ended")

    def complete(self, result: Struct | Mapping[str, Any] | None = None) -> None:
        """End the job well.

        Raises `InvalidArgument` for a result above 16 MiB, or with a field `resultUrl`; the job then goes on.
        """
        fields = {} if result is None else msgspec.to_builtins(result)
        inline = HubLimits().inline_result
        self._report(completed_in_log(self._job, fields, base_path=self._base_path, inline=inline))

    def fail(self, code: str, message: str, *, details: object = None, retryable: bool = False) -> None:
        """End the job as failed, with a code for programs and a message for people.

        Not for a run that its engine will repeat: the job's epoch ends with its last try only.
        """
        self._report(failed(JobFailure(code, message, details=details, retryable=retryable)))

    def _report(self, draft: Draft) -> None:
        now = time.time_ns() // 1_000_000
        if draft == self._unanswered and self._is_last(draft):
            return
        self._unanswered = draft
        written = self._store.append(self.job_id, draft.type, draft.payload, now, draft.change)
        self._unanswered = None
        if written is not None:
            return
        job = self._store.job(self.job_id)
        if not isinstance(job, Job):
            raise HubStorageError("redis: the job is no longer there")
        if not job.running and (ENDS.get(draft.type), draft.change.outcome) != (job.status, job.outcome):
            raise JobEnded("report", job.status, "the job has ended")
        # It was written before and only the answer was lost, or another run of the task came further: then this report
        # is out of date.

    def _is_last(self, draft: Draft) -> bool:
        job = self._store.job(self.job_id)
        events = self._store.read(self.job_id, job.seq - 1, 1) if isinstance(job, Job) else ()
        return [(event.type, event.payload) for event in events] == [(draft.type, draft.payload)]
