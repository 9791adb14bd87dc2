"""What all calls share: who asks, for which job, and how a refusal is answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response

from ...._exceptions import HubStorageError
from ...._secret import Secret
from ...log._base import Job, Missing
from .._access import is_same_origin
from .._answers import BodyRefusal, Refusal
from .._uploads import announced_size

if TYPE_CHECKING:
    from ..._hub import HubWork

logger: Final = logging.getLogger("towline.server")

T = TypeVar("T")
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

MAX_BODY: Final = 16 * 1024
RETRY_SOON: Final = 5  # seconds
NO_TOKEN: Final = (401, "unauthorized", "a valid token of this job is needed", {"www-authenticate": "Bearer"})
_USUAL: Final = frozenset({401, 404, 409, 410, 425, 426})  # refusals that clients of a healthy hub meet


class Calls:
    """Some calls of one hub."""

    def __init__(self, hub: HubWork) -> None:
        self.hub = hub

    def check_origin(self, connection: HTTPConnection) -> None:
        if not is_same_origin(connection) and connection.headers["origin"] not in self.hub.origins:
            raise Refusal(403, "foreign_origin", "pages of this origin may not use this hub: add it to origins=")

    async def authorized(self, request: Request) -> str | None:
        """In whose name the request is made. A browser may send a cookie for any page, so the origin is checked."""
        self.check_origin(request)
        return await self.hub.authorize(request)

    def count(self, refusal: Refusal, connection: HTTPConnection) -> None:
        """Count a refusal, and log it with its reason."""
        self.hub.counters.refusals[refusal.status] += 1
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

    async def job(self, job_id: str, token: Secret | None) -> Job:
        """Find the job for a caller with its token, who does not call too often.

        Without a token not even the job's absence is said.
        """
        if token is None:
            raise Refusal(*NO_TOKEN)
        self.hub.check_calls(job_id)
        job = await self.known_job(job_id)
        if not await self.hub.tokens.admits(job, token):
            raise Refusal(*NO_TOKEN)
        return job

    async def known_job(self, job_id: str) -> Job:
        job = await self.hub.log.job(job_id)
        if job is Missing.GONE:
            raise Refusal(410, "gone", "the job ended long ago and is no longer kept")
        if job is Missing.UNKNOWN:
            raise Refusal(404, "unknown_job", "there is no such job")
        return job

    def answering(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                self.hub.check_entered()
                return await handler(request)
            except Refusal as refusal:
                self.count(refusal, request)
                return refusal.response()
            except HubStorageError as error:
                self.hub.counters.log_failures += 1
                self.hub.counters.refusals[503] += 1
                return storage_refusal(error).response()
            except ClientDisconnect:
                return Response(status_code=400)  # the caller has gone

        return answer

    async def own_job(self, request: Request, owner: str) -> Job:
        job_id = request.path_params["job_id"]
        self.hub.check_calls(job_id)
        job = await self.hub.log.job(job_id)
        if not isinstance(job, Job) or job.owner != owner:
            raise Refusal(404, "unknown_job", "you have no such job")
        return job


def storage_refusal(error: HubStorageError) -> Refusal:
    logger.error("the log failed: %s", error)
    return Refusal(
        503,
        "storage",
        "the hub's log does not work now, its operator finds the reason in the hub's output",
        retry(RETRY_SOON),
    )


def retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, round(seconds)))}


async def small_body(request: Request, limit: int = MAX_BODY) -> bytes:
    too_large = BodyRefusal(f"the body may have {limit} bytes")
    if announced_size(request) > limit:
        raise too_large
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                raise too_large
    return bytes(body)


def decode(body: bytes, type: type[T]) -> T:  # noqa: A002
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(400, "bad_request", "the body is not the JSON this call takes") from error
