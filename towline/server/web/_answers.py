"""The answers to requests: JSON that nothing may keep, and the refusal of a request."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from ._openapi import ErrorAnswer, Problem


def json_answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of this content."""
    # Answers hold tokens and states of the moment: nothing on the way may keep them.
    return Response(
        msgspec.json.encode(content),
        status,
        {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})},
        "application/json",
    )


class Refusal(Exception):
    """The answer to a request that gets nothing: a status, a code for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """The answer itself."""
        return json_answer(ErrorAnswer(Problem(self.code, self.message)), self.status, self.headers)
