"""Recordings: what was wanted and what the server said to it, as lines of JSON.

A line is `{"want": {…}, "received": {…}}`, each with its `type`. It holds no request and no answer to a token's
refresh, and every known token is replaced by `TOKEN`. docs/protocols.md describes the format.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from ..._exceptions import InvalidArgument
from ..._facts import (
    Answer,
    CancelJob,
    Closed,
    Fact,
    Follow,
    GetResult,
    GetState,
    Line,
    Mark,
    Message,
    NewToken,
    Numbered,
    Position,
    Promise,
    Protocol,
    Received,
    RefreshToken,
    Request,
    ServerEvent,
    Text,
    Via,
    Want,
)
from ..._headers import as_pairs
from ..._secret import Secret, revealed
from ..._updates import JobComplete, dump_outcome, load_outcome

#: Called with each want and what the server said to it.
Observer: TypeAlias = Callable[[Want, Received], None]

MASK: Final = "TOKEN"
#: Headers of answers that are left out: they hold secrets, and no protocol reads them.
_LEFT_OUT: Final = frozenset({"set-cookie", "set-cookie2"})
#: The largest outcome in a line, in bytes.
_OUTCOME_LIMIT: Final = 1 << 20


class Observed:
    """A protocol that reports what it reads to an observer, and masks every token that it was given before."""

    # What the protocol says of itself; `__getattr__` finds it.
    name: str
    url: str
    job: str
    sources: tuple[Via, ...]
    promise: Promise

    def __init__(self, protocol: Protocol, observe: Observer) -> None:
        self._protocol = protocol
        self._observe = observe
        self._masks: dict[str, None] = {}
        for _, value in as_pairs(getattr(protocol, "headers", ())):
            self._learn(value)

    def __getattr__(self, name: str) -> Any:
        """Return what the protocol says of itself, such as `replays_end`."""
        return getattr(self._protocol, name)

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the protocol's request."""
        if token is not None:
            self._learn(token)
        asked = self._protocol.ask(want, token)
        for _, value in () if asked is None else asked.headers:
            if isinstance(value, Secret):
                self._learn(value)
        return asked

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        """Return what the protocol reads, after the observer was called."""
        if not isinstance(want, RefreshToken):
            self._observe(_masked(want, self._mask), _masked(received, self._mask))
            return self._protocol.read(want, received)
        facts = tuple(self._protocol.read(want, received))
        for fact in facts:
            if isinstance(fact, NewToken):
                self._learn(fact.token)
        return facts

    def _learn(self, text: Text) -> None:
        value = revealed(text).removeprefix("Bearer ")
        if value and value not in self._masks:
            in_json = json.dumps(value)[1:-1]
            # As it stands in a URL, and in JSON with and without escaped slashes; the longest first.
            for form in (quote(value, safe=""), quote(value), in_json.replace("/", "\\/"), in_json, value):
                self._masks[form] = None
            self._masks = dict.fromkeys(sorted(self._masks, key=len, reverse=True))

    def _mask(self, text: Any) -> Any:
        if isinstance(text, bytes):
            for mask in self._masks:
                text = text.replace(mask.encode("utf-8", "surrogatepass"), MASK.encode())
        elif isinstance(text, str):
            for mask in self._masks:
                text = text.replace(mask, MASK)
        return text


def _masked(value: Any, mask: Callable[[Any], Any]) -> Any:
    """The value with its texts masked. An outcome is kept without its result, which may be of any type."""
    if isinstance(value, JobComplete):
        value = replace(value, result=None)
    if isinstance(value, str | bytes):
        return mask(value)
    if isinstance(value, Struct):
        names = value.__struct_fields__
        return type(value)(**{name: _masked(getattr(value, name), mask) for name in names})
    if isinstance(value, Mapping):
        return {mask(name): _masked(item, mask) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_masked(item, mask) for item in value)
    return value


# --- lines ---------------------------------------------------------------------------------------------------------


def dump_line(want: Want, received: Received) -> str:
    """The line of a recording, without its end. Raises `InvalidArgument` for a `RefreshToken`."""
    line = {"want": _dump_want(want), "received": _dump_received(received)}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace").decode()


def load_lines(lines: Iterable[str]) -> Iterator[tuple[Want, Received]]:
    """Read a recording. Raises `InvalidArgument` that names the line which is none."""
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            want, received = _load_want(dict(found["want"])), _load_received(dict(found["received"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidArgument("recording", f"line {number} is not a line of a recording") from error
        yield want, received


def _dump_want(want: Want) -> dict[str, Any]:
    match want:
        case Follow():
            after = None if want.after is None else _dump_position(want.after)
            return {"type": "follow", "via": want.via, "after": after, "client": want.client, "socket": want.socket}
        case GetState():
            return {"type": "state"}
        case CancelJob(key):
            return {"type": "cancel", "key": key}
        case GetResult(outcome):
            return {"type": "result", "outcome": json.loads(dump_outcome(outcome, _OUTCOME_LIMIT))}
        case RefreshToken():
            raise InvalidArgument("want", "a recording holds no answers to a token's refresh")


def _load_want(want: dict[str, Any]) -> Want:
    match want.pop("type"):
        case "follow":
            after = want.pop("after", None)
            return Follow(after=None if after is None else _load_position(after), **want)
        case "state":
            return GetState(**want)
        case "cancel":
            return CancelJob(**want)
        case "result":
            return GetResult(load_outcome(json.dumps(want["outcome"])))
    raise ValueError("want")


def _dump_position(at: Position) -> dict[str, Any]:
    return {"mark": at.text} if isinstance(at, Mark) else {"seq": at.seq, "epoch": at.epoch}


def _load_position(at: dict[str, Any]) -> Position:
    return Mark(at["mark"]) if "mark" in at else Numbered(**at)


def _dump_received(received: Received) -> dict[str, Any]:
    match received:
        case Message(str() as data):
            return {"type": "message", "text": data}
        case Message(bytes() as data):
            return {"type": "message", "base64": b64encode(data).decode()}
        case ServerEvent():
            return {"type": "event", "event": received.type, "data": received.data, "id": received.id}
        case Line(text):
            return {"type": "line", "text": text}
        case Answer(status, headers, body):
            kept = {name: value for name, value in headers.items() if name not in _LEFT_OUT}
            return {"type": "answer", "status": status, "headers": kept, **_dump_body(body)}
        case Closed():
            return {"type": "closed", "code": received.code, "reason": received.reason}
    raise InvalidArgument("received", f"{type(received).__name__} cannot be recorded: pass what a server sent")


def _load_received(received: dict[str, Any]) -> Received:
    match received.pop("type"):
        case "message":
            return Message(b64decode(received["base64"]) if "base64" in received else received["text"])
        case "event":
            return ServerEvent(received.pop("event"), **received)
        case "line":
            return Line(received["text"])
        case "answer":
            text = received["text"].encode() if "text" in received else b64decode(received["base64"])
            return Answer(received["status"], received["headers"], text)
        case "closed":
            return Closed(**received)
    raise ValueError("received")


def _dump_body(body: bytes) -> dict[str, str]:
    """A body as text, if it is UTF-8."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}
