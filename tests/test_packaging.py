"""What users get: one import package, typed, cheap to import, without the extras."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from wheels import build_wheel

from towline.protocols._shared.names import CLASSES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_one_import_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"towline"}


def test_the_wheel_holds_every_module_and_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "towline/py.typed" in names
    for folder in ("statemachine", "transport", "storage"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"towline/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "towline").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    assert "towline/cli/books.csv" in names


def modules_after(statement: str) -> set[str]:
    """The modules that `statement` loads in a fresh interpreter, over those it starts with."""
    code = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint('\\n'.join(set(sys.modules) - before))"
    answer = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, timeout=250)
    return set(answer.stdout.split())


def test_importing_towline_pulls_in_no_extra() -> None:
    loaded = modules_after("import towline")
    extras = {"typer", "click", "rich", "starlette", "uvicorn", "multipart", "stdnum", "keyring", "trio", "sqlite3"}
    assert not extras & loaded
    assert not {"towline.cli", "towline.server", "towline.testing"} & loaded


def test_importing_towline_loads_no_protocol_but_its_own() -> None:
    others = {f"towline.protocols.{name}" for name in CLASSES} - {"towline.protocols.towline"}
    assert not others & modules_after("import towline")
    assert "towline.protocols.bookstrack" in modules_after("from towline.protocols import Bookstrack")


def test_the_command_line_alone_pulls_in_no_server() -> None:
    loaded = modules_after("import towline.cli._app")
    assert not {"starlette", "uvicorn", "towline.server", "towline.testing"} & loaded


def test_without_its_extra_the_command_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from towline.cli import main; main()"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=250)
    assert answer.returncode == 2
    assert answer.stderr == "towline: the command line needs its extra: pip install 'towline[cli]'\n"
