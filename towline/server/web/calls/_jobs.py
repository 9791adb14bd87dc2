"""The calls of one job: start, state, result, cancel, a worker's reports, a new token."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from msgspec import UNSET, Raw
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from ...._secret import Secret
from ....protocols.wire.messages import VERSION, JobState
from ..._files import RESULT_FILE, UPLOAD_FILE, remove_job_folder
from ..._tokens import TooEarly
from ...log._base import ENDS, RequestMismatch
from ...log._base import Request as StartRequest
from ...log._drafts import refers_to_result
from .._access import bearer_token
from .._answers import BodyRefusal, Refusal, json_answer
from .._openapi import CancelAnswer, CancelRequest, RefreshAnswer, RefreshRequest, StartAnswer
from .._uploads import Malformed, Received, TooLarge, WrongMediaType, receive_upload
from ..reports._reading import check_repeated, draft_of, ended, read_report
from ..reports._types import KeepAliveReport, ReportAnswer
from ._shared import NO_TOKEN, RETRY_SOON, Calls, Handler, decode, retry, small_body

if TYPE_CHECKING:
    from ..._hub import StartedJob
    from ..._settings import Pipeline

logger: Final = logging.getLogger("towline.server")

_MAX_KEY: Final = 255


class JobCalls(Calls):
    """Each but the start needs a token of the job."""

    async def state(self, request: Request) -> Response:
        """`GET /api/job-state/{jobId}`: the state, and the `seq` of the last event it holds."""
        job = await self.job(request.path_params["job_id"], bearer_token(request))
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
        owner = await self.authorized(request) if token is None else None
        job = await (self.job(request.path_params["job_id"], token) if owner is None else self.own_job(request, owner))
        if job.running:
            raise Refusal(409, "still_running", "the job has not ended", {"retry-after": str(RETRY_SOON)})
        if job.status != "complete" or job.outcome is None:
            raise Refusal(404, "no_result", "the job ended without a result")
        path = self.hub.directory(job.id) / RESULT_FILE
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
        job = await self.job(request.path_params["job_id"], bearer_token(request))
        body = await small_body(request)
        reason = decode(body, CancelRequest).reason if body else None
        return json_answer(CancelAnswer(job.id, await self.hub.cancel(job.id, reason)))

    async def report(self, request: Request) -> Response:
        """`POST /api/jobs/{jobId}/events`: one report of a worker elsewhere, which becomes the event of its number."""
        hub = self.hub
        hub.check_open()
        job_id, token = request.path_params["job_id"], bearer_token(request)
        if token is None or not await hub.tokens.admits_worker(job_id, token):
            raise Refusal(*NO_TOKEN)
        hub.check_reports(job_id)
        job = await self.known_job(job_id)
        report = read_report(await small_body(request, hub.limits.report))
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
        job = await self.known_job(job.id)
        await check_repeated(hub.log, job, report.number, draft)
        return json_answer(ReportAnswer(job.id, job.seq, job.status, job.processed or 0))

    async def refresh(self, request: Request) -> Response:
        """`POST /api/token/refresh`: a new token for an old one."""
        asked = decode(await small_body(request), RefreshRequest)
        self.hub.check_calls(asked.job_id)
        grant = await self.hub.tokens.refresh(asked.job_id, Secret(asked.old_token))
        if grant is None:
            raise Refusal(*NO_TOKEN)
        if isinstance(grant, TooEarly):
            raise Refusal(425, "too_early", "the token has time left", {"retry-after": str(grant.retry_after)})
        return json_answer(RefreshAnswer(asked.job_id, grant.token.reveal(), grant.expires_in))

    def starter(self, pipeline: Pipeline) -> Handler:
        async def start(request: Request) -> Response:
            """The pipeline's own call: 202, and the new job with its token."""
            self.hub.check_open()
            owner = await self.authorized(request)
            if owner is None:
                raise Refusal(403, "forbidden", "your account may not start jobs on this hub")
            said = request.headers.get("idempotency-key")
            if said is not None and not 0 < len(said) <= _MAX_KEY:
                raise Refusal(400, "bad_request", f"an Idempotency-Key has 1 to {_MAX_KEY} characters")
            key = None if said is None else hashlib.sha256(said.encode()).digest()
            async with self.hub.starting(owner, key):
                started = await self._take(request, pipeline, owner, key)
            token = started.token.reveal()
            return json_answer(StartAnswer(started.job_id, token, started.expires_in, pipeline.name), 202)

        return start

    async def _take(self, request: Request, pipeline: Pipeline, owner: str, key: bytes | None) -> StartedJob:
        try:
            incoming = await self.hub.make_incoming()
            try:
                received = await self._receive(request, incoming / UPLOAD_FILE, pipeline)
                digest = hashlib.sha256(pipeline.name.encode() + b"\0" + received.digest).digest()
                asked = None if key is None else StartRequest(key=key, digest=digest)
                return await self.hub.adopt(pipeline.name, incoming, received.name, owner, asked)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(remove_job_folder, incoming)
        except RequestMismatch as error:
            raise Refusal(422, "key_reused", "this Idempotency-Key came with another upload before") from error
        except OSError as error:
            logger.error("an upload could not be kept: %s", error)
            raise Refusal(507, "no_space", "the upload could not be kept", retry(60)) from error

    async def _receive(self, request: Request, path: Path, pipeline: Pipeline) -> Received:
        limit = self.hub.limits.upload
        try:
            return await receive_upload(request, path, limit=limit, media_types=pipeline.media_types)
        except TooLarge as error:
            raise BodyRefusal(f"an upload may have {limit} bytes") from error
        except Malformed as error:
            raise Refusal(400, "bad_form", "the form is broken, or has no file in it") from error
        except WrongMediaType as error:
            types = ", ".join(pipeline.media_types)
            raise Refusal(415, "wrong_media_type", f"send a form with a file, or one of: {types}") from error
