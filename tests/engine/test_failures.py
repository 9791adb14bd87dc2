"""What each error means for the lifecycle, alone: errors in, events out, one state call at most."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from towline import (
    CertificateRejected,
    ConnectFailed,
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    HandshakeRefused,
    InvalidArgument,
    JobCancelled,
    JobComplete,
    MessageTooBig,
    ProtocolViolation,
    TokenRefused,
    TowlineError,
    UnexpectedFailure,
    UnexpectedResponse,
)
from towline._exceptions import ProtocolFailed
from towline._facts import Answer, Closed, Ended, Fact, Follow, GetState, Mark, Meaning, Means, Received, Want
from towline.engine.attempts import Link
from towline.engine.failures import Failures
from towline.engine.reader import Reader
from towline.engine.sequence.findings import End, Finding
from towline.engine.settings import Settings
from towline.protocols.towline import Towline
from towline.sources import ResponseEnded, UnusableAnswer
from towline.statemachine import (
    Advice,
    AnyEvent,
    AskState,
    Cause,
    Lost,
    Place,
    Refused,
    Reopen,
    Snapshot,
    SourceRefused,
    TokenRejected,
    cause_of,
)

pytestmark = pytest.mark.anyio
END = End((), JobComplete(job="j1"))
Make = Callable[..., "Failing"]


@dataclass(frozen=True)
class Saying(Towline):
    """Reads whatever it is given as `facts`, or raises them, and notes what it was asked to read."""

    facts: Any = ()
    seen: list[tuple[Want, Received]] = field(default_factory=list)

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        self.seen.append((want, received))
        if isinstance(self.facts, BaseException):
            raise self.facts
        return self.facts


def saying(*facts: Fact) -> Saying:
    return Saying("ws://hub/ws/progress", "j1", facts=facts)


class Failing:
    """Failures of an attempt of generation 3, the facts they read, and what they lead to."""

    def __init__(self, settings: Settings) -> None:
        self.snapshot = Snapshot(generation=3)
        self.path_up = self.renewable = True
        self.answered = self.peer_known = self.moved = False
        self.retry: float | None = None
        self.want: Follow | None = Follow("websocket", Mark("m"))
        self.held_end: End | None = None
        self.awaited_end: End | None = None
        self.answer: Lost | Refused | End = END
        self.asked: list[AskState] = []
        self.did: list[tuple[str, object]] = []
        self.failures = Failures(
            settings,
            Reader(settings.protocol),
            want=lambda: self.want,
            snapshot=lambda: self.snapshot,
            path_up=lambda: self.path_up,
            renewable=lambda: self.renewable,
            answered=lambda: self.answered,
            moved=lambda: self.moved,
            held_end=self._take_held_end,
            awaited_end=lambda: self.awaited_end,
            end_of=lambda facts: End((), next(fact.outcome for fact in facts if isinstance(fact, Ended))),
            ask_state=self._ask_state,
            act=self._act,
            skip_state=lambda: self.did.append(("skip", None)),
            post=lambda event: self.did.append(("post", event)),
            retry=lambda: self.retry,
            forget_cursor=lambda: self.did.append(("forget cursor", None)),
        )

    def _take_held_end(self) -> End | None:
        held, self.held_end = self.held_end, None
        return held

    async def _ask_state(self, meaning: AskState) -> Lost | Refused | End:
        await anyio.sleep(1)
        self.asked.append(meaning)
        return self.answer

    def _act(self, finding: Finding, generation: int) -> None:
        self.did.append((f"act in {generation}", finding))

    async def fail(self, error: TowlineError, place: Place, fetch: int | None = None) -> list[tuple[str, object]]:
        """What the error leads to, in the attempt's generation though another may have begun."""
        self.snapshot = Snapshot(
            generation=4, cancel_accepted=self.snapshot.cancel_accepted, peer_known=self.peer_known
        )
        await self.failures.failed(error, place, 3, fetch)
        return self.did


@pytest.fixture
def failing(make_settings: Callable[..., Settings]) -> Make:
    return lambda **changes: Failing(make_settings(**changes))


# --- each meaning ----------------------------------------------------------------------------------------------------


async def test_a_lost_link_is_an_event_of_its_own_attempt(failing: Make) -> None:
    error = ConnectionBroken("reset")
    assert await failing().fail(error, Place.SOCKET) == [
        ("post", Lost(generation=3, cause=cause_of(error, Place.SOCKET)))
    ]


async def test_a_rejected_token_is_an_event(failing: Make) -> None:
    error = HandshakeRefused(401)
    assert await failing().fail(error, Place.UPGRADE) == [
        ("post", TokenRejected(generation=3, cause=cause_of(error, Place.UPGRADE)))
    ]


@pytest.mark.parametrize(
    ("error", "place", "reason", "final"),
    [
        (TokenRefused("logged out"), Place.TOKEN, "auth", False),
        (InvalidArgument("proxy", "is no URL"), Place.UPGRADE, "usage", True),
        (CertificateRejected("hub", "expired"), Place.UPGRADE, "protocol", False),
        (ProtocolViolation("garbage"), Place.UPGRADE, "protocol", False),
        (ConnectionClosed(4500), Place.SOCKET, "protocol", True),
    ],
)
async def test_a_refusal_is_an_event_with_its_reason(
    failing: Make, error: TowlineError, place: Place, reason: Any, final: bool
) -> None:
    refused = Refused(generation=3, reason=reason, cause=cause_of(error, place), final=final)
    assert await failing().fail(error, place) == [("post", refused)]


async def test_a_state_call_that_fails_is_skipped_and_the_socket_stays(failing: Make) -> None:
    assert await failing().fail(UnexpectedResponse(503, "no"), Place.SYNC, fetch=7) == [("skip", None)]


async def test_a_state_call_whose_token_is_rejected_names_its_fetch(failing: Make) -> None:
    error = UnexpectedResponse(401, "no")
    rejected = TokenRejected(generation=3, fetch=7, cause=cause_of(error, Place.SYNC), by_fetch=True)
    assert await failing().fail(error, Place.SYNC, fetch=7) == [("post", rejected)]


async def test_a_required_state_that_cannot_be_had_is_a_lost_attempt(failing: Make) -> None:
    error = UnexpectedResponse(503, "no")
    lost = Lost(generation=3, fetch=7, cause=cause_of(error, Place.SYNC))
    assert await failing(require_state=True).fail(error, Place.SYNC, fetch=7) == [("post", lost)]


async def test_a_required_state_of_an_unknown_job_is_a_refusal(failing: Make) -> None:
    error = UnexpectedResponse(404, "no")
    refused = Refused(generation=3, fetch=7, reason="gone", cause=cause_of(error, Place.SYNC))
    assert await failing(require_state=True).fail(error, Place.SYNC, fetch=7) == [("post", refused)]


@pytest.mark.parametrize("error", [UnexpectedResponse(404, "no"), UnexpectedResponse(503, "no"), ConnectionBroken("?")])
async def test_a_look_at_the_state_that_fails_has_no_consequence(failing: Make, error: TowlineError) -> None:
    assert await failing().fail(error, Place.STATUS) == []


async def test_a_look_at_the_state_of_a_job_that_is_gone_says_so(failing: Make) -> None:
    error = UnexpectedResponse(410, "no")
    refused = Refused(generation=3, fetch=7, reason="gone", cause=cause_of(error, Place.STATUS), by_fetch=True)
    assert await failing().fail(error, Place.STATUS, fetch=7) == [("post", refused)]


# --- the facts -------------------------------------------------------------------------------------------------------


async def test_a_403_means_the_token_only_if_another_can_be_had(failing: Make) -> None:
    error = HandshakeRefused(403)
    one = failing()
    (action,) = await one.fail(error, Place.UPGRADE)
    assert isinstance(action[1], TokenRejected)
    other = failing()
    other.renewable = False
    assert await other.fail(error, Place.UPGRADE) == [
        ("post", Refused(generation=3, reason="auth", cause=cause_of(error, Place.UPGRADE)))
    ]


@pytest.mark.parametrize("path_up", [True, False])
async def test_silence_is_shared_only_if_there_is_a_path(failing: Make, path_up: bool) -> None:
    one = failing()
    one.path_up = path_up
    ((_, event),) = await one.fail(DeadlineExceeded("a pong", 10), Place.SOCKET)
    assert isinstance(event, Lost)
    assert (event.cause.code, event.cause.shared) == ("silence", path_up)


@pytest.mark.parametrize(("accepted", "answered"), [(True, True), (True, False), (False, True)])
async def test_a_job_that_was_known_and_is_gone_after_an_accepted_cancel_is_a_refusal(
    failing: Make, accepted: bool, answered: bool
) -> None:
    one, error = failing(), UnexpectedResponse(404, "no")
    one.snapshot, one.answered = Snapshot(cancel_accepted=accepted), answered
    did = await one.fail(error, Place.SYNC, fetch=7)
    if accepted and answered:
        cause = cause_of(error, Place.SYNC)
        assert did == [("post", Refused(generation=3, fetch=7, reason="gone", cause=cause, by_fetch=True))]
    else:
        assert did == [("skip", None)]


# --- the job's state decides -----------------------------------------------------------------------------------------


async def test_an_unknown_job_at_the_upgrade_is_asked_about_and_may_have_ended(failing: Make) -> None:
    one = failing()
    assert await one.fail(HandshakeRefused(404), Place.UPGRADE) == [("act in 3", END)]
    (meaning,) = one.asked
    assert meaning.gone is not None
    assert meaning.gone.reason == "gone"


@pytest.mark.parametrize("cancel_accepted", [True, False])
async def test_the_answer_for_a_job_that_is_gone_or_goes_on_becomes_an_event_of_the_attempt(
    failing: Make, cancel_accepted: bool
) -> None:
    error = HandshakeRefused(410)
    cause = cause_of(error, Place.UPGRADE)
    gone = Refused(reason="gone", cause=cause)
    for answer in (gone, Lost(cause=cause)):
        one = failing()
        one.snapshot = Snapshot(cancel_accepted=cancel_accepted)
        one.answer = answer
        ((how, event),) = await one.fail(error, Place.UPGRADE)
        assert how == "post"
        assert type(event) is type(answer)
        assert event == type(answer)(**{**_fields(answer), "generation": 3})
        assert one.asked == [AskState(otherwise=gone if cancel_accepted else Lost(cause=cause), gone=gone)]


def _fields(event: AnyEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


async def test_a_message_that_is_too_big_ends_the_attempts_unless_the_job_has_ended(failing: Make) -> None:
    error = MessageTooBig("bytes in a message", 10)
    one = failing()
    refused = Refused(reason="protocol", cause=cause_of(error, Place.SOCKET), final=True)
    one.answer = refused
    ((_, event),) = await one.fail(error, Place.SOCKET)
    assert event == Refused(generation=3, reason="protocol", cause=refused.cause, final=True)
    assert one.asked == [AskState(otherwise=refused)]


async def test_an_end_that_a_state_reported_during_a_broken_replay_stands(failing: Make) -> None:
    one = failing(protocol=saying(Means("lost")))
    one.held_end = held = End((), JobCancelled(job="j1"))
    assert await one.fail(ConnectionBroken("reset"), Place.SOCKET) == [("act in 3", held)]
    assert one.asked == []


@pytest.mark.parametrize("place", [Place.SYNC, Place.UPGRADE, Place.STATUS])
async def test_only_a_broken_socket_asks_for_a_held_end(failing: Make, place: Place) -> None:
    one = failing()
    one.held_end = END
    await one.fail(UnexpectedResponse(503, "no"), place)
    assert one.held_end is END


# --- what the protocol says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [Place.UPGRADE, Place.SOCKET, Place.SYNC, Place.STATUS])
async def test_the_protocol_decides_what_an_answer_means(failing: Make, place: Place) -> None:
    error = UnexpectedResponse(503, "no")
    cause, by_fetch = cause_of(error, place), place in (Place.SYNC, Place.STATUS)
    expected: dict[Meaning, AnyEvent] = {
        "lost": Lost(generation=3, fetch=7, cause=cause),
        "auth": TokenRejected(generation=3, fetch=7, cause=cause, by_fetch=by_fetch),
        "refused": Refused(generation=3, fetch=7, reason="protocol", cause=cause, by_fetch=by_fetch, final=True),
        "gone": Refused(generation=3, fetch=7, reason="gone", cause=cause, by_fetch=by_fetch),
        "source": SourceRefused(generation=3, cause=cause),
    }
    for meaning, event in expected.items():
        did = await failing(protocol=saying(Means(meaning))).fail(error, place, fetch=7)
        if (by_fetch and meaning in ("lost", "source")) or (place is Place.STATUS and meaning == "auth"):
            assert did == ([("skip", None)] if place is Place.SYNC else []), "the socket works"
        else:
            assert did == [("post", event)]


async def test_a_refused_cursor_is_forgotten_and_the_link_opened_anew(failing: Make) -> None:
    error = ConnectionClosed(4009)
    assert await failing(protocol=saying(Means("cursor"))).fail(error, Place.SOCKET) == [
        ("forget cursor", None),
        ("post", Reopen(generation=3, cause=cause_of(error, Place.SOCKET))),
    ]


async def test_an_end_of_the_stream_that_ends_the_job_is_looked_up_in_the_state(failing: Make) -> None:
    one = failing(protocol=saying(Means("ended")))
    error = ConnectionClosed(1000)
    assert await one.fail(error, Place.SOCKET) == [("act in 3", END)]
    cause = cause_of(error, Place.SOCKET)
    assert one.asked == [AskState(otherwise=Lost(cause=cause), gone=Refused(reason="gone", cause=cause))]


async def test_a_message_that_says_that_the_job_has_ended_came_after_everything_else(failing: Make) -> None:
    one = failing()
    await one.failures.meant("ended", Link(3))
    assert [meaning.is_complete for meaning in one.asked] == [True]


async def test_an_ordinary_end_of_a_response_asks_the_state_and_may_prove_an_end(failing: Make) -> None:
    one, error = failing(protocol=saying()), ResponseEnded("the server ended the response")
    assert await one.fail(error, Place.SOCKET) == [("act in 3", END)]
    one.moved = True
    await one.fail(error, Place.SOCKET)
    lost = Lost(cause=cause_of(error, Place.SOCKET))
    assert one.asked == [AskState(otherwise=lost), AskState(otherwise=replace(lost, after_news=True))]
    other = failing(protocol=saying())
    other.awaited_end = held = End((), JobCancelled(job="j1"))
    assert await other.fail(ConnectionBroken("cut"), Place.SOCKET) != [("act in 3", held)]
    other.did.clear()
    assert await other.fail(error, Place.SOCKET) == [("act in 3", held)]


async def test_an_end_in_an_answer_stands(failing: Make) -> None:
    one = failing(protocol=saying(Ended(JobCancelled(job="j1")), Means("refused")))
    assert await one.fail(HandshakeRefused(410), Place.UPGRADE) == [("act in 3", End((), JobCancelled(job="j1")))]
    assert one.asked == []


@pytest.mark.parametrize(
    ("error", "place", "want", "received"),
    [
        (HandshakeRefused(503), Place.UPGRADE, Follow("websocket", Mark("m")), Answer(503)),
        (
            UnusableAnswer(Answer(500, {}, b"x"), "no"),
            Place.SOCKET,
            Follow("websocket", Mark("m")),
            Answer(500, {}, b"x"),
        ),
        (ConnectionClosed(4000, "bye"), Place.SOCKET, Follow("websocket", Mark("m")), Closed(4000, "bye")),
        (ConnectionClosed(1006), Place.SOCKET, Follow("websocket", Mark("m")), Closed()),
        (ConnectionBroken("reset"), Place.SOCKET, Follow("websocket", Mark("m")), Closed()),
        (UnexpectedResponse(503, "no"), Place.SYNC, GetState(), Answer(503)),
        (UnexpectedResponse(503, "no"), Place.STATUS, GetState(), Answer(503)),
    ],
)
async def test_the_protocol_reads_what_the_server_said(
    failing: Make, error: TowlineError, place: Place, want: Want, received: Received
) -> None:
    protocol = saying()
    await failing(protocol=protocol).fail(error, place)
    assert protocol.seen == [(want, received)]


async def test_where_the_server_said_nothing_the_protocol_reads_nothing(failing: Make) -> None:
    protocol = saying(Means("gone"))
    one = failing(protocol=protocol)
    await one.fail(DeadlineExceeded("a pong", 10), Place.SOCKET)
    await one.fail(UnexpectedResponse(503, "no"), Place.TOKEN)
    one.want = None
    await one.fail(ConnectionBroken("reset"), Place.SOCKET)
    assert protocol.seen == []
    assert all(isinstance(event, Lost) for _, event in one.did)


async def test_a_protocol_that_fails_is_named_and_the_usual_meaning_stands(failing: Make) -> None:
    error = HandshakeRefused(503)
    one = failing(protocol=Saying("ws://hub/ws/progress", "j1", facts=ZeroDivisionError()))
    assert await one.fail(error, Place.UPGRADE) == [("post", Lost(generation=3, cause=cause_of(error, Place.UPGRADE)))]
    assert isinstance(one.failures.last, ProtocolFailed)
    assert isinstance(one.failures.last.__cause__, ZeroDivisionError)


async def test_a_message_that_means_something_for_its_link_is_an_event(failing: Make) -> None:
    cause = Cause(code="auth", text="the server's message means: auth")
    one = failing()
    await one.failures.meant("auth", Link(2))
    assert one.did == [("post", TokenRejected(generation=2, cause=cause))]
    assert one.failures.last is None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("status", [404, 410])
async def test_a_job_that_a_poll_no_longer_finds_is_gone_if_it_was_there(
    failing: Make, status: int, known: bool
) -> None:
    error = UnusableAnswer(Answer(status), "no state")
    cause = cause_of(error, Place.SOCKET)
    one = failing()
    one.peer_known = known
    assert await one.fail(error, Place.SOCKET) == [
        ("post", Refused(generation=3, reason="gone", cause=cause) if known else Lost(generation=3, cause=cause))
    ]


async def test_the_wait_that_a_stream_asked_for_is_the_advice_of_its_end(failing: Make) -> None:
    for place, retry in ((Place.SOCKET, 9.0), (Place.UPGRADE, None)):
        one = failing()
        one.retry = 9.0
        ((_, event),) = await one.fail(ConnectionBroken("reset"), place)
        assert isinstance(event, Lost)
        assert event.cause.advice == (None if retry is None else Advice(retry_after=retry))


async def test_the_advice_of_an_error_comes_before_that_of_its_stream(failing: Make) -> None:
    one = failing()
    one.retry = 9.0
    ((_, event),) = await one.fail(UnusableAnswer(Answer(503), "no", retry_after=30.0), Place.SOCKET)
    assert isinstance(event, Lost)
    assert event.cause.advice == Advice(retry_after=30.0)


# --- the last failure ------------------------------------------------------------------------------------------------


async def test_the_last_failure_is_that_of_an_attempt_and_not_of_a_look(failing: Make) -> None:
    one = failing()
    assert one.failures.last is None
    first, second = ConnectFailed("hub", 80, "refused"), UnexpectedResponse(503, "no")
    await one.fail(first, Place.UPGRADE)
    await one.fail(UnexpectedResponse(410, "no"), Place.STATUS)
    assert one.failures.last is first
    await one.fail(second, Place.SYNC)
    assert one.failures.last is second


async def test_the_last_failure_keeps_nothing_of_its_attempt_alive(failing: Make) -> None:
    class Attempt:
        pass

    def attempt() -> tuple[ConnectionBroken, weakref.ref[Attempt]]:
        kept = Attempt()
        try:
            raise ConnectionBroken("reset")
        except ConnectionBroken as error:
            return error, weakref.ref(kept)

    one = failing()
    error, kept = attempt()
    await one.fail(error, Place.SOCKET)
    assert one.failures.last is error
    gc.collect()
    assert kept() is None


async def test_an_unexpected_failure_gives_up_in_the_present_generation(failing: Make) -> None:
    one, failure = failing(), UnexpectedFailure("the engine", "KeyError")
    cause = Cause(code="unexpected", text="the engine raised KeyError")
    assert one.failures.unexpected(failure) == Refused(generation=3, reason="protocol", cause=cause)
    assert one.failures.last is failure
