"""The HTTP calls that speak of one job: its state, its token, its end on request, its result, its start."""

from __future__ import annotations

import re
import ssl as ssl_module
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import anyio
import msgspec

from .._exceptions import (
    DeadlineExceeded,
    InvalidArgument,
    MalformedMessage,
    MessageTooBig,
    NetworkError,
    UnexpectedResponse,
)
from .._secret import Secret
from ._codec import CancelAnswer, Codec
from ._http import Response, Upload, request, stream_response
from ._messages import JobState
from ._network import Network
from ._url import URL, Headers, bearer, fill_template, parse_origin, parse_url

#: Statuses that speak of a passing trouble: asking again is of use.
RETRIED: Final = frozenset({408, 425, 429}) | frozenset(range(500, 600))


#: Where a job's progress is told, below the path that a server may be mounted under.
PROGRESS_PATH: Final = "/ws/progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """Where the calls live. `{job}` is the job id, percent-encoded.

    `job_state` and `result` need it. `cancel` may be a fixed path, because the id is also in the body.
    """

    job_state: str = "/api/job-state/{job}"
    token_refresh: str = "/api/token/refresh"
    cancel: str = "/api/jobs/{job}/cancel"
    result: str = "/api/jobs/{job}/results"

    def __post_init__(self) -> None:
        for template in (self.job_state, self.result):
            fill_template(template, "job")
        fill_template(self.cancel, "job", fixed=True)

    @classmethod
    def beside(cls, url: URL) -> Templates:
        """The usual places, below the path that stands before `/ws/progress` in a socket's URL."""
        prefix, progress_path, rest = url.path.rpartition(PROGRESS_PATH)
        if not progress_path or rest or not prefix or re.search("[{}]", prefix):
            return cls()
        return cls(**{field.name: f"{prefix}{field.default}" for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class RefreshedToken:
    """A new token and how long it is good for, in seconds (None: the server does not say)."""

    token: Secret
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class StartedJob:
    """A job that was started, its token, and how long that is good for, in seconds."""

    job: str
    token: Secret
    expires_in: float | None = None


class JobCalls:
    """The calls to one origin. Holds no connection and no token: each call dials, and is told the token.

    `origin` is an `https` or `wss` URL without path, or a checked `URL` of which only the origin is used. Tokens go
    out as `Authorization: Bearer` and nowhere else; redirects are never followed. May be used by many tasks at once.
    """

    def __init__(
        self,
        origin: str | URL,
        *,
        templates: Templates | None = None,
        codec: Codec | None = None,
        headers: Headers = (),
        network: Network | None = None,
        ssl: ssl_module.SSLContext | None = None,
        allow_insecure: bool = False,
        max_state: int = 16 << 20,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        checked = origin if isinstance(origin, URL) else parse_origin(origin, allow_insecure=allow_insecure)
        self._base = checked.at("/")
        self._templates = templates or Templates()
        self._codec = codec or Codec()
        self._headers = list(headers.items() if hasattr(headers, "items") else headers)
        self._network = network
        self._ssl = ssl
        self._max_state = max_state
        self._wall_time = wall_time

    async def fetch_state(
        self,
        job: str,
        token: Secret,
        *,
        tries: int = 4,
        waits: Sequence[float] = (1.0, 2.0, 4.0),
        deadline: float = 10.0,
    ) -> JobState:
        """The job's state. `deadline` and `waits` are in seconds, a deadline each try, a wait after each failed one.

        5xx, 408, 425, 429, timeouts and network errors are tried again, after the server's `Retry-After` where that is
        longer; every other answer raises at once. Raises `UnexpectedResponse` (its `status`, 401 and 404 among them),
        `MalformedMessage`, `MessageTooBig` past 16 MiB, `ProtocolViolation`, and after the last try `DeadlineExceeded`
        or `NetworkError`.
        """
        url = self._base.at(fill_template(self._templates.job_state, job))
        attempt = 0
        while True:
            attempt += 1
            advice = 0.0
            try:
                response = await self._call("GET", url, token=token, deadline=deadline, max_body=self._max_state)
                if response.status == 200:
                    return self._codec.decode_state(response.body)
                raise self._unexpected(response, "no state of the job")
            except UnexpectedResponse as error:
                if error.status not in RETRIED or attempt >= tries:
                    raise
                advice = error.retry_after or 0.0
            except (NetworkError, DeadlineExceeded):
                if attempt >= tries:
                    raise
            planned = waits[min(attempt, len(waits)) - 1] if waits else 0.0
            await anyio.sleep(max(planned, advice))

    async def refresh_token(self, job: str, old: Secret, *, deadline: float = 10.0) -> RefreshedToken:
        """A new token for the old one; one try. Raises `UnexpectedResponse` (401, 425 and 429 with `retry_after`)."""
        response = await self._call(
            "POST",
            self._base.at(self._templates.token_refresh),
            json={"jobId": job, "oldToken": old.reveal()},
            deadline=deadline,
        )
        if not 200 <= response.status < 300:
            raise self._unexpected(response, "no new token")
        answer = self._codec.decode_token(response.body)
        return RefreshedToken(Secret(answer.token), answer.expires_in)

    async def cancel_job(
        self, job: str, token: Secret, idempotency_key: str, *, deadline: float = 10.0
    ) -> CancelAnswer:
        """Ask the server to stop the job; one try, which may be repeated with the same key.

        A success that says nothing else is "accepted". Raises `UnexpectedResponse` (401, 404 among them),
        `MalformedMessage` for a page, and as `request`.
        """
        response = await self._call(
            "POST",
            self._base.at(fill_template(self._templates.cancel, job, fixed=True)),
            token=token,
            headers=[("Idempotency-Key", idempotency_key)],
            json={"jobId": job},
            deadline=deadline,
        )
        if not 200 <= response.status < 300:
            hint = ": no such job, or `templates=` name another place" if response.status == 404 else ""
            raise self._unexpected(response, f"no answer to the request to stop{hint}")
        return self._codec.decode_cancel(response.body)

    async def fetch_result(
        self, job: str, result_url: str | None, token: Secret, *, max_body: int, deadline: float = 30.0
    ) -> bytes:
        """A result that was too large for its message. `max_body` bounds it, in bytes; `deadline` each wait for more.

        `result_url` may be absolute or a path; None means the template. The token is shown to no other origin: an URL
        elsewhere raises `InvalidArgument`. Raises `UnexpectedResponse`, `MessageTooBig`, and as `request`.
        """
        url = self._result_url(job, result_url)
        async with stream_response(
            "GET",
            url,
            headers=[*self._headers, bearer(token)],
            deadline=deadline,
            max_body=max_body,
            network=self._network,
            ssl=self._ssl,
            wall_time=self._wall_time,
        ) as download:
            if download.status != 200:
                raise UnexpectedResponse(download.status, "no result", retry_after=download.retry_after)
            size = download.headers.header(b"content-length")
            if size is not None and int(size) > max_body:
                raise MessageTooBig("bytes in an HTTP answer", max_body)
            return b"".join([piece async for piece in download])

    async def start_job(
        self,
        path: str,
        body: bytes | Upload,
        *,
        content_type: str = "text/csv",
        job: str = "",
        token: Secret | None = None,
        headers: Headers = (),
        deadline: float = 30.0,
    ) -> StartedJob:
        """Start a job by uploading what it works on; an `Upload` goes in bounded memory, whatever its size.

        `path` is the pipeline's own, `token` what it wants of a caller, if anything. `job` is the id that the caller
        chose, for a server whose answer does not repeat it. `deadline` restarts with each piece sent. Raises
        `UnexpectedResponse` for any status but 200, 201 and 202, `MalformedMessage`, and as `request`.
        """
        response = await self._call(
            "POST",
            self._base.at(path),
            token=token,
            headers=[("Content-Type", content_type), *(headers.items() if hasattr(headers, "items") else headers)],
            body=body,
            deadline=deadline,
        )
        if response.status not in {200, 201, 202}:
            raise self._unexpected(response, "the job was not started")
        answer = self._codec.decode_token(response.body)
        job_id = answer.job_id or job
        if not job_id:
            raise MalformedMessage("start", "$.jobId", "missing: pass job=, if the server takes the id from the caller")
        return StartedJob(job_id, Secret(answer.token), answer.expires_in)

    # --- what the calls share -----------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        url: URL,
        *,
        token: Secret | None = None,
        headers: Sequence[tuple[str, str | Secret]] = (),
        json: Any = None,
        body: bytes | Upload | None = None,
        deadline: float,
        max_body: int = 1 << 20,
    ) -> Response:
        sent: list[tuple[str, str | Secret]] = [*self._headers, *headers, ("Accept", "application/json")]
        if token is not None:
            sent.append(bearer(token))
        if json is not None:
            body = msgspec.json.encode(json)
            sent.append(("Content-Type", "application/json"))
        elif body is None and method == "POST":
            body = b""
        return await request(
            method,
            url,
            headers=sent,
            body=body,
            deadline=deadline,
            max_body=max_body,
            network=self._network,
            ssl=self._ssl,
            wall_time=self._wall_time,
        )

    def _unexpected(self, response: Response, problem: str) -> UnexpectedResponse:
        return UnexpectedResponse(response.status, problem, retry_after=response.retry_after)

    def _result_url(self, job: str, result_url: str | None) -> URL:
        if result_url is None:
            return self._base.at(fill_template(self._templates.result, job))
        if result_url and not re.match("//|[A-Za-z][A-Za-z0-9+.-]*:", result_url):
            # A path, as some servers write it without its slash: below the origin, not below the call that named it.
            return self._base.at("/" + result_url.removeprefix("/"))
        url = parse_url(result_url, schemes=("https", "http", "wss", "ws"), allow_insecure=True)
        if url.origin != self._base.origin:
            raise InvalidArgument("result_url", "leads to another origin, which the token is not for")
        return self._base.at(url.target)
