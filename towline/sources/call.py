"""One call of a protocol over HTTP: state, cancel, result, token."""

from __future__ import annotations

from typing import NamedTuple

from .._facts import Answer, Request
from ..transport import request
from .access import Access, body_of
from .answers import answer_of


class Called(NamedTuple):
    """The answer to a call, and the server's advice when to call again, in seconds from now."""

    answer: Answer
    retry_after: float | None


async def call(asked: Request, access: Access, *, deadline: float, max_body: int) -> Called:
    """Make a call and return its answer, whatever the status. `deadline` is in seconds, `max_body` in bytes.

    Raises `InvalidArgument` for a URL of another origin, and otherwise as `transport.request`.
    """
    response = await request(
        asked.method,
        access.url_of(asked),
        headers=asked.headers,
        body=body_of(asked),
        deadline=deadline,
        max_body=max_body,
        network=access.network,
        ssl=access.ssl,
        allow_insecure=True,
        wall_time=access.wall_time,
    )
    return Called(answer_of(response.headers, response.body), response.retry_after)
