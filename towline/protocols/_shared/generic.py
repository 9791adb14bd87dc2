"""What the protocols for a server of your own share: the function `each`, the token, and the state call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, TypeAlias, cast

from msgspec import Struct, ValidationError, convert
from msgspec.structs import asdict, fields, replace

from ..._exceptions import InvalidArgument, MalformedMessage
from ..._facts import Answer, Ended, Fact, GetResult, GetState, Item, Position, Request, Snapshot, Text, Value, Want
from ..._headers import header_pairs
from ..._secret import Secret
from ..._updates import JobCancelled, JobComplete, JobFailed, Progress, Update
from ..wire.lenient import build, fraction, load
from .requests import ACCEPT_JSON, Headers, Placed, check_token_place, origin, path_and_query, placed, resolved

#: What `each` may return for one JSON value.
Meant: TypeAlias = Update | Fact | None
Each: TypeAlias = Callable[..., Meant]

OUTCOMES: Final = (JobComplete, JobFailed, JobCancelled)


class Fault(Struct):
    """The error of a job as most servers describe it."""

    code: str
    message: str

    @classmethod
    def of(cls, value: Any) -> Fault:
        """Read a JSON value leniently."""
        return build(cls, object_of(value))

    def failed(self, details: Any = None) -> JobFailed:
        """The end of the job."""
        problem = None if self.code or self.message else "the server gave no reason"
        return JobFailed(code=self.code, message=self.message, details=details, problem=problem)


@dataclass(frozen=True)
class Server:
    """The parameters that protocols share.

    - `token_in`: `header` (Authorization: Bearer), `header:NAME`, `query`, `query:NAME` or `subprotocol:NAME`.
    - `headers`: sent with each request.
    """

    _: KW_ONLY
    token_in: str = "header"
    headers: Mapping[str, Text] | Headers = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_token_place(self.token_in)
        object.__setattr__(self, "headers", header_pairs(self.headers))

    def placed(self, token: Secret | None, url: str, *more: tuple[str, Text]) -> Placed:
        """The URL and the headers of a request, with the token."""
        sent = placed(token, self.token_in, url)
        return sent._replace(headers=(*cast(Headers, self.headers), *more, *sent.headers))


@dataclass(frozen=True)
class HTTPServer(Server):
    """The parameters that protocols without a WebSocket share. `token_in` is not `subprotocol:NAME`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_in.startswith("subprotocol:"):
            raise InvalidArgument("token_in", "must be header or query: only a WebSocket has a subprotocol")


@dataclass(frozen=True)
class OwnServer(Server):
    """The parameters that the protocols for a server of your own share.

    - `url`: the address of the job. Requests and the token go to its origin only.
    - `each`: turns one JSON value into an update, an outcome (`JobComplete`, `JobFailed`, `JobCancelled`), a fact with
      a position, or None for nothing.
    - `job`: the job's id, by default the URL's path and query.
    """

    url: str
    each: Each | None
    _: KW_ONLY
    job: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "job", self.job or path_and_query(self.url))

    def check_state(self, state: str | None) -> None:
        """Raise `InvalidArgument` if the state call would go to another origin: the engine would never make it."""
        if state is not None and origin(resolved(self.url, state)) != origin(self.url):
            raise InvalidArgument("state", "must have the origin of `url`, because the token is sent nowhere else")

    def call(self, url: str, token: Secret | None) -> Request:
        """The request of a single call that answers JSON."""
        sent = self.placed(token, resolved(self.url, url), ACCEPT_JSON)
        return Request(via="call", url=sent.url, headers=sent.headers)

    def ask_result(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for a result that the outcome names by its URL."""
        if isinstance(want, GetResult) and want.outcome.result_url is not None:
            return self.call(want.outcome.result_url, token)
        return None

    def read_call(self, want: Want, answer: Answer, *before: Any) -> tuple[Fact, ...]:
        """Read the answer to a call for the state or the result; `before` are arguments of `each` before the JSON."""
        if answer.status != 200:
            return ()
        value = parsed(answer.body, "an answer")
        if isinstance(want, GetResult):
            return (Value(value),)
        return self.meant(*before, value, snapshot=True) if isinstance(want, GetState) else ()

    def meant(self, *value: Any, at: Position | None = None, snapshot: bool = False) -> tuple[Fact, ...]:
        """Call `each`, and return what it means as a fact at the position `at`.

        Raises `InvalidArgument` if `each` returns anything else than it may.
        """
        meant = None if self.each is None else self.each(*value)
        if meant is None:
            if snapshot:
                return (Snapshot((), at),)
            return () if at is None else (Item(None, at, is_sign=False),)
        if isinstance(meant, Update):
            meant = fitting(meant)
        if isinstance(meant, OUTCOMES):
            return (Ended(meant, at),)
        if isinstance(meant, Update):
            return (Snapshot((meant,), at) if snapshot else Item(meant, at),)
        if isinstance(meant, Item | Snapshot | Ended):
            return (meant if meant.at is not None or at is None else replace(meant, at=at),)
        if isinstance(meant, Fact):
            return (meant,)
        raise InvalidArgument("each", f"must return an update, an outcome, a fact or None, not {type(meant).__name__}")


def fitting(update: Update) -> Update:
    """The update with values of its fields' types, read as leniently as Towline's own messages.

    `each` takes values from the server's JSON, and msgspec checks none when a struct is made. A stored end with an
    unfit value could never be read again.
    """
    kind, given = type(update), asdict(update)
    try:
        convert(given, kind)
    except ValidationError:
        fit = {}
        for known in fields(kind):
            with suppress(ValidationError):
                fit[known.name] = convert(given[known.name], known.type)
        update = build(kind, given, **fit)
    if isinstance(update, Progress) and update.fraction is not None:
        update = replace(update, fraction=fraction(update.fraction))
    return update


def parsed(text: str | bytes, what: str) -> Any:
    """Parse JSON. Raises `MalformedMessage` that names `what` was read."""
    try:
        return load(text)
    except ValueError as error:
        # Many servers send a heartbeat so (`data: ping`), also when the job is long dead.
        raise MalformedMessage(what, "$", "it is not JSON", job_id=None) from error


def parsed_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `MalformedMessage` that names `what` was read."""
    value = parsed(text, what)
    if not isinstance(value, dict):
        raise MalformedMessage(what, "$", "it is not a JSON object")
    return value


def object_of(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a list, each with its place in it."""
    return [
        (place, item) for place, item in enumerate(value if isinstance(value, list) else []) if isinstance(item, dict)
    ]
