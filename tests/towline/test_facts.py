"""The values between the engine and a protocol, and a protocol that is made of them alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from towline import JobComplete, Output, Paused, Progress, Secret
from towline._facts import (
    Answer,
    Ended,
    Fact,
    Follow,
    GetState,
    InStep,
    Item,
    Mark,
    Message,
    NewToken,
    Numbered,
    Protocol,
    Received,
    Replaying,
    Request,
    Send,
    Snapshot,
    Wait,
    Want,
    has_sign,
)


@pytest.mark.parametrize("kind", [*get_args(Fact), *get_args(Want), *get_args(Received), Numbered, Mark, Request])
def test_each_value_is_frozen_documented_and_made_by_position_or_by_name(kind: type) -> None:
    assert inspect.getdoc(kind)
    names = kind.__struct_fields__  # type: ignore[attr-defined]
    values: dict[str, Any] = {name: f"a {name}" for name in names} | ({"headers": {}} if kind is Answer else {})
    value = kind(**values)
    assert value == copy.copy(value)
    assert kind is Answer or hash(value) == hash(copy.copy(value))
    for name in names:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_values_of_different_kinds_are_never_equal() -> None:
    assert Numbered(1, "e") != Mark("e")
    assert Mark("/a") != Wait(1)
    assert Item(None, Mark("1")) != Item(None, Mark("2"))
    assert GetState() == GetState()


def test_the_headers_of_an_answer_are_found_in_any_case() -> None:
    answer = Answer(202, {"Retry-After": "3", "location": "/a"})
    assert answer.headers == {"retry-after": "3", "location": "/a"}
    assert Answer(200).headers == {}


def test_no_value_shows_a_secret() -> None:
    secret = Secret("hunter2")
    request = Request(
        via="call",
        url=secret,
        headers=(("Authorization", secret),),
        body=secret,
        subprotocols=(secret,),
        opening=(secret,),
    )
    assert "hunter2" not in repr((request, NewToken(secret), Send(secret)))


@pytest.mark.parametrize(
    ("facts", "sign"),
    [
        ((), False),
        ((Item(Progress(fraction=0.5)),), True),
        ((Item(None),), True),
        ((Item(None, Numbered(1), is_sign=False),), False),
        ((Snapshot(),), True),
        ((Ended(JobComplete()),), True),
        ((Wait(1), InStep(), Replaying(1, 2, "e")), False),
        ((Wait(1), Item(Paused(kind="input"))), True),
    ],
)
def test_a_keep_alive_is_no_sign_of_the_job(facts: tuple[Fact, ...], sign: bool) -> None:
    assert has_sign(facts) is sign


@dataclass(frozen=True)
class Log:
    """The protocol of a server that sends one line of output a message."""

    url: str
    job: str = "log"
    name = "log"
    sources = ("websocket",)
    promise = "what arrives"

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        return Request(via="websocket", url=self.url) if isinstance(want, Follow) else None

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        match received:
            case Message(str(line)):
                yield Item(Output(key="log", value=line))


def test_a_frozen_dataclass_with_two_functions_is_a_protocol() -> None:
    protocol: Protocol = Log("ws://h")  # type: ignore[assignment]  # its plain attributes are inferred as str
    request = protocol.ask(Follow("websocket"), None)
    assert request == Request(via="websocket", url="ws://h")
    assert protocol.ask(GetState(), None) is None
    assert list(protocol.read(Follow("websocket"), Message("a"))) == [Item(Output(key="log", value="a"))]
