"""The hub's HTTP calls, and the door to its watchers: what a request may do is decided here, and answered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import UNSET, Raw
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..._exceptions import HubStorageError
from ..._secret import Secret
from ...protocols.wire.messages import VERSION, JobState
from .._files import RESULT_FILE, UPLOAD_FILE, remove_job_folder
from .._tokens import TooEarly
from ..log._base import ENDS, Job, Missing, Place, RequestMismatch
from ..log._base import Request as StartRequest
from ..log._drafts import refers_to_result
from ._access import bearer_token, is_same_origin, query_token, socket_token
from ._answers import Refusal, json_answer
from ._event_stream import EventStream, StreamWatcher, read_id
from ._openapi import (
    CancelAnswer,
    CancelRequest,
    JobsAnswer,
    ListedJob,
    RefreshAnswer,
    RefreshRequest,
    StartAnswer,
    document,
)
from ._page import STATIC_FILES, page_file
from ._socket import SocketWatcher
from ._uploads import Malformed, Received, TooLarge, WrongMediaType, announced_size, receive_upload
from .reports._reading import check_repeated, draft_of, ended, read_report
from .reports._types import KeepAliveReport, ReportAnswer

if TYPE_CHECKING:
    from .._hub import HubWork, StartedJob
    from .._settings import Pipeline

logger: Final = logging.getLogger("towline.server")

T = TypeVar("T")
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

_MAX_BODY: Final = 16 * 1024
_MAX_KEY: Final = 255
_MOST_JOBS: Final = 200  # in one answer
_USUAL: Final = frozenset({401, 404, 409, 410, 425, 426})  # refusals that clients of a healthy hub meet
_VIEW: Final = 60  # seconds a page's token is good for
_RETRY_SOON: Final = 5  # seconds


_NO_TOKEN: Final = ("unauthorized", "a valid token of this job is needed")
_CHALLENGE: Final = {"www-authenticate": "Bearer"}


class Api:
    """The routes of one hub."""

    def __init__(self, hub: HubWork, *, metrics: bool) -> None:
        self._hub = hub
        self._metrics_text: Callable[[], bytes] | None = None
        if metrics:
            from ._metrics import metrics_text  # an extra that not every hub needs

            self._metrics_text = metrics_text(hub.statistics)

    def routes(self, pipelines: Mapping[str, Pipeline]) -> list[BaseRoute]:
        """All routes, one of them for each pipeline that can be started by HTTP."""
        return [
            WebSocketRoute("/ws/progress", self.progress),
            Route("/ws/progress", self._answering(self.no_upgrade), methods=["GET"]),
            Route("/openapi.json", self._answering(self._describe(pipelines)), methods=["GET"]),
            Route("/", self._answering(self.page), methods=["GET"]),
            *(Route(f"/{name}", self._answering(_file(name)), methods=["GET"]) for name in STATIC_FILES),
            Route("/api/jobs", self._answering(self.jobs), methods=["GET"]),
            Route("/api/jobs/{job_id}/token", self._answering(self.view), methods=["POST"]),
            Route("/healthz", self._answering(self.health), methods=["GET"]),
            *([Route("/metrics", self._answering(self.metrics), methods=["GET"])] if self._metrics_text else []),
            Route("/api/job-state/{job_id}", self._answering(self.state), methods=["GET"]),
            Route("/api/jobs/{job_id}/events", self._answering(self.events), methods=["GET"]),
            Route("/api/jobs/{job_id}/events", self._answering(self.report), methods=["POST"]),
            Route("/api/jobs/{job_id}/results", self._answering(self.results), methods=["GET"]),
            Route("/api/jobs/{job_id}/cancel", self._answering(self.cancel), methods=["POST"]),
            Route("/api/token/refresh", self._answering(self.refresh), methods=["POST"]),
            *(
                Route(pipeline.path, self._answering(self._starter(pipeline)), methods=["POST"])
                for pipeline in pipelines.values()
                if pipeline.path is not None
            ),
        ]

    # --- watchers ----------------------------------------------------------------------------------------------

    async def progress(self, websocket: WebSocket) -> None:
        """`GET /ws/progress?jobId=`: the job's events, from the client's cursor on."""
        await websocket.receive()
        try:
            job, subprotocol = await self._admit(websocket)
        except Refusal as refusal:
            await self._deny(websocket, refusal)
        except HubStorageError as error:
            self._hub.counters.log_failures += 1
            await self._deny(websocket, _storage_refusal(error))
        else:
            hub = self._hub
            watcher = SocketWatcher(websocket, job, hub.log, hub.limits, hub.counters, hub.now)
            with hub.watching(job.id, watcher, stream=False):
                await watcher.run(subprotocol)

    async def _admit(self, websocket: WebSocket) -> tuple[Job, str | None]:
        self._hub.check_open()
        self._check_origin(websocket)
        job_id = websocket.query_params.get("jobId")
        if not job_id:
            raise Refusal(400, "bad_request", "the query names no jobId")
        token, subprotocol = socket_token(
            websocket, subprotocol=self._hub.subprotocol, in_query=self._hub.token_in_query
        )
        return await self._watched(job_id, token), subprotocol

    async def events(self, request: Request) -> Response:
        """`GET /api/jobs/{jobId}/events`: the job's events as Server-Sent Events, from the client's place on."""
        hub = self._hub
        hub.check_open()
        self._check_origin(request)
        token = bearer_token(request) or (query_token(request) if hub.token_in_query else None)
        job = await self._watched(request.path_params["job_id"], token)
        # A page that reconnects sends the header by itself, with a later place than that of its URL.
        ready = read_id(request.headers.get("last-event-id") or request.query_params.get("lastEventId"))
        if not job.running and (ready.epoch, ready.seq) == (job.epoch, job.seq):
            # Nothing is left, and this status alone keeps an EventSource from reconnecting.
            return Response(status_code=204, headers={"cache-control": "no-store"})
        watcher = StreamWatcher(ready, job, hub.log, hub.limits, hub.counters, hub.now)
        return EventStream(watcher, lambda: hub.watching(job.id, watcher, stream=True))

    async def _watched(self, job_id: str, token: Secret | None) -> Job:
        """Find the job for one more watcher. Its caller awaits nothing before the watcher is among the hub's."""
        job = await self._job(job_id, token)
        self._hub.check_open()  # it may be stopping by now, and have sent its watchers away
        self._hub.check_room(job_id)
        return job

    def _check_origin(self, connection: HTTPConnection) -> None:
        if not is_same_origin(connection) and connection.headers["origin"] not in self._hub.origins:
            raise Refusal(403, "foreign_origin", "pages of this origin may not use this hub: add it to origins=")

    async def _authorized(self, request: Request) -> str | None:
        """In whose name the request is made. A browser may send a cookie for any page, so the origin is checked."""
        self._check_origin(request)
        return await self._hub.authorize(request)

    def _count(self, refusal: Refusal, connection: HTTPConnection) -> None:
        """Count a refusal, and log it with its reason."""
        self._hub.counters.refusals[refusal.status] += 1
        headers = connection.headers
        logger.log(
            logging.INFO if refusal.status in _USUAL else logging.WARNING,
            "refused %r: %d %s: %s (Host %r, Origin %r)",
            connection.scope["path"],
            refusal.status,
            refusal.code,
            refusal.message,
            headers.get("host"),
            headers.get("origin"),
        )

    async def _deny(self, websocket: WebSocket, refusal: Refusal) -> None:
        self._count(refusal, websocket)
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(refusal.response())
        else:  # this server can only say 403
            await websocket.close()

    async def no_upgrade(self, request: Request) -> Response:
        """A plain GET where an upgrade is wanted (RFC 9110 section 15.5.22)."""
        raise Refusal(426, "upgrade_required", "this is a WebSocket", {"upgrade": "websocket", "connection": "upgrade"})

    # --- jobs --------------------------------------------------------------------------------------------------

    async def state(self, request: Request) -> Response:
        """`GET /api/job-state/{jobId}`: the state, and the `seq` of the last event it holds."""
        job = await self._job(request.path_params["job_id"], bearer_token(request))
        outcome = UNSET if job.outcome is None else Raw(job.outcome)
        state = JobState(
            status=job.status,
            pipeline=job.pipeline,
            total_count=job.total,
            processed_count=job.processed or 0,
            start_time=job.created,
            version=VERSION,
            current_item=job.current_item,
            last_update=job.updated,
            end_time=job.ended,
            results=outcome if job.status == "complete" else UNSET,
            error=outcome if job.status == "failed" else UNSET,
            seq=job.seq,
            epoch=job.epoch,
        )
        return json_answer(state)

    async def results(self, request: Request) -> Response:
        """`GET /api/jobs/{jobId}/results`: the whole result, however large.

        A link on the owner's page brings no token, so the job's owner may read it too.
        """
        token = bearer_token(request)
        owner = await self._authorized(request) if token is None else None
        job = await (
            self._job(request.path_params["job_id"], token) if owner is None else self._own_job(request, owner)
        )
        if job.running:
            raise Refusal(409, "still_running", "the job has not ended", {"retry-after": str(_RETRY_SOON)})
        if job.status != "complete" or job.outcome is None:
            raise Refusal(404, "no_result", "the job ended without a result")
        path = self._hub.directory(job.id) / RESULT_FILE
        if not await anyio.Path(path).is_file():
            if refers_to_result(job):
                logger.error("job %s: its result is not in %s", job.id, path)
                raise Refusal(404, "result_lost", "the job's result is no longer there")
            return json_answer(Raw(job.outcome))
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return FileResponse(path, media_type="application/json", headers=headers)

    async def cancel(self, request: Request) -> Response:
        """`POST /api/jobs/{jobId}/cancel`: end the job as canceled, if nothing else has ended it before.

        Idempotent by nature: a job that was canceled answers `accepted` however often it is asked.
        """
        job = await self._job(request.path_params["job_id"], bearer_token(request))
        body = await _small_body(request)
        reason = _decode(body, CancelRequest).reason if body else None
        return json_answer(CancelAnswer(job.id, await self._hub.cancel(job.id, reason)))

    async def report(self, request: Request) -> Response:
        """`POST /api/jobs/{jobId}/events`: one report of a worker elsewhere, which becomes the event of its number."""
        hub = self._hub
        hub.check_open()
        job = await self._find_job(request.path_params["job_id"], bearer_token(request), worker=True)
        hub.check_reports(job.id)
        report = read_report(await _small_body(request, hub.limits.report))
        if isinstance(report, KeepAliveReport):
            if not job.running:
                raise ended(job)
            await hub.log.touch(job.id, hub.now())
            checkpoint = UNSET if job.checkpoint is None else Raw(job.checkpoint)
            return json_answer(ReportAnswer(job.id, job.seq, job.status, job.processed or 0, checkpoint))
        draft = draft_of(report, job, base_path=hub.base_path, inline=hub.limits.inline_result)
        if await hub.report(job.id, draft, report.number):
            status = ENDS.get(draft.type, job.status)
            done = job.processed if draft.change.processed is UNSET else draft.change.processed
            return json_answer(ReportAnswer(job.id, report.number, status, done or 0))
        job = await self._known_job(job.id)
        await check_repeated(hub.log, job, report.number, draft)
        return json_answer(ReportAnswer(job.id, job.seq, job.status, job.processed or 0))

    async def refresh(self, request: Request) -> Response:
        """`POST /api/token/refresh`: a new token for an old one."""
        asked = _decode(await _small_body(request), RefreshRequest)
        self._hub.check_calls(asked.job_id)
        grant = await self._hub.tokens.refresh(asked.job_id, Secret(asked.old_token))
        if grant is None:
            raise Refusal(401, *_NO_TOKEN, _CHALLENGE)
        if isinstance(grant, TooEarly):
            raise Refusal(425, "too_early", "the token has time left", {"retry-after": str(grant.retry_after)})
        return json_answer(RefreshAnswer(asked.job_id, grant.token.reveal(), grant.expires_in))

    def _starter(self, pipeline: Pipeline) -> Handler:
        async def start(request: Request) -> Response:
            """The pipeline's own call: 202, and the new job with its token."""
            self._hub.check_open()
            owner = await self._authorized(request)
            if owner is None:
                raise Refusal(403, "forbidden", "your account may not start jobs on this hub")
            said = request.headers.get("idempotency-key")
            if said is not None and not 0 < len(said) <= _MAX_KEY:
                raise Refusal(400, "bad_request", f"an Idempotency-Key has 1 to {_MAX_KEY} characters")
            key = None if said is None else hashlib.sha256(said.encode()).digest()
            async with self._hub.starting(owner, key):
                started = await self._take(request, pipeline, owner, key)
            token = started.token.reveal()
            return json_answer(StartAnswer(started.job_id, token, started.expires_in, pipeline.name), 202)

        return start

    async def _take(self, request: Request, pipeline: Pipeline, owner: str, key: bytes | None) -> StartedJob:
        try:
            incoming = await self._hub.make_incoming()
            try:
                received = await self._receive(request, incoming / UPLOAD_FILE, pipeline)
                digest = hashlib.sha256(pipeline.name.encode() + b"\0" + received.digest).digest()
                asked = None if key is None else StartRequest(key=key, digest=digest)
                return await self._hub.adopt(pipeline.name, incoming, received.name, owner, asked)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(remove_job_folder, incoming)
        except RequestMismatch as error:
            raise Refusal(422, "key_reused", "this Idempotency-Key came with another upload before") from error
        except OSError as error:
            logger.error("an upload could not be kept: %s", error)
            raise Refusal(507, "no_space", "the upload could not be kept", _retry(60)) from error

    async def _receive(self, request: Request, path: Path, pipeline: Pipeline) -> Received:
        limit = self._hub.limits.upload
        try:
            return await receive_upload(request, path, limit=limit, media_types=pipeline.media_types)
        except TooLarge as error:
            # What is still on its way is not waited for.
            close = {"connection": "close"}
            raise Refusal(413, "too_large", f"an upload may have {limit} bytes", close) from error
        except Malformed as error:
            raise Refusal(400, "bad_form", "the form is broken, or has no file in it") from error
        except WrongMediaType as error:
            types = ", ".join(pipeline.media_types)
            raise Refusal(415, "wrong_media_type", f"send a form with a file, or one of: {types}") from error

    # --- the page ----------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """`GET /`: the page that shows the jobs of who may start them."""
        await self._owner(request)
        return page_file("page.html")

    async def jobs(self, request: Request) -> Response:
        """`GET /api/jobs`: the newest jobs of who asks, or with `before` those that follow in the list."""
        owner = await self._owner(request)
        jobs = await self._hub.log.newest(owner, _MOST_JOBS, _place(request.query_params.get("before")))
        following = f"{jobs[-1].created}.{jobs[-1].id}" if len(jobs) == _MOST_JOBS else None
        return json_answer(JobsAnswer([_listed(job) for job in jobs], following))

    async def view(self, request: Request) -> Response:
        """`POST /api/jobs/{jobId}/token`: a token for its owner's page, good for one upgrade and little more."""
        job = await self._own_job(request, await self._owner(request))
        grant = await self._hub.tokens.grant(job.id, seconds=_VIEW)
        return json_answer(RefreshAnswer(job.id, grant.token.reveal(), grant.expires_in))

    async def _own_job(self, request: Request, owner: str) -> Job:
        job_id = request.path_params["job_id"]
        self._hub.check_calls(job_id)
        job = await self._hub.log.job(job_id)
        if not isinstance(job, Job) or job.owner != owner:
            raise Refusal(404, "unknown_job", "you have no such job")
        return job

    async def _owner(self, request: Request) -> str:
        owner = await self._authorized(request)
        if owner is None:
            raise Refusal(403, "forbidden", "you may not see jobs here")
        return owner

    # --- operations --------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """`GET /healthz`: 200 while the hub takes work, and its log takes writes and delivers them.

        It is for load balancers and anyone may ask, so the reason of a failure is in the hub's log only.
        """
        self._hub.check_open()
        await self._hub.log.check()
        await self._hub.check_files()
        return json_answer({"status": "ok"})

    def _describe(self, pipelines: Mapping[str, Pipeline]) -> Handler:
        described = json_answer(document(pipelines.values(), base_path=self._hub.base_path)).body

        async def describe(request: Request) -> Response:
            """`GET /openapi.json`: the hub's HTTP side, for programs."""
            return Response(described, media_type="application/json")

        return describe

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`, for who may start jobs."""
        if self._metrics_text is None or await self._authorized(request) is None:
            raise Refusal(403, "forbidden", "you may not read the numbers")
        return Response(self._metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # --- what all calls share ----------------------------------------------------------------------------------

    async def _job(self, job_id: str, token: Secret | None) -> Job:
        """Find the job for a caller with its token, who does not call too often."""
        if token is not None:
            self._hub.check_calls(job_id)
        return await self._find_job(job_id, token)

    async def _find_job(self, job_id: str, token: Secret | None, *, worker: bool = False) -> Job:
        """Find the job for a caller with a token. Without a token not even the job's absence is said."""
        if token is None:
            raise Refusal(401, *_NO_TOKEN, _CHALLENGE)
        job = await self._known_job(job_id)
        tokens = self._hub.tokens
        if not await (tokens.admits_worker if worker else tokens.admits)(job, token):
            raise Refusal(401, *_NO_TOKEN, _CHALLENGE)
        return job

    async def _known_job(self, job_id: str) -> Job:
        job = await self._hub.log.job(job_id)
        if job is Missing.GONE:
            raise Refusal(410, "gone", "the job ended long ago and is no longer kept")
        if job is Missing.UNKNOWN:
            raise Refusal(404, "unknown_job", "there is no such job")
        return job

    def _answering(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                self._hub.check_entered()
                return await handler(request)
            except Refusal as refusal:
                self._count(refusal, request)
                return refusal.response()
            except HubStorageError as error:
                self._hub.counters.log_failures += 1
                self._hub.counters.refusals[503] += 1
                return _storage_refusal(error).response()
            except ClientDisconnect:
                return Response(status_code=400)  # the caller has gone

        return answer


def _file(name: str) -> Handler:
    async def file(request: Request) -> Response:
        return page_file(name)

    return file


def _place(text: str | None) -> Place | None:
    if text is None:
        return None
    created, _, job_id = text.partition(".")
    if not (created.isascii() and created.isdigit() and len(created) < 19):  # the log's integers have 64 bits
        raise Refusal(400, "bad_request", "before takes the `next` of an answer of this call")
    return Place(int(created), job_id)


class _Why(msgspec.Struct):
    message: str | None = None  # of a failure
    reason: str | None = None  # of a cancel


def _listed(job: Job) -> ListedJob:
    why = _Why() if job.outcome is None else msgspec.json.decode(job.outcome, type=_Why)
    return ListedJob(
        job_id=job.id,
        pipeline=job.pipeline,
        status=job.status,
        start_time=job.created,
        last_update=job.updated,
        end_time=job.ended,
        total_count=job.total,
        processed_count=job.processed or 0,
        current_item=job.current_item,
        message=why.message or why.reason,
    )


def _storage_refusal(error: HubStorageError) -> Refusal:
    logger.error("the log failed: %s", error)
    return Refusal(
        503,
        "storage",
        "the hub's log does not work now, its operator finds the reason in the hub's output",
        _retry(_RETRY_SOON),
    )


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, round(seconds)))}


async def _small_body(request: Request, limit: int = _MAX_BODY) -> bytes:
    too_large = Refusal(413, "too_large", f"the body may have {limit} bytes", {"connection": "close"})
    if announced_size(request) > limit:
        raise too_large
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                raise too_large
    return bytes(body)


def _decode(body: bytes, type: type[T]) -> T:  # noqa: A002
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(400, "bad_request", "the body is not the JSON this call takes") from error
