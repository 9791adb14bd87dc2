"""What the package exports exists, is documented, and is cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import towline
import towline.blocking
import towline.protocols
import towline.runner
import towline.statemachine
import towline.storage
import towline.testing
import towline.transport

MODULES = [
    towline,
    towline.blocking,
    towline.protocols,
    towline.runner,
    towline.statemachine,
    towline.storage,
    towline.testing,
    towline.transport,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_exported_name_exists_and_says_what_it_is(module: ModuleType) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert (inspect.getdoc(thing) or "").strip(), f"{name} has no docstring"
            assert thing.__doc__, f"{name} has only an inherited docstring"


def test_every_public_method_of_a_connection_is_documented() -> None:
    for connection in (towline.Connection, towline.blocking.Connection):
        for name, member in vars(connection).items():
            if not name.startswith("_"):
                assert inspect.getdoc(member), name


def test_the_blocking_twin_has_the_same_names() -> None:
    public = {name for name in vars(towline.Connection) if not name.startswith("_")}
    blocking = {name for name in vars(towline.blocking.Connection) if not name.startswith("_")}
    assert public - blocking == {"aclose"}
    assert blocking - public == {"close"}


def test_every_error_is_exported() -> None:
    errors = {
        name
        for name, thing in vars(towline._exceptions).items()
        if inspect.isclass(thing) and issubclass(thing, towline.TowlineError)
    }
    of_the_hub = {"HubStorageError", "JobFailure"}
    assert errors - of_the_hub <= set(towline.__all__)


def test_importing_pulls_in_no_extra() -> None:
    extras = ["typer", "rich", "starlette", "uvicorn", "keyring", "trio", "httpx", "multipart"]
    code = f"import sys, towline; print([name for name in {extras!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
