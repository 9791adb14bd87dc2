"""The reader alone: a protocol that does not keep its contract is named, and an end read before stands."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from towline import Exhausted, JobComplete, JobFailed, MalformedMessage, Output, Progress, ProtocolFailed, Secret
from towline._facts import (
    Answer,
    CancelAnswer,
    Closed,
    Ended,
    Fact,
    Follow,
    GetState,
    InStep,
    Item,
    Mark,
    Means,
    Message,
    Numbered,
    Promise,
    Received,
    Request,
    Snapshot,
    Via,
    Want,
)
from towline.engine.reader import FACTS_LIMIT, MARK_LIMIT, Reader
from towline.protocols import Messages

SAID = Message("{}")
WANT = Follow("websocket")
PROGRESS = Item(Progress(fraction=0.5), Numbered(1, "e"))
END = Ended(JobComplete(), Numbered(2, "e"))


class Own:
    """A protocol of the program's, made of two functions."""

    name = "own"
    url = "wss://hub/jobs/j1"
    job = "j1"
    sources: tuple[Via, ...] = ("websocket",)
    promise: Promise = "what arrives"

    def __init__(self, ask: Callable[[], Any] = lambda: None, read: Callable[[], Any] = lambda: ()) -> None:
        self._ask, self._read = ask, read

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        asked: Request | None = self._ask()
        return asked

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        facts: Iterable[Fact] = self._read()
        return facts


def read(answer: Callable[[], Any], received: Received = SAID) -> tuple[Fact, ...]:
    return Reader(Own(read=answer)).read(WANT, received)


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def yielding(*facts: Any, then: BaseException | None = None) -> Callable[[], Any]:
    def answer() -> Iterator[Any]:
        yield from facts
        if then is not None:
            raise then

    return answer


# --- asking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, Request(via="call", url="wss://hub/state")])
def test_a_request_is_returned_as_it_is(asked: Request | None) -> None:
    assert Reader(Own(ask=lambda: asked)).ask(GetState(), None) is asked


@pytest.mark.parametrize("asked", ["wss://hub/", ("GET", "/"), False])
def test_a_request_of_another_type_is_a_failure(asked: Any) -> None:
    with pytest.raises(ProtocolFailed, match=f"'own' failed: ask returned {type(asked).__name__}, not a Request"):
        Reader(Own(ask=lambda: asked)).ask(WANT, None)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ZeroDivisionError(), asyncio.CancelledError(), Exhausted("budget", "why")])
async def test_an_ask_that_raises_is_a_failure_with_its_cause(error: BaseException) -> None:
    with pytest.raises(ProtocolFailed, match=f"ask raised {type(error).__name__}") as raised:
        Reader(Own(ask=raising(error))).ask(WANT, None)
    assert raised.value.__cause__ is error
    assert raised.value.protocol == "own"


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        (),
        (PROGRESS,),
        (Item(None),),
        (Item(Output(key="a", value=1), Mark("m")),),
        (PROGRESS, Snapshot((Progress(fraction=None),)), END),
        (InStep(), Means("lost"), CancelAnswer("accepted")),
        (Item(None, Mark("é" * (MARK_LIMIT // 2))),),
    ],
)
@pytest.mark.parametrize("shape", [tuple, list, iter])
def test_facts_are_returned_in_order_whatever_holds_them(facts: tuple[Fact, ...], shape: Any) -> None:
    assert read(lambda: shape(facts)) == facts


@pytest.mark.anyio
@pytest.mark.parametrize("received", [SAID, Answer(200), Closed(1000)])
@pytest.mark.parametrize("error", [ZeroDivisionError(), asyncio.CancelledError(), KeyError("token")])
@pytest.mark.parametrize("make", [raising, lambda error: yielding(PROGRESS, then=error)])
async def test_a_read_that_raises_is_a_failure_with_its_cause(
    make: Any, error: BaseException, received: Received
) -> None:
    with pytest.raises(ProtocolFailed, match=f"read raised {type(error).__name__} \\(") as raised:
        read(make(error), received)
    assert raised.value.__cause__ is error


def test_what_a_function_must_do_is_said() -> None:
    with pytest.raises(ProtocolFailed, match=r"read raised: each: must return an update, .* not str"):
        read(lambda: Messages("ws://h", lambda message: "5").read(WANT, SAID))  # type: ignore[arg-type,return-value]


def test_the_first_error_of_a_protocol_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def each() -> Any:
        return {}["percent"]

    reader = Reader(Own(read=each))
    for _ in range(2):
        with pytest.raises(ProtocolFailed) as raised:
            reader.read(WANT, SAID)
        line = each.__code__.co_firstlineno + 1
        assert raised.value.problem == f"read raised KeyError (each, test_reader.py, line {line})"
    [record] = caplog.records
    assert record.getMessage() == "job j1: the protocol 'own' raised an error in read"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


@pytest.mark.parametrize("make", [raising, lambda error: yielding(PROGRESS, then=error)])
def test_a_message_that_cannot_be_read_is_no_failure_of_the_protocol(make: Any) -> None:
    error = MalformedMessage("news", "$", "it is not JSON")
    with pytest.raises(MalformedMessage) as raised:
        read(make(error))
    assert raised.value is error


@pytest.mark.anyio
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("make", [raising, lambda error: yielding(END, then=error)])
async def test_the_end_of_the_process_is_no_failure_of_the_protocol(make: Any, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        read(make(error))
    assert raised.value is error


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "read returned NoneType, not an iterable of facts"),
        (7, "read returned int, not an iterable of facts"),
        ("ab", "read returned str, which is not a fact"),
        ([None], "read returned NoneType, which is not a fact"),
        ([Progress(fraction=0.5)], "read returned Progress, which is not a fact"),
        ([object()], "read returned object, which is not a fact"),
        ([Item(None, 7)], "the position of Item is int, not Numbered or Mark"),
        ([Ended(JobComplete(), "m")], "the position of Ended is str, not Numbered or Mark"),
        ([Item(JobComplete())], "JobComplete is not an update"),
        ([Item({"progress": 1}, Mark("m"))], "dict is not an update"),
        ([Snapshot((Progress(fraction=None), "text"))], "str is not an update"),
        ([Snapshot((JobFailed(),))], "JobFailed is not an update"),
        ([Ended("complete")], "the outcome of Ended is not an outcome"),
        ([Ended(Progress(fraction=1))], "the outcome of Ended is not an outcome"),
        ([Item(None, Mark("é" * (MARK_LIMIT // 2) + "."))], "a mark has more than 4096 bytes"),
        ([Ended(JobComplete(), Mark("m" * (MARK_LIMIT + 1)))], "a mark has more than 4096 bytes"),
        ([Snapshot((), Mark("\ud800" * (MARK_LIMIT + 1)))], "a mark has more than 4096 bytes"),
    ],
)
@pytest.mark.parametrize("shape", [lambda answer: answer, tuple])
def test_nonsense_is_a_failure_that_says_what_it_is(answer: Any, problem: str, shape: Any) -> None:
    given = shape(answer) if isinstance(answer, list) else answer
    with pytest.raises(ProtocolFailed) as raised:
        read(lambda: given)
    assert raised.value.problem == problem


@pytest.mark.parametrize("update", [{"progress": 1}, JobComplete(), 7])
def test_nonsense_in_the_only_item_of_a_message_is_a_failure(update: Any) -> None:
    """Such a message takes the short way through the reader."""
    for at in (None, Numbered(1, "e")):
        with pytest.raises(ProtocolFailed, match="is not an update"):
            read(lambda at=at: (Item(update, at),))


def test_a_read_that_never_stops_yielding_is_a_failure() -> None:
    with pytest.raises(ProtocolFailed, match=f"more than {FACTS_LIMIT} facts for one message"):
        read(lambda: itertools.repeat(PROGRESS))
    assert len(read(lambda: itertools.repeat(PROGRESS, FACTS_LIMIT))) == FACTS_LIMIT


@pytest.mark.parametrize(
    "answer",
    [
        yielding(PROGRESS, END, then=ZeroDivisionError()),
        yielding(PROGRESS, END, then=MalformedMessage("news", "$", "it is not JSON")),
        yielding(PROGRESS, END, "nonsense"),
        yielding(PROGRESS, END, Item(None, Mark("m" * (MARK_LIMIT + 1)))),
        lambda: itertools.chain([PROGRESS, END], itertools.repeat("nonsense")),
    ],
)
def test_an_end_that_was_read_before_a_failure_stands(
    answer: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "towline"):
        assert read(answer) == (PROGRESS, END)
    assert "the job has ended, but then the protocol failed" in caplog.text


def test_an_end_before_endless_facts_stands() -> None:
    facts = read(lambda: itertools.chain([END], itertools.repeat(PROGRESS)))
    assert facts[0] == END
    assert len(facts) == FACTS_LIMIT


def test_an_end_after_a_failure_is_not_read() -> None:
    with pytest.raises(ProtocolFailed):
        read(yielding("nonsense", END))
