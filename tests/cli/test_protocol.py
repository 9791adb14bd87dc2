"""`--protocol`, `-p` and `towline protocols`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from towline import InvalidArgument
from towline.cli.follow._follow import resume_command
from towline.cli.follow._protocol import chosen_protocol
from towline.protocols import Bookstrack, EventStream, Polling, Towline
from towline.protocols._shared.names import CLASSES, protocol_class

Run = Callable[..., subprocess.CompletedProcess[str]]
URL = "wss://api.example/ws/progress"

MODULE = """
import towline
from towline.protocols import EventStream

def each(event):
    return None

def make(url: str, job: str, silence: float | None = None, typed: bool = False):
    return EventStream(url, each, job=job, silence=silence, with_type=typed)

def plain(tenant):
    return EventStream(f"https://h/{tenant}", each)

made = EventStream("https://h/1", each)
wrong = 7
def nothing(): ...
def failing(): return 1 / 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    (tmp_path / "shop_protocol.py").write_text(MODULE)
    (tmp_path / "broken_protocol.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yielded = "shop_protocol"
    for name in (yielded, "broken_protocol"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return yielded


def test_without_options_the_record_has_the_protocol() -> None:
    assert chosen_protocol(None, URL, "j1", []) is None


def test_a_name_with_fields() -> None:
    assert chosen_protocol("bookstrack", URL, "j1", []) == Bookstrack(URL, "j1")
    given = ["require_state=true", "prefix=", "state_path=/s/{job}?a=b"]
    expected = Towline(URL, "j1", require_state=True, prefix="", state_path="/s/{job}?a=b")
    assert chosen_protocol("towline", URL, "j1", given) == expected
    assert chosen_protocol(None, URL, "j1", given) == expected
    assert chosen_protocol("polling", "https://h/7", None, []) == Polling("https://h/7")


@pytest.mark.parametrize(
    ("name", "url", "job", "given", "words"),
    [
        ("nope", URL, "j1", [], "'nope' is not built in: these are towline, bookstrack"),
        ("bookstrack", None, "j1", [], "bookstrack needs a URL"),
        ("bookstrack", URL, None, [], "bookstrack needs a job"),
        (None, None, "j1", ["token_in=query"], "towline needs a URL"),
        ("bookstrack", URL, "j1", ["colour=red"], "no field 'colour': it has .*token_in"),
        ("bookstrack", URL, "j1", ["require_state=maybe"], "require_state=maybe does not fit"),
        ("bookstrack", URL, "j1", ["token_in"], "'token_in' is not FIELD=VALUE"),
        ("bookstrack", URL, "j1", ["url=x"], "url is not set with -p"),
        ("bookstrack", URL, "j1", ["headers=x"], "cannot be set here"),
        ("bookstrack", URL, "j1", ["token_in=nowhere"], "token_in: must be header"),
        ("messages", URL, "j1", [], "a function of yours.*module:object"),
        ("event_stream", URL, "j1", ["silence=soon"], "silence=soon does not fit"),
        (":x", URL, "j1", [], "is not module:object"),
        ("no_such_module:x", URL, "j1", [], "no_such_module:x cannot be loaded: ModuleNotFoundError"),
        ("broken_protocol:x", URL, "j1", [], "cannot be loaded: ZeroDivisionError"),
        ("shop_protocol:x", URL, "j1", [], "cannot be loaded: AttributeError"),
        ("shop_protocol:wrong", None, None, [], "is a int, which is not a protocol"),
        ("shop_protocol:nothing", None, None, [], "is a NoneType, which is not a protocol"),
        ("shop_protocol:failing", None, None, [], "failed: ZeroDivisionError"),
        ("shop_protocol:made", "https://h", None, [], "leave the URL and -p out"),
        ("shop_protocol:plain", None, None, [], "pass -p tenant=VALUE"),
        ("shop_protocol:plain", "https://h", None, ["tenant=a"], "has no parameter `url`: leave the URL out"),
        ("shop_protocol:make", "https://h", "j1", ["typed=2"], "typed=2 does not fit"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_used(name: str | None, url: str | None, job: str | None, given: list[str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        chosen_protocol(name, url, job, given)


def test_a_protocol_of_the_user_s(module: str) -> None:
    made: Any = chosen_protocol(f"{module}:made", None, None, [])
    assert isinstance(made, EventStream)
    made = chosen_protocol(f"{module}:make", "https://h/1", "j1", ["silence=2.5", "typed=1"])
    assert (made.url, made.job, made.silence, made.with_type) == ("https://h/1", "j1", 2.5, True)
    made = chosen_protocol(f"{module}:plain", None, "ignored", ["tenant=a"])
    assert made.url == "https://h/a"


def test_the_command_repeats_what_is_needed() -> None:
    given = {"protocol": "bookstrack", "given": ["token_in=query"]}
    command = f"towline watch j1 --protocol bookstrack --url {URL} -p token_in=query"
    assert resume_command("j1", None, URL, **given) == command
    # A query may hold a secret, and the record has it.
    assert resume_command("j1", None, f"{URL}?key=hunter2", **given) == "towline watch j1"
    own = resume_command(None, None, f"{URL}?key=hunter2", protocol="shop:make")
    assert own == f"towline watch --protocol shop:make --url '{URL}?...'"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "job: is missing: pass JOB"),
        (["j1", "--protocol", "nope"], "'nope' is not built in"),
        (["j1", "--url", URL, "--record", "no/such/folder"], "No such file"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], words: str) -> None:
    answer = run("watch", *arguments)
    assert answer.returncode in (2, 5)
    assert answer.stdout == ""
    assert words in answer.stderr


def test_the_protocols_are_listed(run: Run) -> None:
    answer = run("protocols")
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert lines[0].split()[:3] == ["name", "sources", "promise"]
    for kind in map(protocol_class, CLASSES):
        (line,) = [line for line in lines if line.startswith(f"{kind.name} ")]
        assert line.endswith(str(kind.__doc__).splitlines()[0])
    assert "what arrives; with state: end exact" in answer.stdout
    assert "exact; not resumable: end exact" in answer.stdout
    (place,) = [number for number, line in enumerate(lines) if line.startswith("mcp_task ")]
    assert lines[place + 1] == "  may be lost: status messages between two polls"
    assert "fields: url (needed), each (needed), token_in, " in answer.stdout


@pytest.mark.parametrize("name", CLASSES)
def test_the_fields_of_a_protocol_are_explained(run: Run, name: str) -> None:
    answer = run("protocols", name)
    assert answer.returncode == 0
    for field in fields(protocol_class(name)):
        assert f"`{field.name}`" in answer.stdout


def test_the_fields_of_an_unknown_protocol_are_an_error(run: Run) -> None:
    assert "'nope' is not built in: these are towline, " in run("protocols", "nope").stderr
