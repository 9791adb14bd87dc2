"""What each error means for the lifecycle, alone: errors in, events out, one question about the job at most."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

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
from towline.engine.failures import Failures
from towline.engine.recovery import End, Finding
from towline.engine.settings import Settings
from towline.statemachine import AnyEvent, AskState, Cause, Lost, Place, Refused, Snapshot, TokenRejected, cause_of

pytestmark = pytest.mark.anyio
END = End((), JobComplete(job="j1"))
Make = Callable[..., "Failing"]


class Failing:
    """Failures of an attempt of generation 3, the facts they read, and what they lead to."""

    def __init__(self, settings: Settings) -> None:
        self.snapshot = Snapshot(generation=3)
        self.path_up = self.renewable = True
        self.answered = False
        self.held_end: End | None = None
        self.answer: Lost | Refused | End = END
        self.asked: list[AskState] = []
        self.did: list[tuple[str, object]] = []
        self.failures = Failures(
            settings,
            snapshot=lambda: self.snapshot,
            path_up=lambda: self.path_up,
            renewable=lambda: self.renewable,
            answered=lambda: self.answered,
            held_end=self._take_held_end,
            ask_state=self._ask_state,
            act=self._act,
            skip_state=lambda: self.did.append(("skip", None)),
            post=lambda event: self.did.append(("post", event)),
            report=lambda error: self.did.append(("report", error)),
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
        self.snapshot = Snapshot(generation=4, cancel_accepted=self.snapshot.cancel_accepted)
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
    assert await failing(strict_sync=True).fail(error, Place.SYNC, fetch=7) == [("post", lost)]


async def test_a_required_state_of_an_unknown_job_is_a_refusal(failing: Make) -> None:
    error = UnexpectedResponse(404, "no")
    refused = Refused(generation=3, fetch=7, reason="gone", cause=cause_of(error, Place.SYNC))
    assert await failing(strict_sync=True).fail(error, Place.SYNC, fetch=7) == [("post", refused)]


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
    one = failing(classify=lambda error: "lost")
    one.held_end = held = End((), JobCancelled(job="j1"))
    assert await one.fail(ConnectionBroken("reset"), Place.SOCKET) == [("act in 3", held)]
    assert one.asked == []


@pytest.mark.parametrize("place", [Place.SYNC, Place.UPGRADE, Place.STATUS])
async def test_only_a_broken_socket_asks_for_a_held_end(failing: Make, place: Place) -> None:
    one = failing()
    one.held_end = END
    await one.fail(UnexpectedResponse(503, "no"), place)
    assert one.held_end is END


# --- the application's classifier ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [Place.UPGRADE, Place.SYNC])
async def test_the_application_classifies_errors_its_own_way(failing: Make, place: Place) -> None:
    error = UnexpectedResponse(503, "no")
    cause = cause_of(error, place)
    expected: dict[str, AnyEvent] = {
        "lost": Lost(generation=3, fetch=7, cause=cause),
        "refused": Refused(generation=3, fetch=7, reason="protocol", cause=cause, final=True),
        "token_rejected": TokenRejected(generation=3, fetch=7, cause=cause, by_fetch=place is Place.SYNC),
    }
    for answer, event in expected.items():
        seen: list[BaseException] = []
        one = failing(classify=lambda error, answer=answer, seen=seen: (seen.append(error), answer)[1])
        assert await one.fail(error, place, fetch=7) == [("post", event)]
        assert seen == [error]


async def test_a_classifier_that_keeps_the_meaning_changes_nothing(failing: Make) -> None:
    assert await failing(classify=lambda error: None).fail(UnexpectedResponse(503, "no"), Place.SYNC) == [
        ("skip", None)
    ]


async def test_a_classifier_is_not_asked_about_looks_and_about_what_the_state_decides(failing: Make) -> None:
    seen: list[BaseException] = []
    for error, place in ((UnexpectedResponse(410, "no"), Place.STATUS), (HandshakeRefused(404), Place.UPGRADE)):
        assert await failing(classify=seen.append).fail(error, place)
    assert seen == []


@pytest.mark.parametrize("raised", [ZeroDivisionError(), asyncio.CancelledError(), None])
async def test_a_classifier_that_raises_or_answers_nonsense_is_reported_and_the_meaning_stands(
    failing: Make, raised: BaseException | None
) -> None:
    def classify(error: BaseException) -> Any:
        if raised is not None:
            raise raised
        return "perhaps"

    error = ConnectionBroken("reset")
    (report, lost) = await failing(classify=classify).fail(error, Place.SOCKET)
    assert report[0] == "report"
    assert report[1] is raised if raised is not None else isinstance(report[1], InvalidArgument)
    assert lost == ("post", Lost(generation=3, cause=cause_of(error, Place.SOCKET)))


async def test_a_classifier_that_ends_the_process_ends_it(failing: Make) -> None:
    def classify(error: BaseException) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await failing(classify=classify).fail(ConnectionBroken("reset"), Place.SOCKET)


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
