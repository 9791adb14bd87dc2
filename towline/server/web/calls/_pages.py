"""What people and their tools look at: the page with its list of jobs, health, numbers, the description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...log._base import Job, Place
from .._answers import Refusal, json_answer
from .._openapi import JobsAnswer, ListedJob, RefreshAnswer, document
from .._page import page_file
from ._shared import Calls, Handler

if TYPE_CHECKING:
    from ..._hub import HubWork
    from ..._settings import Pipeline

_MOST_JOBS: Final = 200  # in one answer
_VIEW: Final = 60  # seconds a page's token is good for


class PageCalls(Calls):
    """Most are for who may start jobs."""

    def __init__(self, hub: HubWork, *, metrics: bool) -> None:
        super().__init__(hub)
        self.metrics_text: Callable[[], bytes] | None = None
        if metrics:
            from .._metrics import metrics_text  # an extra that not every hub needs

            self.metrics_text = metrics_text(hub.statistics)

    async def page(self, request: Request) -> Response:
        """`GET /`: the page that shows the jobs of who may start them."""
        await self._owner(request)
        return page_file("page.html")

    async def jobs(self, request: Request) -> Response:
        """`GET /api/jobs`: the newest jobs of who asks, or with `before` those that follow in the list."""
        owner = await self._owner(request)
        jobs = await self.hub.log.newest(owner, _MOST_JOBS, _place(request.query_params.get("before")))
        following = f"{jobs[-1].created}.{jobs[-1].id}" if len(jobs) == _MOST_JOBS else None
        return json_answer(JobsAnswer([_listed(job) for job in jobs], following))

    async def view(self, request: Request) -> Response:
        """`POST /api/jobs/{jobId}/token`: a token for its owner's page, good for one upgrade and little more."""
        job = await self.own_job(request, await self._owner(request))
        grant = await self.hub.tokens.grant(job.id, seconds=_VIEW)
        return json_answer(RefreshAnswer(job.id, grant.token.reveal(), grant.expires_in))

    async def _owner(self, request: Request) -> str:
        owner = await self.authorized(request)
        if owner is None:
            raise Refusal(403, "forbidden", "you may not see jobs here")
        return owner

    async def health(self, request: Request) -> Response:
        """`GET /healthz`: 200 while the hub takes work, and its log takes writes and delivers them.

        It is for load balancers and anyone may ask, so the reason of a failure is in the hub's log only.
        """
        self.hub.check_open()
        await self.hub.log.check()
        await self.hub.check_files()
        return json_answer({"status": "ok"})

    def describe_all(self, pipelines: Mapping[str, Pipeline]) -> Handler:
        described = json_answer(document(pipelines.values(), base_path=self.hub.base_path)).body

        async def describe(request: Request) -> Response:
            """`GET /openapi.json`: the hub's HTTP side, for programs."""
            return Response(described, media_type="application/json")

        return describe

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`, for who may start jobs."""
        if self.metrics_text is None or await self.authorized(request) is None:
            raise Refusal(403, "forbidden", "you may not read the numbers")
        return Response(self.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def static(name: str) -> Handler:
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
