"""Starts a job on a hub: uploads its input, and returns the job's id and its token."""

from __future__ import annotations

from typing import NamedTuple

from ..._exceptions import UnexpectedResponse
from ..._secret import Secret
from ...protocols.wire.codec import Codec
from ...transport import URL, Network, Upload, request

#: What hubs answer when a job was started.
_STARTED = frozenset({200, 201, 202})


class StartedJob(NamedTuple):
    """A started job and its token."""

    job: str
    token: Secret


async def start_job(url: str | URL, body: bytes | Upload, network: Network | None = None) -> StartedJob:
    """Upload a job's input, a CSV file, to the URL of its pipeline, in bounded memory.

    Raises `UnexpectedResponse` for any status but 200, 201 and 202, `MalformedMessage` for an answer without token or
    id, and as `transport.request`.
    """
    headers = [("Content-Type", "text/csv"), ("Accept", "application/json")]
    response = await request("POST", url, headers=headers, body=body, deadline=30.0, max_body=1 << 20, network=network)
    if response.status not in _STARTED:
        raise UnexpectedResponse(response.status, "the job was not started", retry_after=response.retry_after)
    answer = Codec().decode_token(response.body)
    if not answer.job_id:
        raise UnexpectedResponse(response.status, "the answer names no job: check the URL of the pipeline")
    return StartedJob(answer.job_id, Secret(answer.token))
