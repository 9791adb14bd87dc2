"""`Secret` shows nothing, and compares as its text does."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from rich.traceback import Traceback

from towline._secret import Secret

# Never spelled in one piece: a traceback shows source lines.
TEXT = "-".join(["hunter", "2"])


@dataclasses.dataclass
class Holder:
    """What holds a secret in a field."""

    secret: Secret


def shown_by(call: Callable[[], object]) -> str:
    """Everything that can be made of the exception that `call` raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever it is
        call()
    page = io.StringIO()
    exc = caught.value
    rich = Traceback.from_exception(type(exc), exc, exc.__traceback__, show_locals=True, locals_max_string=None)
    Console(file=page, width=300).print(rich)
    plain = traceback.TracebackException.from_exception(exc, capture_locals=True).format()
    return "".join(plain) + page.getvalue() + repr(exc) + repr(vars(exc)) + repr(exc.args)


def test_nothing_is_shown() -> None:
    secret = Secret(TEXT)
    shown = [
        f"{secret} {secret!r} {secret!s} {secret!a} {secret:>40} {[secret]} {secret.reveal}",
        str({secret: secret}),
        pprint.pformat(Holder(secret)),
        str(dataclasses.asdict(Holder(secret))),
        json.dumps(secret, default=str),
        repr([(name, getattr(secret, name)) for name in dir(secret)]),
        repr(secret.reveal.__closure__),
    ]
    assert not [one for one in shown if TEXT in one]


def test_a_log_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.Logger("test", logging.DEBUG)
    log.addHandler(caplog.handler)
    secret = Secret(TEXT)
    log.debug("%s %r %s", secret, secret, {"token": secret}, extra={"token": secret})
    assert TEXT not in caplog.text
    assert len(caplog.records) == 1


def test_it_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Secret(TEXT))


def test_a_copy_is_the_same() -> None:
    secret = Secret(TEXT)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: Secret(cast(Any, TEXT.encode())),
        lambda: Secret(cast(Any, [TEXT])),
        lambda: pickle.dumps(Secret(TEXT)),
        lambda: json.dumps(Secret(TEXT)),
        lambda: len(cast(Any, Secret(TEXT))),
        lambda: cast(Any, Secret(TEXT)) + "x",
        lambda: cast(Any, Secret(TEXT)) < Secret(TEXT),
        lambda: vars(Secret(TEXT)),
        lambda: cast(Any, Secret(TEXT)).text,
        lambda: f"{Secret(TEXT):d}",
    ],
)
def test_no_misuse_shows_it(misuse: Callable[[], object]) -> None:
    assert TEXT not in shown_by(misuse)


def test_a_failure_beside_it_shows_nothing() -> None:
    def deeper(secret: Secret) -> None:
        same = secret == Secret(TEXT)
        raise RuntimeError(same)

    shown = shown_by(lambda: deeper(Secret(TEXT)))
    assert "secret = Secret(hidden)" in shown
    assert TEXT not in shown


def test_it_compares_as_its_text_does() -> None:
    assert Secret("å") == Secret("å")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("\ud800") == Secret("\ud800")
    assert Secret("\ud800") != Secret("a")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_it_is_revealed_in_few_places() -> None:
    """Where a token goes onto the wire, into the sealed record, or to a person who asked: a new place is a decision."""

    def reveals(path: Path) -> bool:
        text = path.read_text()
        return "reveal()" in text or "revealed(" in text

    root = Path(__file__).parents[1]
    folders = ("statemachine", "storage", "towline", "transport")
    files = {path for folder in folders for path in (root / folder).rglob("*.py") if reveals(path)}
    assert {path.relative_to(root).as_posix() for path in files} <= {
        "towline/server/web/calls/_jobs.py",  # gives a new token out, once
        "towline/server/web/calls/_pages.py",  # the same, to a page
        "towline/server/_tokens.py",  # digests the one presented
        "storage/keys/_passphrase.py",  # stretches a passphrase
        "storage/_record.py",  # checks it
        "storage/_sealed.py",  # seals it
        "towline/_secret.py",
        "towline/_headers.py",  # checks a header's value and a subprotocol
        "towline/cli/_tokens.py",  # show --reveal
        "towline/engine/tokens.py",  # what a provider gave, looked at before it is used
        "towline/sources/access.py",  # writes it into a request's URL, headers or body
        "towline/protocols/_shared/recording.py",  # masks each one before a line is written
        "towline/protocols/_shared/requests.py",  # places it in the header, the query or the subprotocol
        "towline/protocols/towline.py",  # asks for its successor
        "towline/testing/_conformance.py",  # looks for it in a URL
        "transport/http/_client.py",  # writes a header or a body
        "transport/net/_proxy.py",  # the proxy's own password
        "transport/_url.py",  # encodes a header's value
        "transport/websocket/_protocol.py",  # writes a message
    }
