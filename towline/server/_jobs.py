"""Running jobs: the context a job's function works with, and the runner that carries jobs over restarts.

A job's function is called again from the start after a restart of the hub; its context says how far it had come. What
it reported by then is in the log, so no progress is reported twice.

Where several hubs share a log, each job is run by the one that holds its lease; when that hub is gone, another takes
the job up.

asyncio is named for one thing: a cancellation that a job's function raises of itself, which only asyncio allows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
from msgspec import UNSET, Struct

from .._exceptions import HubStorageError, JobFailure
from .._tasks import Tasks
from ._files import UPLOAD_FILE, UPLOAD_NAME_FILE, clear_job_folder, keep_result
from ._settings import HubLimits
from ._statistics import Counters
from .log._base import Entry, EventLog, Job
from .log._bells import Bell
from .log._drafts import Draft, completed, completed_by_url, failed, progressed, result_url, started

logger: Final = logging.getLogger("towline.server")

_MOST_WAITING: Final = 256  # events of a job on their way to the log, before it waits

#: What a job's function may return: a result's fields, or the path of a JSON file in the job's folder that holds them.
Result: TypeAlias = Struct | Mapping[str, Any] | Path | None


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a job was started with: a file that is there until the job ends. `name` is the sender's word, only text."""

    path: Path
    size: int
    name: str | None = None


JobFunction: TypeAlias = Callable[["JobContext", Upload], Awaitable[Result]]

#: Sends a job (its id) to workers elsewhere, which report its progress and end with a `Reporter` or by HTTP.
Dispatch: TypeAlias = Callable[[str, Upload], Awaitable[None]]


class JobContext:
    """What a job's function reports to the hub, and what the hub lets it know.

    `directory` is the job's own folder: files in it outlive a restart and go when the job ends. `attempt` is 1 on the
    first run. `checkpoint` is the one the function last gave, `processed` the count it last reported.
    """

    def __init__(
        self, log: EventLog, job: Job, directory: Path, attempt: int, counters: Counters, now: Callable[[], int]
    ) -> None:
        self.job_id: Final = job.id
        self.directory: Final = directory
        self.attempt: Final = attempt
        self.checkpoint: Final[Any] = None if job.checkpoint is None else msgspec.json.decode(job.checkpoint)
        self.processed: int = job.processed or 0
        # What the previous run reported is not reported again, not even its last count.
        self._reported_before: Final = -1 if job.processed is None else job.processed
        self.total: int | None = job.total
        self._started = job.seq > 0
        self._log = log
        self._counters = counters
        self._now = now
        # Events on their way to the log, and how many were ever queued and written: each waits for its own.
        self._waiting: list[Entry] = []
        self._unkept_start: list[Entry] = []
        self._queued = self._written = 0
        self._failure: Exception | None = None
        self._more = Bell()
        self._over = self._closed = False  # the function has ended, and then its writer
        self._progress: anyio.Event | None = None

    async def start(self, total: int | None = None, estimated_duration: float | None = None) -> None:
        """Report that the work begins: how many items, and how many seconds it may take. Reported once per job."""
        self.total = None if total is None else index(total)
        if not self._started:
            self._started = True
            await self._report(started(self.total, estimated_duration), kept=False)

    async def progress(
        self,
        done: int,
        total: int | None = None,
        item: str | None = None,
        *,
        status: str = "processing",
        checkpoint: object = UNSET,
    ) -> None:
        """Report that `done` items are done, now at `item`, and keep `checkpoint` (any JSON value) with it.

        With a checkpoint it returns when both are on disk; without, at once, and the log writes what has gathered
        while it was busy in one transaction. It waits for no client. If the log takes no writes, that is logged and the
        work goes on; a value that no log can take fails the job when its function returns. A count below one reported
        before, in this run or an earlier one, is dropped together with its checkpoint. Raises `TypeError` for a count
        that is not whole.
        """
        done = index(done)
        if total is not None:
            self.total = index(total)
        if not self._started:
            await self.start(self.total)
        if done < self.processed or done == self._reported_before:
            return
        self.processed = done
        await self._report(progressed(done, self.total, item, status, checkpoint), kept=checkpoint is not UNSET)

    async def _report(self, draft: Draft, *, kept: bool) -> None:
        """Hand an event to the writer, and wait until it is `kept`; else only as long as too many are on their way."""
        if not self._closed:  # else it comes from a task or thread that the function has left behind
            self._waiting.append(Entry(draft.type, draft.payload, self._now(), draft.change))
            self._queued += 1
            place = self._queued if kept else self._queued - _MOST_WAITING
            self._more.ring()
            await self._wait_written(place)
        await anyio.lowlevel.checkpoint()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write what is reported within, in order; at the end all of it is in the log, or was refused by it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write)
            try:
                yield
            finally:
                self._over = True
                self._more.ring()

    async def wait_kept(self) -> None:
        """Wait until all that was reported is in the log, or was refused by it; raises what no log could take."""
        await self._wait_written(self._queued)
        if self._failure is not None:
            raise self._failure

    async def _wait_written(self, place: int) -> None:
        while self._written < place:
            self._progress = self._progress or anyio.Event()
            await self._progress.wait()

    async def _write(self) -> None:
        # It ends after the function, as one that is stopped may still report: shielded, or from a thread.
        try:
            with anyio.CancelScope(shield=True):
                while not self._over:
                    await self._more.wait_ring()
                    await self._write_waiting()
        finally:
            await self._write_waiting()
            self._closed = True

    async def _write_waiting(self) -> None:
        while self._waiting:
            queued, self._waiting = self._waiting, []
            entries = [*self._unkept_start, *queued]
            self._unkept_start = []
            # A cancelled write may have been carried out all the same, and must not be repeated. Its time is the log's.
            with anyio.CancelScope(shield=True):
                try:
                    await self._log.append_all(self.job_id, entries)
                except HubStorageError as error:
                    self._counters.log_failures += 1
                    logger.warning("job %s: %d events were not kept: %s", self.job_id, len(entries), error)
                    # It is written together with what is reported next.
                    self._unkept_start = [entry for entry in entries if entry.type == "job_started"]
                except Exception as error:  # a value that the log has no room for, say: the function's to hear
                    self._failure = error
            self._written += len(queued)
            if self._progress is not None:
                self._progress.set()
                self._progress = None


class Runner:
    """Runs the jobs of a log, each in its own task, with what their functions need on disk in `files`."""

    def __init__(
        self,
        log: EventLog,
        files: Path,
        functions: Mapping[str, JobFunction],
        dispatches: Mapping[str, Dispatch],
        *,
        limits: HubLimits,
        counters: Counters,
        lease: float,
        base_path: str,
        now: Callable[[], int],
        check_files: Callable[[], Awaitable[None]],
    ) -> None:
        self._log = log
        self._files = files
        self._functions = functions
        self._dispatches = dispatches
        self._limits = limits
        self._counters = counters
        self._lease = lease
        self._base_path = base_path
        self._now = now
        self._check_files = check_files
        self._slots = anyio.Semaphore(limits.running_jobs)
        self._here: set[str] = set()

    def directory(self, job_id: str) -> Path:
        """The job's own folder."""
        return self._files / job_id

    async def resume(self, tasks: Tasks) -> Sequence[Job]:
        """Run every unfinished job that no hub runs: those of an earlier hub, or of one that is gone.

        Gives all unfinished jobs. Those that were handed out are left to their workers.
        """
        jobs = await self._log.unfinished()
        for job in jobs:
            if job.pipeline in self._functions or (job.pipeline in self._dispatches and not _is_out(job)):
                self.start(tasks, job.id)
            elif job.pipeline not in self._dispatches:
                logger.error("job %s waits: this hub has no pipeline %r", job.id, job.pipeline)
        return jobs

    def start(self, tasks: Tasks, job_id: str) -> None:
        """Run a job in its own task, unless it has one here."""
        if job_id not in self._here:
            self._here.add(job_id)
            tasks.start_soon(self._run_in_turn, job_id, name=f"job {job_id}")

    async def _run_in_turn(self, job_id: str) -> None:
        self._counters.jobs_at_work += 1
        try:
            async with self._slots:
                if await self._log.claim(job_id, self._lease):
                    try:
                        await self._run(job_id)
                    finally:
                        await self._let_go(job_id)
        # It is unfinished, so the next `resume` runs it again.
        except HubStorageError as error:
            self._counters.log_failures += 1
            logger.error("job %s could not be run: %s", job_id, error)
        except Exception:
            logger.exception("job %s could not be run", job_id)
        finally:
            self._here.discard(job_id)
            self._counters.jobs_at_work -= 1

    async def _let_go(self, job_id: str) -> None:
        with anyio.move_on_after(1, shield=True):
            try:
                await self._log.claim(job_id, 0)
            except HubStorageError as error:
                self._counters.log_failures += 1
                logger.warning("job %s: its lease runs out by itself: %s", job_id, error)

    async def _run(self, job_id: str) -> None:
        """Run a job to its end, unless it has ended. A later `resume` runs a job again whose run was cancelled."""
        if not await anyio.Path(self.directory(job_id) / UPLOAD_FILE).is_file():
            await self._check_files()  # a disk that is not mounted is not the job's failure
        job = await self._log.job(job_id)
        if isinstance(job, Job) and job.running and job.pipeline in self._dispatches:
            # Until its first sign of life it may be handed out again: the workers then share one log, and one end.
            if not _is_out(job):
                await self._dispatch(job)
            return
        if isinstance(job, Job) and job.running:
            attempt = await self._log.count_attempt(job_id)
            logger.info("job %s (%s): run %d from event %d", job_id, job.pipeline, attempt, job.seq)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stop_when_ended, job_id, tasks.cancel_scope)
                if self._log.shared:
                    tasks.start_soon(self._stop_without_lease, job_id, tasks.cancel_scope)
                context = JobContext(self._log, job, self.directory(job_id), attempt, self._counters, self._now)
                async with context.writing():
                    draft = await self._work(job, context)
                await self._end(job_id, draft)
                tasks.cancel_scope.cancel()
            job = await self._log.job(job_id)
        if not isinstance(job, Job) or not job.running:
            await anyio.to_thread.run_sync(clear_job_folder, self.directory(job_id))

    async def _dispatch(self, job: Job) -> None:
        draft: Draft | None = None
        try:
            try:
                with _contained():
                    await self._dispatches[job.pipeline](job.id, await self._upload(job.id))
            except JobFailure as failure:
                draft = failed(failure)
        except Exception:
            await anyio.lowlevel.checkpoint_if_cancelled()  # it was stopped, which is no failure
            logger.exception("job %s (%s) could not be handed out", job.id, job.pipeline)
            draft = failed(JobFailure("NOT_DISPATCHED", "no worker could be given the job", retryable=True))
        if draft is None:
            await self._log.count_attempt(job.id)
        else:
            await self.end(job.id, draft)

    async def _stop_when_ended(self, job_id: str, work: anyio.CancelScope) -> None:
        # The log decides who ends a job; this makes the decision felt, wherever it was taken.
        with self._log.subscribe(job_id, ends_only=True) as bell:
            while True:
                try:
                    job = await self._log.job(job_id)
                except HubStorageError as error:
                    self._counters.log_failures += 1
                    logger.warning("job %s: whether it has ended is not known: %s", job_id, error)
                    await anyio.sleep(1)
                    continue
                if not isinstance(job, Job) or not job.running:
                    work.cancel()
                    return
                await bell.wait_ring()

    async def _stop_without_lease(self, job_id: str, work: anyio.CancelScope) -> None:
        kept_until = anyio.current_time() + self._lease
        while True:
            await anyio.sleep(self._lease / 3)
            asked = anyio.current_time()
            try:
                kept = await self._log.claim(job_id, self._lease)
            except HubStorageError:
                self._counters.log_failures += 1
                kept = asked < kept_until
            else:
                kept_until = asked + self._lease
            if not kept:
                logger.warning("job %s: another hub runs it now", job_id)
                work.cancel()
                return

    async def _work(self, job: Job, context: JobContext) -> Draft:
        """Call the job's function, and say how the job ends by it."""
        try:
            try:
                if context.attempt > self._limits.idle_attempts:
                    raise JobFailure("GAVE_UP", f"the job did not get on in {self._limits.idle_attempts} runs")
                with _contained():
                    result = await self._functions[job.pipeline](context, await self._upload(job.id))
                await context.wait_kept()
                return await self._complete(job, result)
            except JobFailure as failure:
                return failed(failure)  # raises for details that are no JSON
        except Exception:
            await anyio.lowlevel.checkpoint_if_cancelled()  # it was stopped, which is no failure
            # The reason is for the operator; clients only learn that it failed.
            logger.exception("job %s (%s) failed", job.id, job.pipeline)
            return failed(JobFailure("INTERNAL", "the job failed unexpectedly", retryable=True))

    async def _upload(self, job_id: str) -> Upload:
        path = self.directory(job_id) / UPLOAD_FILE
        try:
            size = (await anyio.Path(path).stat()).st_size
            name = (await anyio.Path(path.with_name(UPLOAD_NAME_FILE)).read_text(encoding="utf-8")) or None
        except OSError as error:
            raise JobFailure("UPLOAD_LOST", "what the job was started with is no longer there") from error
        return Upload(path=path, size=size, name=name)

    async def _complete(self, job: Job, result: Result) -> Draft:
        if isinstance(result, Path) and (await anyio.Path(result).stat()).st_size <= self._limits.inline_result:
            result = msgspec.json.decode(await anyio.Path(result).read_bytes(), type=dict[str, Any])
        if not isinstance(result, Path):
            fields = {} if result is None else msgspec.to_builtins(result)
            if not isinstance(fields, dict):
                kind = type(result).__name__
                raise TypeError(f"the job's function gave a {kind}: return a mapping, a msgspec struct or a path")
            draft = completed(job.pipeline, fields)
            # In a message, `resultUrl` says where the result is; a result that has such a field itself is read there.
            if len(draft.payload) <= self._limits.inline_result and "resultUrl" not in fields:
                return draft
            result = self.directory(job.id) / "result.part"
            await anyio.Path(result).write_bytes(msgspec.json.encode({"pipeline": job.pipeline, **fields}))
        await anyio.to_thread.run_sync(keep_result, result, self.directory(job.id))
        return completed_by_url(job.pipeline, result_url(self._base_path, job.id))

    async def _end(self, job_id: str, draft: Draft) -> None:
        delay = 0.1
        while True:
            try:
                await self.end(job_id, draft)
            except HubStorageError as error:
                # The end is worth waiting for: a full disk is emptied one day, and the work is done.
                self._counters.log_failures += 1
                logger.error("job %s: its end could not be kept, trying again: %s", job_id, error)
                await anyio.sleep(delay)
                delay = min(2 * delay, 10)
            else:
                return

    async def end(self, job_id: str, draft: Draft, number: int | None = None) -> bool:
        """End the job, unless it has ended before, or its end would have another number. Whether it ended by this."""
        entry = Entry(draft.type, draft.payload, self._now(), draft.change, number)
        if not await self._log.append_all(job_id, [entry]):
            return False
        self._counters.jobs_ended[draft.type] += 1
        logger.info("job %s: %s", job_id, draft.type)
        return True


def _is_out(job: Job) -> bool:
    """Whether the job was handed out, or a worker has shown itself."""
    return bool(job.seq or job.attempts or job.updated)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _contained() -> Iterator[None]:
    """Turn everything that would stop more than the function into an error: an exit, a cancellation that it raises.

    A `JobFailure` out of the function's own task groups is raised as it is; of several, the first. A cancellation of
    this task and a `KeyboardInterrupt` pass.
    """
    try:
        yield
    except ExceptionGroup as group:
        if group.split(JobFailure)[1] is not None:  # it holds other errors, too
            raise
        raise _first(group) from group
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if _part(error, KeyboardInterrupt) is not None:
            raise
        cancelled = anyio.get_cancelled_exc_class()
        stopped = _part(error, cancelled)
        if stopped is None or not _is_cancelled():
            raise RuntimeError(f"the function raised {error!r}, which would stop more than its job") from error
        if stopped is error:
            raise
        raise (asyncio.CancelledError() if cancelled is asyncio.CancelledError else stopped) from error


def _part(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Give what is of this kind in an error, which may be a group."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kind)
    return error if isinstance(error, kind) else None


def _is_cancelled() -> bool:
    """Whether this task is to stop. Only asyncio lets a function raise a cancellation itself."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return True
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
