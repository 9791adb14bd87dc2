"""A job on a server that is asked again and again: `202 Accepted` with a `Location`, then the result."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct

from .._exceptions import MalformedMessage
from .._facts import (
    Answer,
    Ended,
    Fact,
    Follow,
    Mark,
    Position,
    Promise,
    Received,
    Request,
    Snapshot,
    Via,
    Wait,
    Want,
)
from .._headers import is_page
from .._secret import Secret
from .._updates import JobComplete
from ._shared.generic import Each, HTTPServer, OwnServer, parsed
from ._shared.requests import ACCEPT_JSON, resolved

_WORKING: Final = (200, 202)


class _Place(Struct, frozen=True, omit_defaults=True):
    """What the next poll must know: its URL, and whether it fetches the result after a 303."""

    url: str = ""
    is_result: bool = False


@dataclass(frozen=True)
class Polling(OwnServer, HTTPServer):
    """Polls a URL until the job has ended.

    Without `each`, 202 means that the job runs, and 200 that it completed with the answer as its result. With `each`,
    the JSON of both is read by it: an update means that the job runs, an outcome that it ended, None that there is no
    news. A 303 to the same origin means that the job completed, and names its result.

    An HTML page is no result, because JSON is asked for: a gateway or a network's login page answers so. What a 303
    names may be one.

    - `location`: the header of a 202 that names the URL of the next poll (`Location`; Azure: `Operation-Location`).

    The source follows `Retry-After`, and saves a 200 that has not changed (`ETag`).
    """

    each: Each | None = None
    location: str = "Location"

    name: ClassVar[str] = "polling"
    sources: ClassVar[tuple[Via, ...]] = ("poll",)
    promise: ClassVar[Promise] = "end exact"

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`. The poll is the state, so there is no call for it."""
        if not isinstance(want, Follow):
            return self.ask_result(want, token)
        place = _place(want.after)
        sent = self.placed(token, place.url or self.url, ACCEPT_JSON)
        return Request(via="poll", url=sent.url, headers=sent.headers, in_step="first_fact")

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what an answer means; raises `MalformedMessage` if one of status 200 is not JSON but must be."""
        if not isinstance(received, Answer):
            return ()
        if not isinstance(want, Follow):
            return self.read_call(want, received)
        place, headers = _place(want.after), received.headers
        if received.status == 303 and "location" in headers:
            result = _Place(url=resolved(place.url or self.url, headers["location"]), is_result=True)
            return (Snapshot((), _mark(result)), Wait(0))
        return self._read_working(received, place) if received.status in _WORKING else ()

    def _read_working(self, answer: Answer, place: _Place) -> tuple[Fact, ...]:
        named = answer.headers.get(self.location.lower()) if answer.status == 202 else None
        url = place.url if named is None else resolved(place.url or self.url, named)
        at = _mark(_Place(url, place.is_result))
        is_last = answer.status == 200 and (self.each is None or place.is_result)
        if not is_last and (self.each is None or (answer.status == 202 and not answer.body.strip())):
            return (Snapshot((), at),)
        if self.each is None:
            if not place.is_result and is_page(answer.headers.get("content-type")):
                raise MalformedMessage("an answer", "$", "it is an HTML page and no result")
            return (Ended(JobComplete(result=_any_value(answer.body))),)
        facts = self.meant(parsed(answer.body, "an answer"), at=at, snapshot=True)
        if is_last and not any(isinstance(fact, Ended) for fact in facts):
            return (Ended(JobComplete(result=_any_value(answer.body))),)
        return facts


def _any_value(body: bytes) -> Any:
    """The JSON of an answer, or its text if it is none."""
    with suppress(MalformedMessage):
        return parsed(body, "an answer")
    return body.decode("utf-8", "replace")


def _place(after: Position | None) -> _Place:
    if isinstance(after, Mark):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(after.text, type=_Place)
    return _Place()


def _mark(place: _Place) -> Mark | None:
    return None if place == _Place() else Mark(msgspec.json.encode(place).decode())
