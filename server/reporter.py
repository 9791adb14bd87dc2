"""How a worker elsewhere tells a job's progress and end: a Celery task, an arq or taskiq function, any process.

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
from ._log import ENDS, Job
from ._redis_store import RedisStore
from ._settings import Limits
from ._told import Told, completed, completed_by_url, failed, progressed, result_url, started

_MAX_RESULT: Final = 16 * 1024 * 1024  # what one answer of the hub's may hold


class Reporter:
    """Tells of one job. Made anew for each run of the task, it says how far the run before had come.

    `checkpoint` is what was last given as such, `processed` the count last told. A task that its engine calls again
    after a worker died goes on from there, in the same epoch, and what was told is not told again.

    Every call raises `JobEnded` once the job has ended, because somebody canceled it: stop working then. It raises
    `HubStorageError` where Redis does not answer: what it had to tell may be told or not, and it may be called again.
    """

    def __init__(self, store: RedisStore, job_id: str, *, base_path: str = "") -> None:
        self._store = store
        self._base_path = base_path
        job = store.job(job_id)
        if not isinstance(job, Job):
            raise InvalidArgument("job_id", f"the job is {job.value}")
        self.job_id: Final = job_id
        self.pipeline: Final = job.pipeline
        self.checkpoint: Final[Any] = None if job.checkpoint is None else msgspec.json.decode(job.checkpoint)
        self.processed: int = job.processed or 0
        # What the run before told is not told again, not even its last count.
        self._told_before: Final = -1 if job.processed is None else job.processed
        self.total: int | None = job.total
        self._started = job.seq > 0
        self._unanswered: Told | None = None  # what may be in the log, or not
        if not job.running:
            raise JobEnded("report", job.status, "the job has ended")

    @classmethod
    def from_url(cls, url: str, job_id: str, *, prefix: str = "towline", base_path: str = "") -> Reporter:
        """Make a reporter with a connection of its own to the hub's Redis; `base_path` is where the hub is mounted.

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
        """Tell that the work begins: how many items, and how many seconds it may take. Told once a job."""
        self.total = None if total is None else index(total)
        if not self._started:
            self._tell(started(self.total, estimated_duration))
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
        """Tell that `done` items are done, now at `item`, and keep `checkpoint` (any JSON value) with it.

        A count below one told before, or told by the run before, is dropped, checkpoint and all. Raises `TypeError`
        for a count that is not whole.
        """
        done = index(done)
        if total is not None:
            self.total = index(total)
        if not self._started:
            self.start(self.total)
        if done >= self.processed and done != self._told_before:
            self._tell(progressed(done, self.total, item, status, checkpoint))
            self.processed = done

    def complete(self, result: Struct | Mapping[str, Any] | None = None) -> None:
        """End the job well.

        Raises `InvalidArgument` for a result above 16 MiB, or with a field `resultUrl`; the job then goes on.
        """
        fields = {} if result is None else msgspec.to_builtins(result)
        if "resultUrl" in fields:
            raise InvalidArgument("result", "resultUrl is the protocol's own name: call the field something else")
        told = completed(self.pipeline, fields)
        if len(told.payload) > _MAX_RESULT:
            raise InvalidArgument("result", f"it has more than {_MAX_RESULT} bytes")
        if len(told.payload) > Limits().inline_result:
            by_url = completed_by_url(self.pipeline, result_url(self._base_path, self.job_id))
            told = Told(by_url.type, by_url.payload, told.change)
        self._tell(told)

    def fail(self, code: str, message: str, *, details: object = None, retryable: bool = False) -> None:
        """End the job as failed, with a code for programs and a message for people.

        Not for a run that its engine will repeat: the job's epoch ends with its last try only.
        """
        self._tell(failed(JobFailure(code, message, details=details, retryable=retryable)))

    def _tell(self, told: Told) -> None:
        now = time.time_ns() // 1_000_000
        if told == self._unanswered and self._is_last(told):
            return
        self._unanswered = told
        written = self._store.append(self.job_id, told.type, told.payload, now, told.change)
        self._unanswered = None
        if written is not None:
            return
        job = self._store.job(self.job_id)
        if not isinstance(job, Job):
            raise HubStorageError("redis: the job is no longer there")
        if not job.running and (ENDS.get(told.type), told.change.outcome) != (job.status, job.outcome):
            raise JobEnded("report", job.status, "the job has ended")
        # It was told before and only the answer was lost, or another run of the task has come further: this one's older
        # news is nobody's.

    def _is_last(self, told: Told) -> bool:
        job = self._store.job(self.job_id)
        events = self._store.read(self.job_id, job.seq - 1, 1) if isinstance(job, Job) else ()
        return [(event.type, event.payload) for event in events] == [(told.type, told.payload)]
