"""The work of a job hub: it runs jobs and keeps their events, up to the true end.

It keeps everything in one SQLite database and a folder next to it, or in Redis and a folder. A hub that is killed
continues its jobs when it starts again, in the same epoch. `web` serves it by HTTP.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

import anyio
import anyio.to_thread
from anyio import AsyncContextManagerMixin

from .._exceptions import ForbiddenRequest, HubStorageError, InvalidArgument, JobFailure
from .._secret import Secret
from .._tasks import Tasks
from ..protocols.wire.messages import CanceledPayload
from ._descriptors import room_for_sockets
from ._files import (
    UPLOAD_FILE,
    adopt_upload,
    clear_job_folder,
    count_jobs,
    empty_trash,
    job_folders,
    make_incoming_folder,
    move_to_trash,
    remove_job_folder,
)
from ._jobs import Dispatch, JobFunction, Runner
from ._keeping import DAY, Silences, check_match, look_at_clock, match_files
from ._settings import HubLimits, Lifetimes, Pipeline
from ._statistics import Counters, HubStatistics
from ._tokens import Tokens
from .log._base import ENDS, Entry, EventLog, Job, Missing, Request
from .log._drafts import Draft, ended, failed
from .log._sqlite import SqliteLog
from .web._access import Authorize, loopback_only
from .web._answers import Refusal
from .web._rates import Rate, whole_seconds
from .web._watcher import NO_LONGER_KEPT, Advice, Watcher, sweep

logger: Final = logging.getLogger("towline.server")

_DRAIN_WAIT: Final = 3.0
_DOWN_FOR: Final = 1.0  # seconds a client is asked to leave a hub that restarts alone
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")  # as browsers send it (RFC 6454 section 6.2)


@dataclass(frozen=True, kw_only=True)
class StartedJob:
    """A job that was started, and the token that opens it; `expires_in` is in seconds."""

    job_id: str
    token: Secret
    expires_in: int


def _open_log(database: Path | str, prefix: str | None, replicas: int) -> EventLog:
    if isinstance(database, str) and database.startswith(("redis://", "rediss://", "unix://")):
        from .log._redis import RedisLog  # an extra that not every hub needs

        return RedisLog(database, prefix="towline" if prefix is None else prefix, replicas=replicas)
    if prefix is not None:
        raise InvalidArgument("prefix", "is the first part of the keys in Redis: leave it out for a SQLite file")
    if replicas:
        raise InvalidArgument("replicas", "are those of a Redis: leave it out for a SQLite file")
    if isinstance(database, str) and "://" in database:
        raise InvalidArgument("database", "must be a path, or a URL that begins with redis://, rediss:// or unix://")
    return SqliteLog(Path(database))


class HubWork(AsyncContextManagerMixin):
    """What a hub does: it runs jobs, keeps their log and files, and counts its calls. `Hub` describes the options."""

    def __init__(
        self,
        database: Path | str,
        *,
        files: Path | None = None,
        prefix: str | None = None,
        replicas: int = 0,
        authorize: Authorize = loopback_only,
        limits: HubLimits | None = None,
        lifetimes: Lifetimes | None = None,
        token_in_query: bool = False,
        subprotocol: str = "towline",
        base_path: str = "",
        origins: Collection[str] = (),
        accept_rate: float = 100,
        metrics: bool = False,
    ) -> None:
        if not accept_rate > 0:
            raise InvalidArgument("accept_rate", "must be above zero")
        if base_path and (not base_path.startswith("/") or base_path.endswith("/")):
            raise InvalidArgument("base_path", "begins with a slash and ends with none")
        self.limits = limits or HubLimits()
        self.origins: frozenset[str] = frozenset()
        self.adjust(origins=origins)
        self.log: Final = _open_log(database, prefix, replicas)
        if files is None and self.log.shared:
            raise InvalidArgument("files", "hubs that share a log need a folder they share")
        self.files: Final = files or Path(f"{database}.files")
        self.authorize: Final = authorize
        self.token_in_query: Final = token_in_query
        self.subprotocol: Final = subprotocol
        self._lifetimes = lifetimes or Lifetimes()
        self.base_path: Final = base_path
        self._accept_rate = accept_rate
        self._metrics = metrics
        self._pipelines: dict[str, Pipeline] = {}
        self._is_served = False
        self._functions: dict[str, JobFunction] = {}
        self._dispatches: dict[str, Dispatch] = {}
        self._silent_for: dict[str, float] = {}
        self._silences = Silences(self._silent_for, between=self._lifetimes.lease / 2)
        self._watchers: dict[str, set[Watcher]] = {}
        self.counters: Final = Counters()
        self._starts = Rate(self.limits.starts, 60)
        self._calls = Rate(self.limits.calls, 60)
        self._reports = Rate(self.limits.reports, 60)
        self._starting: Counter[str] = Counter()
        self._tasks: Tasks | None = None
        self._identity = ""  # of the log and the files
        self._room = math.inf  # for sockets, by the limit of open files
        self._draining = False
        self.tokens: Final = Tokens(self.log, self._lifetimes, self.now)
        self._runner = Runner(
            self.log,
            self.files,
            self._functions,
            self._dispatches,
            limits=self.limits,
            counters=self.counters,
            lease=self._lifetimes.lease,
            base_path=base_path,
            now=self.now,
            check_files=self.check_files,
        )

    # --- for the application -----------------------------------------------------------------------------------

    def adjust(self, *, origins: Collection[str] = (), watchers: int | None = None) -> None:
        """Add origins of pages, or change how many followers a job may have, before the hub is served."""
        if "*" in origins:
            raise InvalidArgument("origins", "name each origin: with * any page could act for its visitor")
        for origin in origins:
            if _ORIGIN.fullmatch(origin) is None:
                raise InvalidArgument(
                    "origins", f"{origin!r} is no origin, such as https://app.example, without a path"
                )
        self.origins |= set(origins)
        if watchers is not None:
            self.limits = replace(self.limits, watchers=watchers)

    def job(
        self, name: str, *, path: str | None = None, media_types: tuple[str, ...] = ("application/octet-stream",)
    ) -> Callable[[JobFunction], JobFunction]:
        """Decorate the function of a pipeline: `async def run(context, upload)`, which returns the result.

        With `path` the pipeline is started by `POST` to it: a multipart form with a file, or a raw body of one of
        `media_types`. Without, by `start`. Raises `InvalidArgument` for a name that is taken, or once it is served.
        """

        def decorate(function: JobFunction) -> JobFunction:
            self._add_pipeline(Pipeline(name, path, media_types))
            self._functions[name] = function
            return function

        return decorate

    def dispatch(
        self,
        name: str,
        *,
        path: str | None = None,
        media_types: tuple[str, ...] = ("application/octet-stream",),
        silent_for: float | None = None,
    ) -> Callable[[Dispatch], Dispatch]:
        """Decorate a function that hands the pipeline's jobs to workers elsewhere: `async def send(job_id, upload)`.

        The workers report a job's progress and end by HTTP (`worker_token`), or with a `Reporter` if the log is in
        Redis. A job may be sent twice if the hub dies while it does so. `path` and `media_types` are as for `job`.

        With `silent_for` (seconds) a job whose worker sends neither a report nor a keep-alive for so long fails with
        the code `WORKER_LOST`. Before its first sign of life a job waits for as long as it takes.
        """
        if silent_for is not None and not silent_for > 0:
            raise InvalidArgument("silent_for", "must be above zero")

        def decorate(function: Dispatch) -> Dispatch:
            self._add_pipeline(Pipeline(name, path, media_types))
            self._dispatches[name] = function
            if silent_for is not None:
                self._silent_for[name] = silent_for
            return function

        return decorate

    async def worker_token(self, job_id: str) -> Secret:
        """Make the token with which a worker reports on a job by HTTP. It gives no access to the job's events.

        Raises `InvalidArgument` for a job that is not there, or that a function of the hub's works on.
        """
        job = await self.log.job(job_id)
        if not isinstance(job, Job) or job.pipeline not in self._dispatches:
            raise InvalidArgument("job_id", "is no job that was handed to workers")
        return await self.tokens.worker_token(job_id)

    def _add_pipeline(self, pipeline: Pipeline) -> None:
        if pipeline.name in self._pipelines:
            raise InvalidArgument("name", f"the hub has a pipeline {pipeline.name!r}: choose another name")
        if self._is_served:
            raise InvalidArgument("name", f"add the pipeline {pipeline.name!r} before the hub is served")
        self._pipelines[pipeline.name] = pipeline

    async def start(
        self, pipeline: str, upload: Path | bytes, *, owner: str = "", name: str | None = None
    ) -> StartedJob:
        """Start a job with a file (copied) or bytes; raises `InvalidArgument` for a pipeline that is not there."""
        self._running()
        incoming = await self.make_incoming()
        try:
            if isinstance(upload, Path):
                await anyio.to_thread.run_sync(shutil.copyfile, upload, incoming / UPLOAD_FILE)
            else:
                await anyio.Path(incoming / UPLOAD_FILE).write_bytes(upload)
            return await self.adopt(pipeline, incoming, name, owner, None)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(remove_job_folder, incoming)

    async def cancel(self, job_id: str, reason: str | None = None) -> Literal["accepted", "too_late", "unknown"]:
        """Ask for a job to be stopped. `too_late`: it had ended in another way; asking again gives the same answer."""
        job = await self.log.job(job_id)
        if not isinstance(job, Job):
            return "unknown"
        payload = CanceledPayload(processed_count=job.processed, reason=reason)
        if job.running:
            await self._runner.end(job_id, ended("job_canceled", payload))
            job = await self.log.job(job_id)
        return "accepted" if isinstance(job, Job) and job.status == "canceled" else "too_late"

    def statistics(self) -> HubStatistics:
        """What the hub has done so far."""
        return self.counters.snapshot()

    async def drain(self) -> None:
        """Take no more requests and send the watchers away with word when to come back: close 1012, or `retry:`.

        Call it when the server is to stop, before it cuts its connections itself.
        """
        self._draining = True
        self._last_watcher_left = anyio.Event()
        watchers = [watcher for watchers in self._watchers.values() for watcher in watchers]
        if not watchers:
            return
        logger.info("sending %d watchers away", len(watchers))
        advice = Advice(_DOWN_FOR, max(1.0, len(watchers) / self._accept_rate))
        for watcher in watchers:
            watcher.close(1012, advice)
        with anyio.move_on_after(_DRAIN_WAIT):
            await self._last_watcher_left.wait()

    # --- life --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        if self._draining:
            raise ForbiddenRequest("entering", "closed", "a hub can be entered only once; make a new one")
        await self.check_folder()
        async with self.log, Tasks() as tasks:
            self._room = room_for_sockets()
            self._identity = await match_files(self.log, self.files)
            await self._tidy_up(await look_at_clock(self.log, self.now()))
            await self._runner.resume(tasks)
            tasks.start_soon(self._keep_house, name="hub")
            tasks.start_soon(self._take_up_orphans, tasks, name="hub")
            tasks.start_soon(sweep, self._watchers, self.limits, name="hub")
            self._tasks = tasks
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self.drain()
                # Jobs stop where they are; the next hub takes them up there.
                self._tasks = None

    async def check_folder(self) -> None:
        """Raise `HubStorageError` if the folder of files exists and cannot be read, or cannot exist."""
        await anyio.to_thread.run_sync(count_jobs, self.files)

    async def _tidy_up(self, now: int) -> None:
        """Clear what a killed hub left: the folders of ended jobs. Move folders without a job to the trash.

        `now` is the time that is believed, in milliseconds since 1970.
        """
        await self.check_files()
        # While a hub works on the folder, a young one may be an upload that becomes a job just now.
        before = (now - DAY) / 1000 if self.log.shared or self._tasks is not None else math.inf
        for name in await anyio.to_thread.run_sync(lambda: job_folders(self.files, before=before)):
            job = await self.log.job(name)
            if job is Missing.UNKNOWN:
                logger.warning("%s belongs to no job and goes to the trash for a day", self.files / name)
                await anyio.to_thread.run_sync(move_to_trash, self.files, name, max(now, self.now()))
            elif job is Missing.GONE:
                await anyio.to_thread.run_sync(remove_job_folder, self.files / name)
            elif isinstance(job, Job) and not job.running:
                await anyio.to_thread.run_sync(clear_job_folder, self.files / name)
        await anyio.to_thread.run_sync(empty_trash, self.files, now - DAY)

    async def _take_up_orphans(self, tasks: Tasks) -> None:
        """Run the jobs that no hub runs, because their hub is gone or they could not be run here before.

        End those whose worker is silent.
        """
        while True:
            await anyio.sleep(self._lifetimes.lease / 2)
            with self._going_on("jobs of other hubs were not looked for"):
                try:
                    jobs = await self._runner.resume(tasks)
                except Exception:
                    self._silences.forget()
                    raise
                for job in self._silences.find(jobs, anyio.current_time()):
                    await self._end_silent(job)

    async def _end_silent(self, job: Job) -> None:
        now = await self.log.job(job.id)
        if not isinstance(now, Job) or (now.seq, now.updated) != (job.seq, job.updated):
            return  # it reported since it was looked at
        text = f"the worker was silent for {self._silent_for[job.pipeline]:g} seconds"
        logger.warning("job %s: %s", job.id, text)
        await self._runner.end(job.id, failed(JobFailure("WORKER_LOST", text, retryable=True)), job.seq + 1)

    async def _keep_house(self) -> None:
        """Remove again and again what is out of date."""
        while True:
            with self._going_on("old jobs were not removed"):
                await self._clean()
            await anyio.sleep(min(self._lifetimes.result / 4, 600))

    @contextmanager
    def _going_on(self, problem: str) -> Iterator[None]:
        """Log an error of the hub's own work, which is tried again: none ends the hub."""
        try:
            yield
        except HubStorageError as error:
            self.counters.log_failures += 1
            logger.error("%s: %s", problem, error)
        except Exception:
            logger.exception("%s", problem)

    async def _clean(self) -> None:
        now = await look_at_clock(self.log, self.now())
        before = now - round(self._lifetimes.result * 1000)
        await self.check_files()
        for job_id in await self.log.remove_ended(before):
            logger.info("job %s: no longer kept", job_id)
            await anyio.to_thread.run_sync(remove_job_folder, self.directory(job_id))
        await self.log.remove_traces(before - round(self._lifetimes.trace * 1000))
        await self._send_away_from_removed()
        if self.log.shared or self._dispatches:  # jobs that ended with workers elsewhere leave their uploads here
            await self._tidy_up(now)

    async def _send_away_from_removed(self) -> None:
        """End the watchers that were behind when their job was removed, here or by another hub: nothing comes now."""
        for job_id in tuple(self._watchers):
            if not isinstance(await self.log.job(job_id), Job):
                for watcher in self._watchers.get(job_id, ()):
                    watcher.close(1001, NO_LONGER_KEPT)

    # --- for the calls -----------------------------------------------------------------------------------------

    @staticmethod
    def now() -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def directory(self, job_id: str) -> Path:
        """The job's own folder."""
        return self._runner.directory(job_id)

    async def check_files(self) -> None:
        """Raise `HubStorageError` unless log and files are the ones the hub started with."""
        await check_match(self.log, self.files, self._identity)

    def _running(self) -> Tasks:
        if self._tasks is None:
            raise HubStorageError("the hub is not running: enter it (`async with hub:`) in your application's lifespan")
        return self._tasks

    async def make_incoming(self) -> Path:
        """Make a folder for an upload; raises `OSError` if the disk or the folder of files is not there."""
        return await anyio.to_thread.run_sync(make_incoming_folder, self.files, self._identity)

    def check_entered(self) -> None:
        """Raise the refusal of a call that comes while the hub is not entered."""
        if self._tasks is None:
            raise Refusal(
                503, "not_running", "the hub is not running: its application has not entered it", {"retry-after": "1"}
            )

    def check_open(self) -> None:
        """Raise the refusal of a call that would begin something while the hub is about to stop."""
        self.check_entered()
        if self._draining:
            raise Refusal(503, "restarting", "the hub is about to restart", {"retry-after": "1"})

    def check_calls(self, job_id: str) -> None:
        """Raise the refusal of a call about a job that is asked about too often."""
        if wait := self._calls.take(job_id, anyio.current_time()):
            raise Refusal(429, "too_many_calls", "too many calls about this job", {"retry-after": whole_seconds(wait)})

    async def report(self, job_id: str, draft: Draft, number: int) -> bool:
        """Write the event of a worker's report under its number; whether it was written."""
        if draft.type in ENDS:
            return await self._runner.end(job_id, draft, number)
        entry = Entry(draft.type, draft.payload, self.now(), draft.change, number)
        return bool(await self.log.append_all(job_id, [entry]))

    def check_reports(self, job_id: str) -> None:
        """Raise the refusal of a report on a job that gets too many."""
        if wait := self._reports.take(job_id, anyio.current_time()):
            raise Refusal(429, "too_many_reports", "too many reports", {"retry-after": whole_seconds(wait)})

    @asynccontextmanager
    async def starting(self, owner: str, key: bytes | None) -> AsyncIterator[None]:
        """Reserve one of the owner's places for a job that is being started. Raises `Refusal` if all are taken.

        A repeated request (same `key`) needs no place, because its job already has one.
        """
        if wait := self._starts.take(owner, anyio.current_time()):
            raise Refusal(429, "too_many_starts", "too many jobs started", {"retry-after": whole_seconds(wait)})
        self._starting[owner] += 1
        try:
            full = await self.log.count_running(owner) + self._starting[owner] > self.limits.jobs_of_owner
            if full and (key is None or not await self.log.requested(owner, key)):
                raise Refusal(429, "quota", "too many jobs that have not ended", {"retry-after": "30"})
            yield
        finally:
            self._starting[owner] -= 1
            if not self._starting[owner]:
                del self._starting[owner]

    def check_room(self, job_id: str) -> None:
        """Raise the refusal of a watcher there is no room for."""
        if len(self._watchers.get(job_id, ())) >= self.limits.watchers:
            raise Refusal(429, "too_many_watchers", "this job has too many watchers", {"retry-after": "10"})
        if self.counters.sockets + self.counters.streams >= min(self.limits.sockets, self._room):
            raise Refusal(503, "full", "this hub has too many watchers", {"retry-after": "10"})

    @contextmanager
    def watching(self, job_id: str, watcher: Watcher, *, stream: bool) -> Iterator[None]:
        """Keep a watcher, by a socket or an event stream, among those that `drain` sends away."""
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(watcher)
        self.counters.watch(1, stream=stream)
        try:
            yield
        finally:
            watchers.remove(watcher)
            self.counters.watch(-1, stream=stream)
            if not watchers:
                del self._watchers[job_id]
            if not self._watchers and self._draining:
                self._last_watcher_left.set()

    async def adopt(
        self,
        pipeline: str,
        incoming: Path,
        name: str | None,
        owner: str,
        request: Request | None,
        job_id: str | None = None,
    ) -> StartedJob:
        """Make a job of an upload in its own folder; the same request gives the same job.

        Without `job_id` the id is random.

        Raises `InvalidArgument`, and `RequestMismatch` where the request's key was used for something else.
        """
        if pipeline not in self._pipelines:
            raise InvalidArgument("pipeline", f"there is no {pipeline!r}")
        tasks = self._running()
        new = Job(
            id=job_id or secrets.token_hex(16),
            pipeline=pipeline,
            owner=owner,
            epoch=secrets.token_hex(8),
            created=self.now(),
        )
        # From the job's row on it has to run: a caller that goes away does not stop that.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(adopt_upload, incoming, self.files, new.id, name)
            try:
                kept = await self.log.create(new, request)
            except BaseException as error:
                # The job may be there all the same where the answer of a shared log was lost, and then it runs. If it
                # is not, its folder is one that was left behind.
                if not (self.log.shared and isinstance(error, HubStorageError)):
                    await anyio.to_thread.run_sync(remove_job_folder, self.directory(new.id))
                raise
            if kept is not new:
                await anyio.to_thread.run_sync(remove_job_folder, self.directory(new.id))
            else:
                self._runner.start(tasks, new.id)
                self.counters.jobs_started += 1
                logger.info("job %s (%s) begins", new.id, pipeline)
            grant = await self.tokens.grant(kept.id)
        return StartedJob(job_id=kept.id, token=grant.token, expires_in=grant.expires_in)
