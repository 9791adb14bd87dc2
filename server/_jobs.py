"""Running jobs: the context a job's function works with, and the runner that carries jobs over restarts.

A job's function is called again from the start after a restart of the hub; its context says how far it had come. What
it told by then stands in the log, so progress that was told before is not told again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from msgspec import UNSET, Struct

from .._exceptions import HubStorageError, JobFailure
from ..transport._messages import (
    ErrorPayload,
    ProgressPayload,
    ResultReference,
    StartedPayload,
    encode_payload,
)
from ._files import UPLOAD_FILE, UPLOAD_NAME_FILE, clear_job_folder, keep_result
from ._log import Change, EventLog, Job
from ._settings import Limits
from ._statistics import Counters

logger: Final = logging.getLogger("towline.server")

_MAX_ITEM: Final = 500  # characters of an item or status text

#: What a job's function may return: a result's fields, or the path of a JSON file in the job's folder that holds them.
Result: TypeAlias = Struct | Mapping[str, Any] | Path | None


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a job was started with: a file that is there until the job ends. `name` is the sender's word, only text."""

    path: Path
    size: int
    name: str | None = None


JobFunction: TypeAlias = Callable[["JobContext", Upload], Awaitable[Result]]


class JobContext:
    """What a job's function tells the hub, and what the hub tells it.

    `directory` is the job's own folder: files in it outlive a restart and go when the job ends. `attempt` is 1 on the
    first run. `checkpoint` is what the function last gave as such, `processed` the count it last told.
    """

    def __init__(self, log: EventLog, job: Job, directory: Path, attempt: int, now: Callable[[], int]) -> None:
        self.job_id: Final = job.id
        self.directory: Final = directory
        self.attempt: Final = attempt
        self.checkpoint: Final[Any] = None if job.checkpoint is None else msgspec.json.decode(job.checkpoint)
        self.processed: int = job.processed or 0
        self.total: int | None = job.total
        self._started = job.seq > 0
        self._log = log
        self._now = now

    async def start(self, total: int | None = None, estimated_duration: float | None = None) -> None:
        """Tell that the work begins: how many items, and how many seconds it may take. Told once a job."""
        self.total = total
        if self._started:
            return
        payload = StartedPayload(total_count=total, estimated_duration=estimated_duration)
        self._started = await self._append("job_started", payload, Change(total=total, processed=0))

    async def progress(
        self,
        done: int,
        total: int | None = None,
        item: str | None = None,
        *,
        status: str = "processing",
        checkpoint: object = UNSET,
    ) -> None:
        """Tell that `done` items are done, now at `item`, and keep `checkpoint` (any JSON value) with it.

        Never fails the job and waits for no client: where the log takes no writes, that is logged and the work goes on.
        A count below one told before is dropped, checkpoint and all.
        """
        if total is not None:
            self.total = total
        if not self._started:
            await self.start(self.total)
        if done < self.processed:
            return
        payload = ProgressPayload(
            progress=min(1.0, done / self.total) if self.total else 0.0,
            status=_cut(status),
            processed_count=done,
            current_item=None if item is None else _cut(item),
        )
        change = Change(
            total=self.total,
            processed=done,
            current_item=payload.current_item,
            checkpoint=UNSET if checkpoint is UNSET else msgspec.json.encode(checkpoint),
        )
        if await self._append("job_progress", payload, change):
            self.processed = done

    async def _append(self, event_type: str, payload: Struct, change: Change) -> bool:
        try:
            encoded = bytes(encode_payload(event_type, payload))
            event = await self._log.append(self.job_id, event_type, encoded, self._now(), change)
        except HubStorageError as error:
            logger.warning("job %s: an event was not kept: %s", self.job_id, error)
            return False
        return event is not None


def _cut(text: str) -> str:
    # Lone surrogates have no UTF-8: they come from file names and must not fail a job.
    return text[:_MAX_ITEM].encode(errors="replace").decode()


@dataclass(frozen=True)
class Ending:
    """A terminal event: its type, its payload, and the payload less its type, both as JSON."""

    type: str
    payload: bytes
    outcome: bytes

    @classmethod
    def of(cls, event_type: str, fields: Struct | Mapping[str, Any]) -> Ending:
        """Make it of the payload's fields."""
        return cls(event_type, bytes(encode_payload(event_type, fields)), msgspec.json.encode(fields))


class Runner:
    """Runs the jobs of a log, each in a task of `tasks`, with what their functions need on disk in `files`."""

    def __init__(
        self,
        log: EventLog,
        files: Path,
        functions: Mapping[str, JobFunction],
        *,
        limits: Limits,
        counters: Counters,
        base_path: str,
        now: Callable[[], int],
    ) -> None:
        self._log = log
        self._files = files
        self._functions = functions
        self._limits = limits
        self._counters = counters
        self._base_path = base_path
        self._now = now
        self._slots = anyio.Semaphore(limits.running_jobs)

    def directory(self, job_id: str) -> Path:
        """The job's own folder."""
        return self._files / job_id

    async def resume(self, tasks: TaskGroup) -> None:
        """Take up every job that a hub before this one left unfinished."""
        for job in await self._log.unfinished():
            if job.pipeline in self._functions:
                tasks.start_soon(self.run, job.id, name=f"job {job.id}")
            else:
                logger.error("job %s waits: this hub has no pipeline %r", job.id, job.pipeline)

    async def run(self, job_id: str) -> None:
        """Run a job to its end, unless it has ended; a cancelled run is taken up by the next `resume`."""
        self._counters.jobs_at_work += 1
        try:
            async with self._slots:
                await self._run(job_id)
        finally:
            self._counters.jobs_at_work -= 1

    async def _run(self, job_id: str) -> None:
        job = await self._log.job(job_id)
        if not isinstance(job, Job) or not job.running:
            return
        attempt = await self._log.count_attempt(job_id)
        logger.info("job %s (%s): run %d from event %d", job_id, job.pipeline, attempt, job.seq)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stop_when_ended, job, tasks.cancel_scope)
            context = JobContext(self._log, job, self.directory(job_id), attempt, self._now)
            await self._end(job_id, await self._work(job, context))
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(clear_job_folder, self.directory(job_id))

    async def _stop_when_ended(self, job: Job, work: anyio.CancelScope) -> None:
        # The log decides who ends a job; this makes the decision felt, wherever it was taken.
        with self._log.subscribe(job.id) as bell:
            after = job.seq
            while True:
                events = await self._log.read(job.id, after, 64)
                if any(event.terminal for event in events):
                    work.cancel()
                    return
                if events:
                    after = events[-1].seq
                else:
                    await bell.wait_ring()

    async def _work(self, job: Job, context: JobContext) -> Ending:
        """Call the job's function, and say how the job ends by it."""
        try:
            if context.attempt > self._limits.idle_attempts:
                raise JobFailure("GAVE_UP", f"the job did not get on in {self._limits.idle_attempts} runs")
            result = await self._functions[job.pipeline](context, await self._upload(job.id))
            return await self._complete(job, result)
        except JobFailure as failure:
            error = ErrorPayload(
                code=failure.code, message=failure.message, details=failure.details, retryable=failure.retryable
            )
        except Exception:
            # What went wrong inside is for the operator; a client is told no more than that it did.
            logger.exception("job %s (%s) failed", job.id, job.pipeline)
            error = ErrorPayload(code="INTERNAL", message="the job failed unexpectedly", retryable=True)
        return Ending.of("error", error)

    async def _upload(self, job_id: str) -> Upload:
        path = self.directory(job_id) / UPLOAD_FILE
        try:
            size = (await anyio.Path(path).stat()).st_size
            name = (await anyio.Path(path.with_name(UPLOAD_NAME_FILE)).read_text(encoding="utf-8")) or None
        except OSError as error:
            raise JobFailure("UPLOAD_LOST", "what the job was started with is no longer there") from error
        return Upload(path=path, size=size, name=name)

    async def _complete(self, job: Job, result: Result) -> Ending:
        head: dict[str, Any] = {"pipeline": job.pipeline}
        if isinstance(result, Path):
            if (await anyio.Path(result).stat()).st_size <= self._limits.inline_result:
                result = msgspec.json.decode(await anyio.Path(result).read_bytes(), type=dict[str, Any])
        else:
            result = {} if result is None else msgspec.to_builtins(result)
        if not isinstance(result, Path):
            ending = Ending.of("job_complete", head | result)
            if len(ending.payload) <= self._limits.inline_result:
                return ending
            result = self.directory(job.id) / "result.part"
            await anyio.Path(result).write_bytes(ending.outcome)
        await anyio.to_thread.run_sync(keep_result, result, self.directory(job.id))
        reference = ResultReference(result_url=f"{self._base_path}/api/jobs/{job.id}/results")
        return Ending.of("job_complete", head | msgspec.to_builtins(reference))

    async def _end(self, job_id: str, ending: Ending) -> None:
        delay = 0.1
        while True:
            try:
                await self.end(job_id, ending)
            except HubStorageError as error:
                self._counters.log_failures += 1
                # The end is worth waiting for: a full disk is emptied one day, and the work is done.
                logger.error("job %s: its end could not be kept, trying again: %s", job_id, error)
                await anyio.sleep(delay)
                delay = min(2 * delay, 10)
            else:
                return

    async def end(self, job_id: str, ending: Ending) -> None:
        """End the job, unless it has ended before."""
        change = Change(outcome=ending.outcome)
        event = await self._log.append(job_id, ending.type, ending.payload, self._now(), change)
        if event is not None:
            self._counters.jobs_ended[ending.type] += 1
            logger.info("job %s: %s, event %d", job_id, ending.type, event.seq)
