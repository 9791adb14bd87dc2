"""Which path leads to which call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute, Route, WebSocketRoute

from .._page import STATIC_FILES
from ._jobs import JobCalls
from ._pages import PageCalls, static
from ._watching import WatchCalls

if TYPE_CHECKING:
    from ..._hub import HubWork
    from ..._settings import Pipeline


def routes(hub: HubWork, pipelines: Mapping[str, Pipeline], *, metrics: bool) -> list[BaseRoute]:
    """All routes of a hub, one of them for each pipeline that can be started by HTTP."""
    watch, jobs, pages = WatchCalls(hub), JobCalls(hub), PageCalls(hub, metrics=metrics)
    return [
        WebSocketRoute("/ws/progress", watch),
        Route("/ws/progress", watch.answering(watch.no_upgrade), methods=["GET"]),
        Route("/openapi.json", pages.answering(pages.describe_all(pipelines)), methods=["GET"]),
        Route("/", pages.answering(pages.page), methods=["GET"]),
        *(Route(f"/{name}", pages.answering(static(name)), methods=["GET"]) for name in STATIC_FILES),
        Route("/api/jobs", pages.answering(pages.jobs), methods=["GET"]),
        Route("/api/jobs/{job_id}/token", pages.answering(pages.view), methods=["POST"]),
        Route("/healthz", pages.answering(pages.health), methods=["GET"]),
        *([Route("/metrics", pages.answering(pages.metrics), methods=["GET"])] if pages.metrics_text else []),
        Route("/api/job-state/{job_id}", jobs.answering(jobs.state), methods=["GET"]),
        Route("/api/jobs/{job_id}/events", watch.answering(watch.events), methods=["GET"]),
        Route("/api/jobs/{job_id}/events", jobs.answering(jobs.report), methods=["POST"]),
        Route("/api/jobs/{job_id}/results", jobs.answering(jobs.results), methods=["GET"]),
        Route("/api/jobs/{job_id}/cancel", jobs.answering(jobs.cancel), methods=["POST"]),
        Route("/api/token/refresh", jobs.answering(jobs.refresh), methods=["POST"]),
        *(
            Route(pipeline.path, jobs.answering(jobs.starter(pipeline)), methods=["POST"])
            for pipeline in pipelines.values()
            if pipeline.path is not None
        ),
    ]
