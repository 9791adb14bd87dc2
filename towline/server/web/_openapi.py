"""The hub's HTTP side as an OpenAPI 3.1 document, made from the types that write the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from ...protocols.wire.messages import VERSION, JobState
from .reports._types import Report, ReportAnswer

if TYPE_CHECKING:
    from .._settings import Pipeline

_REFUSALS: Final[Mapping[int, str]] = {
    400: "The request makes no sense.",
    401: "No token, or not one of this job.",
    403: "You may not start jobs here.",
    404: "There is no such job.",
    405: "The path takes no such method.",
    409: "The job has not ended; for a report: it has, or another event has this number.",
    410: "The job ended long ago and is no longer kept.",
    413: "The body is too large.",
    415: "The upload is of a type this pipeline does not take.",
    422: "The Idempotency-Key came with another upload before.",
    425: "The token has time left; Retry-After says how much.",
    426: "This is a WebSocket.",
    429: "Too often, or too many; Retry-After says when.",
    503: "The hub is about to restart, or its log does not answer; Retry-After says when.",
    507: "The upload could not be kept.",
}
_PLACE: Final = "#/components/schemas/{name}"
_FOREIGN: Final = "Pages of this origin may not use this hub."
#: What any call may answer.
_ALWAYS: Final = (400, 405, 429, 503)
_OF_A_JOB: Final = (401, 404, 410)
_BEARER: Final[list[dict[str, list[str]]]] = [{"token": []}]


class RefreshRequest(Struct, rename="camel"):
    """A token to be replaced, and its job."""

    job_id: str
    old_token: str


class RefreshAnswer(Struct, rename="camel"):
    """The new token; it lives `expires_in` seconds."""

    job_id: str
    token: str
    expires_in: int


class StartAnswer(Struct, rename="camel"):
    """A new job, and the token that opens it for `expires_in` seconds."""

    job_id: str
    token: str
    expires_in: int
    pipeline: str


class CancelRequest(Struct):
    """Why the job is stopped, for its watchers to read."""

    reason: str | None = None


class CancelAnswer(Struct, rename="camel"):
    """`accepted`, or `too_late`: the job had ended in another way."""

    job_id: str
    result: str


class ListedJob(Struct, rename="camel"):
    """One of the jobs of who asks; times are in milliseconds since 1970.

    Without a `last_update` the job waits for its turn. `message` is why a job failed or was canceled.
    """

    job_id: str
    pipeline: str
    status: str
    start_time: int
    last_update: int | None
    end_time: int | None
    total_count: int | None
    processed_count: int
    current_item: str | None
    message: str | None


class JobsAnswer(Struct):
    """Jobs of who asks, newest first; `next` is the `before` that continues the list, or null at its end."""

    jobs: list[ListedJob]
    next: str | None


class Problem(Struct):
    """A code for programs, a sentence for people."""

    code: str
    message: str


class ErrorAnswer(Struct):
    """The answer to a request that gets nothing."""

    error: Problem


def document(pipelines: Iterable[Pipeline], *, base_path: str) -> dict[str, Any]:
    """Make the document of a hub with these pipelines, mounted at `base_path`."""
    types = (
        *(JobState, JobsAnswer, RefreshRequest, RefreshAnswer),
        *(StartAnswer, CancelRequest, CancelAnswer, ReportAnswer, ErrorAnswer),
    )
    reports, components = msgspec.json.schema_components((Report, *types), ref_template=_PLACE)
    job = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths: dict[str, Any] = {
        "/healthz": {"get": _call("Whether the hub takes work.", 200, {"type": "object"})},
        "/ws/progress": {
            "get": _call("A job's events, over a WebSocket; without an upgrade, 426.", 101, None, *_OF_A_JOB, 403, 426)
            | {"parameters": [{"name": "jobId", "in": "query", "required": True, "schema": {"type": "string"}}]}
        },
        "/api/jobs": {
            "get": _call("Your jobs, newest first.", 200, _ref(JobsAnswer), 403)
            | {"parameters": [{"name": "before", "in": "query", "schema": {"type": "string"}}]}
        },
        "/api/jobs/{job_id}/token": {
            "parameters": [job],
            "post": _call("A token for a page that shows your job.", 200, _ref(RefreshAnswer), 403, 404),
        },
        "/api/jobs/{job_id}/events": {
            "parameters": [job],
            "get": _events(),
            "post": _call("A worker's report, with its own token.", 200, _ref(ReportAnswer), *_OF_A_JOB, 409, 413)
            | {"security": _BEARER, "requestBody": _body({"application/json": reports[0]}, required=True)},
        },
        "/api/job-state/{job_id}": {
            "parameters": [job],
            "get": _call("A job's state, and the number of its last event.", 200, _ref(JobState), *_OF_A_JOB)
            | {"security": _BEARER},
        },
        "/api/jobs/{job_id}/results": {
            "parameters": [job],
            "get": _call("A job's whole result.", 200, {"type": "object"}, *_OF_A_JOB, 409) | {"security": _BEARER},
        },
        "/api/jobs/{job_id}/cancel": {
            "parameters": [job],
            "post": _call("Stop a job, if it has not ended.", 200, _ref(CancelAnswer), *_OF_A_JOB, 413)
            | {"security": _BEARER, "requestBody": _body({"application/json": _ref(CancelRequest)}, required=False)},
        },
        "/api/token/refresh": {
            "post": _call("A new token for an old one.", 200, _ref(RefreshAnswer), 401, 413, 425)
            | {"requestBody": _body({"application/json": _ref(RefreshRequest)}, required=True)},
        },
    }
    for pipeline in pipelines:
        if pipeline.path is not None:
            paths[pipeline.path] = {"post": _start(pipeline)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Towline job hub", "version": VERSION},
        "servers": [{"url": base_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "The job's token."}},
        },
    }


def _events() -> dict[str, Any]:
    call = _call("A job's events from a place on, as Server-Sent Events; without a place, all.", 200, None, *_OF_A_JOB)
    answers = call["responses"]
    answers["200"] = {"description": "The events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    answers["204"] = {"description": "The job has ended, and its last event is the place."}
    answers["403"] = answers["404"] | {"description": _FOREIGN}
    text = {"type": "string"}
    places = [{"name": "Last-Event-ID", "in": "header"}, {"name": "lastEventId", "in": "query"}]
    return call | {"security": _BEARER, "parameters": [place | {"schema": text} for place in places]}


def _start(pipeline: Pipeline) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": file}, "required": ["file"]}
    kinds: dict[str, Any] = {"multipart/form-data": form} | dict.fromkeys(pipeline.media_types, file)
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255}}
    call = _call(f"Start a {pipeline.name} job.", 202, _ref(StartAnswer), 403, 413, 415, 422, 507)
    return call | {"parameters": [key], "requestBody": _body(kinds, required=True)}


def _call(summary: str, status: int, schema: Any, *refusals: int) -> dict[str, Any]:
    answers: dict[str, Any] = {
        str(refused): {
            "description": _REFUSALS[refused],
            "content": {"application/json": {"schema": _ref(ErrorAnswer)}},
        }
        for refused in sorted({*_ALWAYS, *refusals})
    }
    content = {} if schema is None else {"content": {"application/json": {"schema": schema}}}
    return {"summary": summary, "responses": {str(status): {"description": "Done.", **content}} | answers}


def _body(kinds: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    return {"required": required, "content": {kind: {"schema": schema} for kind, schema in kinds.items()}}


def _ref(struct: type[Struct]) -> dict[str, str]:
    return {"$ref": _PLACE.format(name=struct.__name__)}
