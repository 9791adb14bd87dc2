"""The HTTP calls about one job: start, state, token refresh, cancel, result."""

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
from ..protocols.wire.codec import CancelAnswer, Codec
from ..protocols.wire.messages import JobState
from ..transport._url import URL, Headers, bearer, fill_template, parse_origin, parse_url
from ..transport.http._client import Response, Upload, request, stream_response
from ..transport.net._network import Network

#: Statuses of temporary failures, worth a retry.
RETRIED: Final = frozenset({408, 425, 429}) | frozenset(range(500, 600))


#: The path of a job's progress, below the prefix that a server may be mounted under.
PROGRESS_PATH: Final = "/ws/progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """The paths of the calls. `{job}` stands for the job id, percent-encoded.

    `job_state` and `result` require it. `cancel` may be a fixed path, because the id is also in the body.
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
        """The default paths below the prefix of a socket's URL, the part before `/ws/progress`."""
        prefix, progress_path, rest = url.path.rpartition(PROGRESS_PATH)
        if not progress_path or rest or not prefix or re.search("[{}]", prefix):
            return cls()
        return cls(**{field.name: f"{prefix}{field.default}" for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class RefreshedToken:
    """A new token and its lifetime in seconds (None: the server does not say)."""

    token: Secret
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class StartedJob:
    """A started job, its token, and the token's lifetime in seconds (None: the server does not say)."""

    job: str
    token: Secret
    expires_in: float | None = None


class JobCalls:
    """Makes HTTP calls to one origin. Each call opens its own connection and is given the token.

    `origin` is an `https` or `wss` URL without a path, or a checked `URL`, of which only the origin is used. Tokens are
    sent only as `Authorization: Bearer`; redirects are never followed. Many tasks may use it at once.
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
        """Fetch the job's state. `deadline` (each try) and `waits` (after each failed try) are in seconds.

        5xx, 408, 425, 429, timeouts and network errors are retried, after the server's `Retry-After` if that is longer.
        A `Retry-After` beyond `deadline` ends the tries. Every other failure raises at once. Raises
        `UnexpectedResponse` (its `status`, such as 401 and 404), `MalformedMessage`, `MessageTooBig` past 16 MiB, and
        `ProtocolViolation`. After the last try it raises
        `DeadlineExceeded` or `NetworkError`.
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
                raise self._unexpected(response, "the job's state was not sent")
            except UnexpectedResponse as error:
                if error.status not in RETRIED or attempt >= tries:
                    raise
                advice = error.retry_after or 0.0
                if advice > deadline:
                    raise
            except (NetworkError, DeadlineExceeded):
                if attempt >= tries:
                    raise
            planned = waits[min(attempt, len(waits)) - 1] if waits else 0.0
            await anyio.sleep(max(planned, advice))

    async def refresh_token(self, job: str, old: Secret, *, deadline: float = 10.0) -> RefreshedToken:
        """Exchange the old token for a new one, in one try.

        Raises `UnexpectedResponse` (401, 425 and 429 with `retry_after`).
        """
        response = await self._call(
            "POST",
            self._base.at(self._templates.token_refresh),
            json={"jobId": job, "oldToken": old.reveal()},
            deadline=deadline,
        )
        if not 200 <= response.status < 300:
            raise self._unexpected(response, "no new token was sent")
        answer = self._codec.decode_token(response.body)
        return RefreshedToken(Secret(answer.token), answer.expires_in)

    async def cancel_job(
        self, job: str, token: Secret, idempotency_key: str, *, deadline: float = 10.0
    ) -> CancelAnswer:
        """Ask the server to cancel the job, in one try; you may repeat it with the same key.

        A successful response without details counts as "accepted". Raises `UnexpectedResponse` (such as 401 and 404),
        `MalformedMessage` for an HTML page, and as `request`.
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
            hint = ": the job does not exist, or `templates=` must name another path" if response.status == 404 else ""
            raise self._unexpected(response, f"the cancel request was not accepted{hint}")
        return self._codec.decode_cancel(response.body)

    async def fetch_result(
        self, job: str, result_url: str | None, token: Secret, *, max_body: int, deadline: float = 30.0
    ) -> bytes:
        """Fetch a result too large for its message. `max_body` limits its bytes, `deadline` each wait for more.

        `result_url` may be absolute or a path; None means the template. The token is sent to no other origin: a URL
        elsewhere raises `InvalidArgument`. Raises `UnexpectedResponse`, `MessageTooBig`, and as `request`.
        """
        url = self._result_url(job, result_url)
        async with stream_response(
            "GET",
            url,
            headers=[*self._headers, bearer(token)],
            deadline=deadline,
            silence=deadline,
            max_body=max_body,
            network=self._network,
            ssl=self._ssl,
            wall_time=self._wall_time,
        ) as download:
            if download.status != 200:
                raise UnexpectedResponse(download.status, "the result was not sent", retry_after=download.retry_after)
            size = download.headers.header(b"content-length")
            if size is not None and int(size) > max_body:
                raise MessageTooBig("bytes in an HTTP response", max_body)
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
        """Start a job by uploading its input. An `Upload` of any size is sent in bounded memory.

        `path` belongs to the pipeline; `token` authenticates the caller if the server requires it. `job` is the id that
        the caller chose, for a server whose response does not repeat it. `deadline` restarts with each piece sent.
        Raises `UnexpectedResponse` for any status but 200, 201 and 202, `MalformedMessage`, and as `request`.
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
            raise MalformedMessage("start", "$.jobId", "missing: pass job= if the server takes the id from the caller")
        return StartedJob(job_id, Secret(answer.token), answer.expires_in)

    # --- shared by the calls ------------------------------------------------------------------------------------

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
            raise InvalidArgument("result_url", "is at another origin, and the token must not be sent there")
        return self._base.at(url.target)
