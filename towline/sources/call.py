"""One call of a protocol over HTTP: state, cancel, result, token."""

from __future__ import annotations

from typing import NamedTuple

import anyio

from .._exceptions import DeadlineExceeded
from .._facts import Answer, Request
from ..transport import stream_response
from .access import Access, body_of
from .answers import answer_of


class Called(NamedTuple):
    """The answer to a call, and the server's advice when to call again, in seconds from now."""

    answer: Answer
    retry_after: float | None


async def call(asked: Request, access: Access, *, deadline: float, max_body: int, whole: bool = True) -> Called:
    """Make a call and return its answer of any status.

    `deadline` (seconds) covers the call, or without `whole` the head and each wait for more. `max_body` is in bytes.
    Raises `InvalidArgument` for a URL of another origin, and otherwise as `transport.stream_response`.
    """
    with anyio.CancelScope() as scope:
        if whole:
            scope.deadline = anyio.current_time() + deadline
        async with stream_response(
            asked.method,
            access.url_of(asked),
            headers=asked.headers,
            body=body_of(asked),
            deadline=deadline,
            silence=deadline,
            max_body=max_body,
            network=access.network,
            wall_time=access.wall_time,
        ) as download:
            body = b"".join([piece async for piece in download])
        return Called(answer_of(download.headers, body), download.retry_after)
    raise DeadlineExceeded("the whole response to the HTTP call", deadline)
