"""Classify failures: the only place where errors become events.

It reads only the error's own facts and the place where it was raised. Sources: RFC 6455 section 7.4 for close codes,
RFC 9110 section 15 for HTTP status codes, and the behaviour of real servers. 1000 from a server means nothing by
itself.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ..._exceptions import (
    CertificateRejected,
    ConnectFailed,
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    HandshakeRefused,
    InvalidArgument,
    MessageTooBig,
    NameNotResolved,
    ProtocolFailed,
    ProtocolViolation,
    ProxyFailed,
    TokenRefused,
    TokenStoreError,
    UnexpectedResponse,
)
from ._events import Cause, Lost, Refused, TokenRejected
from ._policy import Advice


class Place(Enum):
    """The place where an error was raised."""

    TOKEN = "token"
    """While we requested a token."""
    UPGRADE = "upgrade"
    """While dialling, up to the server's answer to the upgrade."""
    SOCKET = "socket"
    """On the open socket."""
    SYNC = "sync"
    """At the state call, with a socket open."""
    STATUS = "status"
    """At the state call, without a socket or because of a silence: only an unambiguous answer counts."""


class AskState(Struct, frozen=True):
    """Fetch the job's state once to decide. If the job has not ended: `otherwise`, or `gone` for 404 or 410.

    `is_complete`: the link has shown everything before the end.
    """

    otherwise: Lost | Refused
    gone: Refused | None = None
    is_complete: bool = False


class Unavailable(Struct, frozen=True):
    """The server has no state of this job: follow the socket without it."""


Meaning: TypeAlias = Lost | TokenRejected | Refused | AskState | Unavailable | None

# Close codes that all connected clients receive at once: going away, restart, overload.
_SHARED_CLOSES: Final = frozenset({1001, 1012, 1013})
_REFUSED_CLOSES: Final = frozenset({1002, 1003, 1007, 1009, 1010})
_TOKEN_CLOSES: Final = frozenset({1008, 4401})
_PASSING_STATUSES: Final = frozenset({408, 425, 429})


def classify(
    error: BaseException,
    place: Place,
    *,
    path_up: bool = True,
    renewable: bool = True,
    strict_sync: bool = False,
    cancel_accepted: bool = False,
    state_answered: bool = False,
) -> Meaning:
    """Classify `error` at `place`; None if it has no consequence (a failed status fetch).

    `renewable`: a rejected token can be replaced. `strict_sync`: a server without a state of this job is not accepted.
    `cancel_accepted`: the server agreed to stop the job. `state_answered`: the state call worked before.
    """
    cause = cause_of(error, place, path_up=path_up)
    status = _status(error)
    if place in (Place.SYNC, Place.STATUS):
        if cancel_accepted and state_answered and status in (404, 410):
            return Refused(reason="gone", cause=cause, by_fetch=True)
        if place is Place.STATUS:
            return Refused(reason="gone", cause=cause, by_fetch=True) if status == 410 else None
        if not strict_sync:
            # The state call must not end a working socket. A fresh token may make the call work, so we try one once.
            return TokenRejected(cause=cause, by_fetch=True) if status in (401, 403) else Unavailable()
    if isinstance(error, TokenRefused):
        return Refused(reason="auth", cause=cause)
    if isinstance(error, InvalidArgument) and place in (Place.TOKEN, Place.UPGRADE):
        # The caller's mistake (a proxy variable that is not a URL, an unreadable CA file): a retry cannot help.
        return Refused(reason="usage", cause=cause, final=True)
    if status is not None:
        return _by_status(status, place, cause, renewable=renewable, cancel_accepted=cancel_accepted)
    if isinstance(error, ConnectionClosed):
        return _by_close(error.code, cause)
    if isinstance(error, CertificateRejected):
        return Refused(reason="protocol", cause=cause)
    if isinstance(error, MessageTooBig) and place is Place.SOCKET:
        return AskState(otherwise=Refused(reason="protocol", cause=cause, final=True))
    # Garbage in answer to an upgrade comes from another kind of server (on a wrong port, say): a retry cannot help.
    if isinstance(error, ProtocolViolation | MessageTooBig) and place is Place.UPGRADE:
        return Refused(reason="protocol", cause=cause)
    return Lost(cause=cause)


def _by_close(code: int, cause: Cause) -> Lost | TokenRejected | Refused:
    if code in _TOKEN_CLOSES:
        return TokenRejected(cause=cause)
    # 3000-3999 belong to frameworks, 4000-4999 to applications: by convention here, the lower half of each means
    # "try again", the upper half "never".
    never = 3500 <= code <= 3999 or 4500 <= code <= 4999
    if never or code in _REFUSED_CLOSES:
        return Refused(reason="protocol", cause=cause, final=never)
    return Lost(cause=cause)


def _by_status(status: int, place: Place, cause: Cause, *, renewable: bool, cancel_accepted: bool) -> Meaning:
    """Classify a status from the token's source, the upgrade, or a required state call."""
    if place is Place.TOKEN:
        return Refused(reason="auth", cause=cause) if status in (401, 403, 404, 410) else Lost(cause=cause)
    by_fetch = place is Place.SYNC
    if status == 401 or (status == 403 and renewable):
        return TokenRejected(cause=cause, by_fetch=by_fetch)
    if status == 403:
        return Refused(reason="auth", cause=cause)
    if status in (404, 410):
        gone = Refused(reason="gone", cause=cause)
        if by_fetch:
            return gone
        return AskState(otherwise=gone if cancel_accepted else Lost(cause=cause), gone=gone)
    if status in _PASSING_STATUSES or status >= 500:
        return Lost(cause=cause)
    # A redirect as the state answer, or an unreadable 200, comes from a captive portal or a proxy: a retry may reach
    # the server.
    if by_fetch and status < 400:
        return Lost(cause=cause)
    return Refused(reason="protocol", cause=cause)


def _status(error: BaseException) -> int | None:
    match error:
        case HandshakeRefused() | UnexpectedResponse():
            return error.status
        case ProxyFailed(status=407):
            return 407
    return None


def cause_of(error: BaseException, place: Place, *, path_up: bool = True) -> Cause:
    """Describe an error as a `Cause`."""
    text = str(error) or type(error).__name__
    code, shared, advice = _code(error), False, None
    match error:
        case ConnectionClosed():
            shared = error.code in _SHARED_CLOSES
            advice = close_advice(error.code, error.reason)
        case HandshakeRefused() | UnexpectedResponse():
            shared = error.status == 429 or error.status >= 500
            advice = Advice(retry_after=error.retry_after) if error.retry_after is not None else None
        case DeadlineExceeded() if place is Place.SOCKET:
            # If the path is up, silence means that the server (or a middlebox) died, which other clients see too.
            code, shared = "silence", path_up
    return Cause(
        code=code,
        text=text,
        shared=shared,
        violation=isinstance(error, ProtocolViolation),
        certificate=isinstance(error, CertificateRejected),
        advice=advice,
    )


def _code(error: BaseException) -> str:
    match error:
        case ConnectionClosed():
            return f"close {error.code}"
        case HandshakeRefused() | UnexpectedResponse():
            return f"http {error.status}"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "error")


_CODES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionBroken, "broken"),
    (ProtocolViolation, "violation"),
    (MessageTooBig, "too big"),
    (NameNotResolved, "dns"),
    (ConnectFailed, "connect"),
    (CertificateRejected, "certificate"),
    (ProxyFailed, "proxy"),
    (DeadlineExceeded, "timeout"),
    (TokenRefused, "token refused"),
    (TokenStoreError, "token store"),
    (InvalidArgument, "argument"),
    (ProtocolFailed, "protocol"),
)


def close_advice(code: int, reason: str) -> Advice | None:
    """Read the reconnect advice from the reason of a close that went to all clients; any other reason is text.

    The reason is `{"retry_in": seconds, "spread": seconds}` as JSON. Without a valid `retry_in` there is no advice; a
    missing or invalid `spread` is ignored.
    """
    if code not in _SHARED_CLOSES or not reason.startswith("{"):
        return None
    try:
        fields = msgspec.json.decode(reason, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None
    retry_in = _seconds(fields.get("retry_in"))
    return None if retry_in is None else Advice(retry_in=retry_in, spread=_seconds(fields.get("spread")))


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        seconds = msgspec.convert(value, float, strict=False)
    except msgspec.ValidationError:
        return None
    # JSON has no infinity, but a number too large for a float becomes one.
    return seconds if 0 <= seconds < float("inf") else None
