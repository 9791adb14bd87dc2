"""Answers as a protocol reads them, and the error of an answer that no source can follow."""

from __future__ import annotations

from typing import Final

from .._exceptions import ConnectionBroken, ConnectionClosed, HandshakeRefused, TowlineError, UnexpectedResponse
from .._facts import Answer, Closed, Received
from ..transport import Head

#: The code that stands for a WebSocket without a close frame (RFC 6455 section 7.1.5).
_NO_CLOSE_FRAME: Final = 1006


class UnusableAnswer(UnexpectedResponse):
    """The server answered a request with something that cannot be followed. A protocol reads `answer`."""

    def __init__(self, answer: Answer, problem: str, *, retry_after: float | None = None) -> None:
        if answer.status in (401, 403):
            problem = "it wants a token, or rejects the one that was sent"
        super().__init__(answer.status, problem, retry_after=retry_after)
        self.answer = answer


class ResponseEnded(ConnectionBroken):
    """The server ended a response in order: nothing of it is missing."""


def answer_of(head: Head, body: bytes) -> Answer:
    """A response as a protocol reads it. Of a header that occurs several times the last value counts."""
    headers = {name.decode("ascii", "replace"): value.decode("latin-1") for name, value in head.headers}
    return Answer(head.status, headers, body)


def received_of(error: TowlineError) -> Received | None:
    """What the server said with an error, for the protocol to read; None if it said nothing."""
    match error:
        case UnusableAnswer():
            return error.answer
        case HandshakeRefused():
            return Answer(error.status, {}, error.body)
        case UnexpectedResponse():
            return Answer(error.status)
        case ConnectionClosed():
            return Closed(None if error.code == _NO_CLOSE_FRAME else error.code, error.reason)
        case ConnectionBroken():
            return Closed()
    return None
