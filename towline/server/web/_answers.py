"""The answers to requests: JSON that nothing may keep, and the refusal of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._openapi import ErrorAnswer, Problem

# Answers hold tokens and states of the moment: nothing on the way may keep them.
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_LINGER: Final = 2.0  # seconds


class _LastAnswer(Response):
    """An answer after which the connection is closed, although the request may not have come whole.

    What still comes is dropped for a moment: a connection that is closed with bytes unread is reset, and the client may
    then lose the answer (RFC 9112, section 9.6).
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, wait for the end of the request, and let the server close."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(_LINGER):
            while (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_answer(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None, kind: type[Response] = Response
) -> Response:
    """An answer of this content."""
    return kind(msgspec.json.encode(content), status, {**_HEADERS, **(headers or {})}, "application/json")


class Refusal(Exception):
    """The answer to a request that gets nothing: a status, a code for programs, a sentence for people."""

    kind: type[Response] = Response

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """The answer itself."""
        return json_answer(ErrorAnswer(Problem(self.code, self.message)), self.status, self.headers, self.kind)


class BodyRefusal(Refusal):
    """The refusal of a request whose body is too large: the connection closes after it."""

    kind = _LastAnswer

    def __init__(self, message: str) -> None:
        super().__init__(413, "too_large", message, {"connection": "close"})
