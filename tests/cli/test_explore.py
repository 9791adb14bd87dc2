"""`towline explore`, and `towline trace` of what it found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from towline.cli._app import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "firmware"
MODULE = """
from copy import copy
import towline
from connection_world import WORLDS
from firmware import FIRMWARE, State, Update
from towline.statemachine import TableWorld

def never_on_probation(before, move):
    return "on probation" if move.after.state is State.PROBATION else None

def never_connected(before, move):
    return "connected" if move.after.snapshot.state is towline.State.CONNECTED else None

WORLD = TableWorld(FIRMWARE, Update("", ""), lambda data: min(data.tries, 6), [never_on_probation])
CONNECTION = [copy(WORLDS[0])]
CONNECTION[0].invariants = [never_connected]
NUMBER = 1
NOTHING = []
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's beside the example, in the current folder."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != ""])
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("firmware", "mine"):
        sys.modules.pop(name, None)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_table_of_your_own_is_explored_and_its_counts_are_checked(tmp_path: Path) -> None:
    found = run("explore", "--table", "firmware:FIRMWARE")
    assert (found.exit_code, found.output.splitlines()) == (
        0,
        [
            "| world | situations | moves |",
            "|---|---|---|",
            "| firmware | 10 | 25 |",
            "all 3 invariants hold: every_state, way_out, no_endless_work",
        ],
    )
    (tmp_path / "page.md").write_text(found.output)
    assert run("explore", "--table", "firmware:FIRMWARE", "--check", tmp_path / "page.md").exit_code == 0
    (tmp_path / "page.md").write_text("| firmware | 9 | 25 |\n")
    stale = run("explore", "--table", "firmware:FIRMWARE", "--check", tmp_path / "page.md")
    assert stale.exit_code == 1
    assert "page.md is stale: it lacks\n| firmware | 10 | 25 |" in stale.output


def test_a_violation_in_your_own_world_is_shown_and_traced(tmp_path: Path) -> None:
    found = run("explore", "--table", "mine:WORLD", "--out", "found.json")
    assert found.exit_code == 1
    assert "never_on_probation does not hold: on probation" in found.output
    assert "activating → probation" in found.output
    assert (tmp_path / "found.json").read_text() in found.output
    told = run("trace", "found.json", "--table", "firmware:FIRMWARE")
    assert (told.exit_code, told.output.splitlines()[-1]) == (0, "4 events replayed, none went another way")


def test_a_violation_of_the_connection_is_shown_and_replays() -> None:
    found = run("explore", "--table", "mine:CONNECTION", "--out", "found.json")
    assert found.exit_code == 1
    assert "never_connected does not hold: connected" in found.output
    told = run("trace", "found.json")
    assert (told.exit_code, told.output.splitlines()[-1]) == (0, "3 events replayed, none went another way")


def test_what_cannot_be_explored_is_said() -> None:
    for name in ("nothing:AT_ALL", "mine:NUMBER", "mine:NOTHING"):
        told = run("explore", "--table", name)
        assert (told.exit_code, name in told.output) == (2, True)


def test_a_module_that_fails_is_the_caller_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_table.py").write_text("TABLE = 1 / 0")
    answer = CliRunner().invoke(app, ["explore", "--table", "broken_table:TABLE"])
    assert answer.exit_code == 2
    assert "broken_table:TABLE cannot be loaded: ZeroDivisionError: division by zero" in answer.stderr
