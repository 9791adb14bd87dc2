"""What each failure means, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from towline._exceptions import (
    CertificateRejected,
    ConnectFailed,
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    HandshakeRefused,
    InvalidArgument,
    MalformedMessage,
    MessageTooBig,
    NameNotResolved,
    ProtocolFailed,
    ProtocolViolation,
    ProxyFailed,
    TokenRefused,
    TokenStoreError,
    UnexpectedResponse,
)
from towline.statemachine import (
    Advice,
    AskState,
    Lost,
    Place,
    Refused,
    TokenRejected,
    Unavailable,
    cause_of,
    classify,
    close_advice,
)

SOCKET, UPGRADE, SYNC, STATUS, TOKEN = Place.SOCKET, Place.UPGRADE, Place.SYNC, Place.STATUS, Place.TOKEN


def closed(code: int, reason: str = "") -> ConnectionClosed:
    return ConnectionClosed(code, reason)


def answered(status: int, retry_after: float | None = None) -> UnexpectedResponse:
    return UnexpectedResponse(status, "not what was asked for", retry_after=retry_after)


def meaning(error: BaseException, place: Place, **flags: bool) -> str:
    """The meaning in words."""
    match classify(error, place, **flags):
        case None:
            return "nothing"
        case Lost():
            return "lost"
        case TokenRejected(by_fetch=by_fetch):
            return "token_rejected by fetch" if by_fetch else "token_rejected"
        case Refused(reason=reason, by_fetch=by_fetch, final=final):
            return f"refused({reason})" + " by fetch" * by_fetch + " for good" * final
        case Unavailable():
            return "unavailable"
        case AskState(otherwise=otherwise, gone=gone):
            after = (
                "lost"
                if isinstance(otherwise, Lost)
                else f"refused({otherwise.reason})" + " for good" * otherwise.final
            )
            return f"ask, else {after}" + ("" if gone is None else f", gone is refused({gone.reason})")


CLOSES = {
    **dict.fromkeys([1000, 1001, 1005, 1006, 1011, 1012, 1013, 1014], "lost"),
    **dict.fromkeys([1002, 1003, 1007, 1009, 1010], "refused(protocol)"),
    **dict.fromkeys([1008, 4401], "token_rejected"),
    **dict.fromkeys([3000, 3499, 4000, 4400, 4402, 4499], "lost"),
    **dict.fromkeys([3500, 3999, 4500, 4999], "refused(protocol) for good"),
    # Anything else: the budget bounds it.
    **dict.fromkeys([1004, 1015, 1016, 2999], "lost"),
}


@pytest.mark.parametrize(("code", "expected"), CLOSES.items())
def test_close_codes(code: int, expected: str) -> None:
    assert meaning(closed(code), SOCKET) == expected


LINES: list[tuple[str, BaseException, Place, dict[str, bool], str]] = [
    ("broken bytes", ProtocolViolation("a reserved bit", 1002), SOCKET, {}, "lost"),
    ("bad accept key", ProtocolViolation("the accept key is wrong"), UPGRADE, {}, "refused(protocol)"),
    ("too big a message", MessageTooBig("bytes", 1), SOCKET, {}, "ask, else refused(protocol) for good"),
    *(
        (f"{status} at upgrade", HandshakeRefused(status), UPGRADE, {}, "refused(protocol)")
        for status in (200, 204, 301, 302, 307, 400, 402, 405, 409, 418, 421, 426, 451)
    ),
    ("407 at upgrade", HandshakeRefused(407), UPGRADE, {}, "refused(protocol)"),
    ("407 from the proxy", ProxyFailed("it wants a password", status=407), UPGRADE, {}, "refused(protocol)"),
    ("502 from the proxy", ProxyFailed("no way there", status=502), UPGRADE, {}, "lost"),
    ("401 at upgrade", HandshakeRefused(401), UPGRADE, {"renewable": False}, "token_rejected"),
    ("401 at fetch", answered(401), SYNC, {"renewable": False}, "token_rejected by fetch"),
    ("401 at status", answered(401), STATUS, {}, "nothing"),
    ("403 with a provider", HandshakeRefused(403), UPGRADE, {"renewable": True}, "token_rejected"),
    ("403 without", HandshakeRefused(403), UPGRADE, {"renewable": False}, "refused(auth)"),
    ("403 at fetch with a provider", answered(403), SYNC, {"renewable": True}, "token_rejected by fetch"),
    ("403 at fetch without", answered(403), SYNC, {"renewable": False}, "token_rejected by fetch"),
    ("401 at a required fetch", answered(401), SYNC, {"strict_sync": True}, "token_rejected by fetch"),
    ("403 at a required fetch", answered(403), SYNC, {"strict_sync": True, "renewable": False}, "refused(auth)"),
    ("404 at upgrade", HandshakeRefused(404), UPGRADE, {}, "ask, else lost, gone is refused(gone)"),
    ("410 at upgrade", HandshakeRefused(410), UPGRADE, {}, "ask, else lost, gone is refused(gone)"),
    ("404 at fetch", answered(404), SYNC, {}, "unavailable"),
    ("404 at fetch, strict", answered(404), SYNC, {"strict_sync": True}, "refused(gone)"),
    # A side call never outranks a socket, whatever it answers.
    *(
        (f"{status} at fetch", answered(status), SYNC, {}, "unavailable")
        for status in (200, 302, 400, 405, 408, 409, 410, 422, 425, 426, 429, 500, 501, 503)
    ),
    *(
        (f"{status} at a required fetch", answered(status), SYNC, {"strict_sync": True}, expected)
        for status, expected in {
            **dict.fromkeys((400, 405, 409, 422), "refused(protocol)"),
            **dict.fromkeys((200, 302, 408, 425, 429, 500, 503), "lost"),
            410: "refused(gone)",
        }.items()
    ),
    # After an accepted cancel, a server that does not know the job any more has stopped it.
    (
        "404 at upgrade, cancelled",
        HandshakeRefused(404),
        UPGRADE,
        {"cancel_accepted": True},
        "ask, else refused(gone), gone is refused(gone)",
    ),
    *(
        (
            f"{status} at {place.value}, cancelled",
            answered(status),
            place,
            {"cancel_accepted": True, "state_answered": True},
            "refused(gone) by fetch",
        )
        for status in (404, 410)
        for place in (SYNC, STATUS)
    ),
    ("404 at fetch, cancelled, never answered", answered(404), SYNC, {"cancel_accepted": True}, "unavailable"),
    ("404 at status, not cancelled", answered(404), STATUS, {"state_answered": True}, "nothing"),
    *(
        (f"{status} at upgrade", HandshakeRefused(status), UPGRADE, {}, "lost")
        for status in (408, 425, 429, 500, 502, 503, 504, 599)
    ),
    ("dns", NameNotResolved("host"), UPGRADE, {}, "lost"),
    ("tcp", ConnectFailed("host", 1, "refused"), UPGRADE, {}, "lost"),
    ("tls reset", ConnectionBroken("reset"), UPGRADE, {}, "lost"),
    ("timeout of the attempt", DeadlineExceeded("the attempt", 10), UPGRADE, {}, "lost"),
    ("silence", DeadlineExceeded("a sign of life", 25), SOCKET, {}, "lost"),
    ("timeout of the fetch", DeadlineExceeded("the state", 10), SYNC, {}, "unavailable"),
    ("timeout of a required fetch", DeadlineExceeded("the state", 10), SYNC, {"strict_sync": True}, "lost"),
    ("no token for the fetch", TokenRefused(), SYNC, {}, "unavailable"),
    ("no token for a required fetch", TokenRefused(), SYNC, {"strict_sync": True}, "refused(auth)"),
    ("certificate", CertificateRejected("host", "expired"), UPGRADE, {}, "refused(protocol)"),
    ("provider refuses", TokenRefused(), TOKEN, {}, "refused(auth)"),
    ("provider fails", RuntimeError("a bug"), TOKEN, {}, "lost"),
    ("provider hangs", DeadlineExceeded("a token", 30), TOKEN, {}, "lost"),
    ("refresh 401", answered(401), TOKEN, {}, "refused(auth)"),
    ("refresh 425", answered(425, 7.0), TOKEN, {}, "lost"),
    ("refresh 429", answered(429, 7.0), TOKEN, {}, "lost"),
    ("refresh 503", answered(503), TOKEN, {}, "lost"),
    ("anything else", ValueError("?"), SOCKET, {}, "lost"),
    ("an unreadable state", MalformedMessage(None, "$", "not JSON"), SYNC, {}, "unavailable"),
    ("broken bytes at fetch", ProtocolViolation("no HTTP"), SYNC, {}, "unavailable"),
    ("an unreadable required state", MalformedMessage(None, "$", "?"), SYNC, {"strict_sync": True}, "lost"),
    # Without a socket only a clear answer counts.
    *((f"{status} at status", answered(status), STATUS, {}, "nothing") for status in (200, 302, 400, 404, 429, 503)),
    ("410 at status", answered(410), STATUS, {}, "refused(gone) by fetch"),
    ("dns at status", NameNotResolved("host"), STATUS, {}, "nothing"),
    ("timeout at status", DeadlineExceeded("the state", 5), STATUS, {}, "nothing"),
    ("certificate at status", CertificateRejected("host", "expired"), STATUS, {}, "nothing"),
    *(
        (f"a protocol that fails at {place.value}", ProtocolFailed("own", "read raised KeyError"), place, {}, expected)
        for place, expected in {
            TOKEN: "lost",
            UPGRADE: "lost",
            SOCKET: "lost",
            SYNC: "unavailable",
            STATUS: "nothing",
        }.items()
    ),
]


@pytest.mark.parametrize(
    ("error", "place", "flags", "expected"), [line[1:] for line in LINES], ids=[line[0] for line in LINES]
)
def test_line(error: BaseException, place: Place, flags: dict[str, bool], expected: str) -> None:
    assert meaning(error, place, **flags) == expected


def cause(error: BaseException, place: Place, **flags: Any) -> Any:
    return cause_of(error, place, **flags)


def test_what_hits_everybody_at_once_is_shared() -> None:
    for code, shared in {1001: True, 1012: True, 1013: True, 1000: False, 1006: False, 1011: False}.items():
        assert cause(closed(code), SOCKET).shared is shared
    for status, shared in {429: True, 500: True, 503: True, 404: False, 408: False, 425: False}.items():
        assert cause(HandshakeRefused(status), UPGRADE).shared is shared
    assert cause(DeadlineExceeded("a sign of life", 25), SOCKET, path_up=True).shared
    assert not cause(DeadlineExceeded("a sign of life", 25), SOCKET, path_up=False).shared
    assert not cause(DeadlineExceeded("the attempt", 10), UPGRADE).shared
    assert not cause(ConnectionBroken("reset"), SOCKET).shared


def test_marks_of_a_cause() -> None:
    assert cause(ProtocolViolation("a reserved bit"), SOCKET).violation
    assert not cause(closed(1002), SOCKET).violation
    assert cause(CertificateRejected("host", "expired"), UPGRADE).certificate
    assert not cause(ConnectionBroken("reset"), UPGRADE).certificate


@pytest.mark.parametrize(
    ("error", "place", "code"),
    [
        (closed(1012), SOCKET, "close 1012"),
        (HandshakeRefused(503), UPGRADE, "http 503"),
        (answered(503), SYNC, "http 503"),
        (DeadlineExceeded("a sign of life", 25), SOCKET, "silence"),
        (DeadlineExceeded("the attempt", 10), UPGRADE, "timeout"),
        (NameNotResolved("host"), UPGRADE, "dns"),
        (ConnectFailed("host", 1, "refused"), UPGRADE, "connect"),
        (ConnectionBroken("reset"), SOCKET, "broken"),
        (ProtocolViolation("a reserved bit"), SOCKET, "violation"),
        (MessageTooBig("bytes", 1), SOCKET, "too big"),
        (CertificateRejected("host", "expired"), UPGRADE, "certificate"),
        (ProxyFailed("no way"), UPGRADE, "proxy"),
        (TokenRefused(), TOKEN, "token refused"),
        (TokenStoreError("locked"), TOKEN, "token store"),
        (ProtocolFailed("own", "read raised KeyError"), SOCKET, "protocol"),
        (ValueError(), SOCKET, "error"),
    ],
)
def test_codes_are_stable(error: BaseException, place: Place, code: str) -> None:
    assert cause(error, place).code == code
    assert cause(error, place).text


def test_advice_of_the_server() -> None:
    assert cause(HandshakeRefused(503, retry_after=7), UPGRADE).advice == Advice(retry_after=7)
    assert cause(answered(429, 7.0), TOKEN).advice == Advice(retry_after=7)
    assert cause(HandshakeRefused(503), UPGRADE).advice is None
    told = cause(closed(1012, '{"retry_in": 2, "spread": 50}'), SOCKET).advice
    assert told == Advice(retry_in=2.0, spread=50.0)


@pytest.mark.parametrize("code", [1001, 1012, 1013])
def test_a_spread_is_read_from_a_close_for_everybody(code: int) -> None:
    assert close_advice(code, '{"retry_in": 2.5, "spread": 50}') == Advice(retry_in=2.5, spread=50.0)


@pytest.mark.parametrize("code", [1000, 1006, 1011, 4000])
def test_and_from_no_other(code: int) -> None:
    assert close_advice(code, '{"retry_in": 2.5, "spread": 50}') is None


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "restart",
        "{}",
        '{"spread": 2}',
        '{"why": "restart"}',
        '{"retry_in": -1, "spread": 5}',
        '{"retry_in": 1e999, "spread": 5}',
        '{"retry_in": true, "spread": 5}',
        '{"retry_in": 1, "spread": 5',
        '[{"retry_in": 1, "spread": 5}]',
        "{" * 60,
        '{"a":' * 24,
    ],
)
def test_anything_else_in_a_reason_is_text(reason: str) -> None:
    assert close_advice(1012, reason) is None


@pytest.mark.parametrize(
    ("reason", "spread"),
    [
        ('{"retry_in": 2}', None),
        ('{"retry_in": 2, "spread": null}', None),
        ('{"retry_in": 2, "spread": -5}', None),
        ('{"retry_in": 2, "spread": "soon"}', None),
        ('{"retry_in": "2", "spread": "5"}', 5.0),
        ('{"retry_in": 2, "spread": 5, "why": "deploy"}', 5.0),
    ],
)
def test_a_spread_that_does_not_fit_costs_only_itself(reason: str, spread: float | None) -> None:
    assert close_advice(1012, reason) == Advice(retry_in=2.0, spread=spread)


def test_text_of_a_server_is_escaped() -> None:
    text = cause(closed(1011, "\x1b]0;owned\x07\r\n"), SOCKET).text
    assert text.isprintable()


def test_a_fault_of_the_caller_is_not_charged_to_the_network() -> None:
    error = InvalidArgument("https_proxy", "must be a URL")
    assert meaning(error, UPGRADE) == meaning(error, TOKEN) == "refused(usage) for good"
    assert meaning(error, STATUS) == "nothing"
    assert cause_of(error, UPGRADE).code == "argument"
    assert cause_of(error, UPGRADE).text == "https_proxy: must be a URL"
