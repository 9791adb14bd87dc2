"""The values between the engine and a protocol: what the engine wants, what the server said, and what that means.

A protocol is a frozen value with two pure functions. `ask` turns a want into a request, `read` turns what the server
said into facts. Everything here is an immutable value and knows no I/O, clock or server.

The values are msgspec structs without garbage collection. Three of them are made for each message, and a NamedTuple
or a dataclass costs five to seven times as much (`benchmarks/reading.py` measures a whole message).
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import force_setattr

from ._secret import Secret
from ._secret import Text as Text

#: How a request is made: a WebSocket, Server-Sent Events, lines (NDJSON), polling, or a single call.
Via: TypeAlias = Literal["websocket", "events", "lines", "poll", "call"]

#: When a new link is in step: once it is open, at its first fact, or when the job's state was fetched. The state is
#: fetched as well if no fact comes for `Policy.fetch_deadline`.
InStepAt: TypeAlias = Literal["open", "first_fact", "state"]

#: What a protocol promises about the updates.
#:
#: - `exact`: every update once and in order, and the end once.
#: - `end exact`: the end once, and the latest progress. A report says that updates between may be missing.
#: - `what arrives`: updates as they come. Each reconnect reports an unknown gap.
Promise: TypeAlias = Literal["exact", "end exact", "what arrives"]

#: What an answer or a close means for the connection.
#:
#: - `lost`: the link or the call failed; reconnect or repeat it.
#: - `refused`: the server will not serve this client; give up.
#: - `auth`: the server rejects the token; repeat with a fresh one.
#: - `gone`: the server does not know the job.
#: - `ended`: the stream is over because the job has ended; the state says how.
#: - `cursor`: the server cannot continue from the position; reconnect without it.
#: - `source`: this source cannot be used; use the next one.
Meaning: TypeAlias = Literal["lost", "refused", "auth", "gone", "ended", "cursor", "source"]

#: The answer to a cancel request: the job will stop, it had ended already, or the server does not say.
CancelWord: TypeAlias = Literal["accepted", "too_late", "unknown"]


class _Value(Struct, frozen=True, gc=False):
    """Settings that all values share."""


# --- positions ---------------------------------------------------------------------------------------------------


class Numbered(_Value, frozen=True, gc=False):
    """A position in a numbered log: event `seq` of the log `epoch`. Numbers show order, duplicates and gaps."""

    seq: int
    epoch: str = ""


class Mark(_Value, frozen=True, gc=False):
    """An opaque position that the server understands. Marks show duplicates only.

    An empty mark clears the position: a new link starts without one.
    """

    text: str


Position: TypeAlias = Numbered | Mark


# --- what the engine wants ---------------------------------------------------------------------------------------


class Follow(_Value, frozen=True, gc=False):
    """Follow the job through the source `via`, after the position `after` (None: from the start).

    `client` is a random name of this follower and `socket` the number of its connection (1, 2, 3 …), for servers that
    close an older connection of the same follower. Without a name there is no number.
    """

    via: Via
    after: Position | None = None
    client: str = ""
    socket: int = 0


class GetState(_Value, frozen=True, gc=False):
    """Fetch the job's state once."""


class CancelJob(_Value, frozen=True, gc=False):
    """Ask the server to cancel the job. A repeat has the same `key`."""

    key: str


class GetResult(_Value, frozen=True, gc=False):
    """Fetch the result of a job that completed with `outcome` (a `JobComplete`)."""

    outcome: Any


class RefreshToken(_Value, frozen=True, gc=False):
    """Exchange the token for a fresh one."""


Want: TypeAlias = Follow | GetState | CancelJob | GetResult | RefreshToken


class Request(_Value, frozen=True, gc=False, kw_only=True):
    """A request for the engine to make. Where the token goes is the protocol's decision.

    - `url`: its origin must be the protocol's own, otherwise the engine refuses the request. A WebSocket's URL may have
      the scheme `http` or `https`, and any other URL `ws` or `wss`.
    - `opening`: the messages to send when a WebSocket has opened.
    - `in_step`: when the link is in step.
    - `silence`: the seconds between keep-alives that the server promises, or None.
    """

    via: Via
    url: Text
    method: str = "GET"
    headers: tuple[tuple[str, Text], ...] = ()
    body: bytes | Secret | None = None
    subprotocols: tuple[Text, ...] = ()
    opening: tuple[Text, ...] = ()
    in_step: InStepAt = "open"
    silence: float | None = None


# --- what the server said ----------------------------------------------------------------------------------------


class Message(_Value, frozen=True, gc=False):
    """One WebSocket message."""

    data: str | bytes


class ServerEvent(_Value, frozen=True, gc=False):
    """One event of an event stream. `id` is the event's own: None if it has none, "" if it clears the last one."""

    type: str
    data: str
    id: str | None = None


class Line(_Value, frozen=True, gc=False):
    """One line of a body that is read line by line, without its end."""

    text: str


class Answer(_Value, frozen=True, gc=False):
    """The answer to a call, a poll, or a refused stream. The names of `headers` become lower case."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""

    def __post_init__(self) -> None:
        if any(name != name.lower() for name in self.headers):
            force_setattr(self, "headers", {name.lower(): value for name, value in self.headers.items()})


class Closed(_Value, frozen=True, gc=False):
    """A stream has ended: `code` and `reason` of a WebSocket's close, None if there was no close frame."""

    code: int | None = None
    reason: str = ""


Received: TypeAlias = Message | ServerEvent | Line | Answer | Closed


# --- what it means -----------------------------------------------------------------------------------------------


class Item(_Value, frozen=True, gc=False):
    """One update, or None for something with nothing to show. `at` is its position.

    `is_sign` is false for a keep-alive: it proves that the link works, but not that the job does.
    """

    update: Any
    at: Position | None = None
    is_sign: bool = True


class Snapshot(_Value, frozen=True, gc=False):
    """The job's present state, as updates. `at` is the position that it covers."""

    updates: tuple[Any, ...] = ()
    at: Position | None = None


class Ended(_Value, frozen=True, gc=False):
    """The job has ended with `outcome`."""

    outcome: Any
    at: Position | None = None


class InStep(_Value, frozen=True, gc=False):
    """The link is in step: what follows is new."""


class Replaying(_Value, frozen=True, gc=False):
    """The server now replays the events `first` to `last` of the log `epoch`; none if `first` is above `last`."""

    first: int
    last: int
    epoch: str = ""


class Send(_Value, frozen=True, gc=False):
    """Send this message on the WebSocket."""

    data: Text


class Wait(_Value, frozen=True, gc=False):
    """Wait this many seconds before the next request of the same kind."""

    seconds: float


class CancelAnswer(_Value, frozen=True, gc=False):
    """The answer to a cancel request."""

    answer: CancelWord


class NewToken(_Value, frozen=True, gc=False):
    """A fresh token, and its lifetime in seconds (None: the server does not say)."""

    token: Secret
    expires_in: float | None = None


class Value(_Value, frozen=True, gc=False):
    """The result of the job."""

    value: Any


class Ask(_Value, frozen=True, gc=False):
    """The state is known, and the answer to `want` completes it: a result or a reason that another call has.

    Without that answer the other facts stand.
    """

    want: GetResult


class Means(_Value, frozen=True, gc=False):
    """What the answer or the close means. Without this fact the engine's own table decides."""

    what: Meaning


Fact: TypeAlias = (
    Item | Snapshot | Ended | InStep | Replaying | Send | Wait | CancelAnswer | NewToken | Value | Ask | Means
)

#: The facts about the job itself; the rest is about the connection.
JOB_FACTS: Final = (Item, Snapshot, Ended, InStep, Replaying)


def has_sign(facts: Iterable[Fact]) -> bool:
    """Whether the facts are a sign that the job is alive, beyond the link."""
    return any(fact.is_sign if isinstance(fact, Item) else isinstance(fact, Snapshot | Ended) for fact in facts)


class Protocol(typing.Protocol):
    """How to follow jobs on one kind of server: a frozen value with two pure functions.

    - `name` identifies the protocol in records and on the command line.
    - `url` is the address of the job. Requests and the token go to its origin only.
    - `job` is the job's id, stamped on every update.
    - `sources` names the ways to follow the job, in order of preference.
    - `promise` says what the updates are worth.

    A protocol may also have:

    - `stall_limit`: the seconds without a sign of the job after which the engine gives up.
    - `token_of_job`: true if each job has its own token. Then there must be one, and a store keeps it.
    - `api_origin`: another origin that requests and the token may go to.
    - `require_state`: refuse a server that has no state of the job.
    - `replays_end`: a new link shows what came before the end. So an end that only the state call knows waits until
      one has.
    """

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def job(self) -> str: ...
    @property
    def sources(self) -> tuple[Via, ...]: ...
    @property
    def promise(self) -> Promise: ...

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None if this server has no such request."""

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        """Return what the server's answer to `want` means.

        Facts of one call share a position. An `Answer` or `Closed` without facts gets the engine's own meaning. Raises
        `MalformedMessage` for a message that cannot be read. With `seq` and `epoch` it takes its place in the log.
        """


def is_resumed(protocol: Protocol, want: Follow, token: Secret | None, request: Request) -> bool:
    """Whether `request` asks the server to go on after `want.after`: without the position it would be another one.

    A protocol without such a request leaves an unknown gap at each reconnect, and the sequencer must know that.
    """
    if want.after is None:
        return False
    return protocol.ask(Follow(want.via, None, want.client, want.socket), token) != request
