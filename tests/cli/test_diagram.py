"""`towline diagram` and its comparison."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from towline.cli._app import app
from towline.cli.machine import _diagram
from towline.statemachine import LIFECYCLE, Description, describe
from towline.statemachine._description import BranchWords, _hash

LIFE = describe(LIFECYCLE)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["diagram", *(str(argument) for argument in arguments)])


def test_it_writes_what_it_checks(tmp_path: Path) -> None:
    written = run("--out", tmp_path / "machine")
    assert written.exit_code == 0
    names = {path.name for path in (tmp_path / "machine").iterdir()}
    drawn = ("overview", "normal-way", "loss-and-retry", "host", "requests-and-ends")
    assert names == {f"connection.{end}" for end in ("md", "events.md", "json", *(f"{name}.svg" for name in drawn))}
    checked = run("--check", "--out", tmp_path / "machine")
    assert (checked.exit_code, "agrees with the table" in checked.output) == (0, True)


def test_drift_is_shown_and_fails(tmp_path: Path) -> None:
    run("--out", tmp_path)
    path = tmp_path / "connection.host.svg"
    path.write_text(path.read_text().replace(">path_lost<", ">path_gone<"))
    (tmp_path / "connection.md").unlink()
    checked = run("--check", "--out", tmp_path)
    assert checked.exit_code == 1
    removed, added = ([line for line in checked.output.splitlines() if line.startswith(sign)] for sign in "-+")
    assert any(">path_gone<" in line for line in removed)
    assert any(">path_lost<" in line for line in added)
    assert "connection.md" in checked.output


def test_a_changed_table_drifts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--out", tmp_path)
    changed = altered("lost", "connected", BranchWords(kind="ignored", reason="so"))
    monkeypatch.setattr(_diagram, "describe", lambda table: changed)
    checked = run("--check", "--out", tmp_path)
    assert checked.exit_code == 1
    assert "connection.json" in checked.output


def test_the_committed_files_are_current() -> None:
    checked = run("--check", "--out", Path(__file__).parents[2] / "docs" / "machine")
    assert checked.exit_code == 0, checked.output


def test_a_check_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the default must not depend on a checkout
    refused = run("--check")
    assert (refused.exit_code, "add --out FOLDER" in refused.output) == (2, True)


def test_it_prints_the_matrix_when_asked_for_nothing() -> None:
    printed = run()
    assert printed.exit_code == 0
    assert printed.output.startswith("# The machine `connection`\n")


def test_formats_are_chosen(tmp_path: Path) -> None:
    run("--format", "md, json", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"connection.md", "connection.json"}
    refused = run("--format", "pdf")
    assert (refused.exit_code, "there is no format pdf" in refused.output) == (2, True)


@pytest.mark.parametrize(
    "table", ["nowhere:TABLE", "towline.statemachine:step", "towline.statemachine:NOTHING", ":", ""]
)
def test_another_table_must_be_one(table: str) -> None:
    refused = run("--table", table)
    assert refused.exit_code == 2
    assert "towline: " in refused.output
    assert refused.exception is None or isinstance(refused.exception, SystemExit)


# --- diff --------------------------------------------------------------------------------------------------------


def altered(event: str, state: str, *branches: BranchWords) -> Description:
    cells = tuple(
        replace(cell, branches=branches) if (cell.event, cell.state) == (event, state) else cell for cell in LIFE.cells
    )
    changed = replace(LIFE, cells=cells)
    return replace(changed, hash=_hash(changed))


FORBIDDEN = altered("lost", "connected", BranchWords(kind="forbidden", reason="no", error="ForbiddenRequest"))


def files(folder: Path, *descriptions: Description) -> list[Path]:
    paths = []
    for place, description in enumerate(descriptions):
        paths.append(folder / f"{place}.json")
        paths[-1].write_bytes(description.to_json())
    return paths


def test_two_files_are_compared(tmp_path: Path) -> None:
    base, head = files(tmp_path, LIFE, FORBIDDEN)
    told = run("diff", base, head, "--out", tmp_path / "changes.svg")
    assert told.exit_code == 0
    assert "**newly forbidden** (breaking) | lost in connected" in told.output
    assert '<tspan class="removed">− lost</tspan>' in (tmp_path / "changes.svg").read_text()
    assert run("diff", base, head, "--fail-on", "breaking").exit_code == 1
    assert run("diff", head, base, "--fail-on", "breaking").exit_code == 0
    assert run("diff", base, base, "--fail-on", "breaking").exit_code == 0


def test_a_file_is_compared_with_the_table_as_it_is_now(tmp_path: Path) -> None:
    (base,) = files(tmp_path, FORBIDDEN)
    assert "newly accepted" in run("diff", base).output or "lost in connected" in run("diff", base).output


def test_git_revisions_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> Any:
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    for description in (LIFE, FORBIDDEN):
        (tmp_path / "docs" / "machine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / "machine" / "connection.json").write_bytes(description.to_json())
        git("add", ".")
        git("commit", "-q", "-m", "a version")
    file = "docs/machine/connection.json"
    assert "newly forbidden" in run("diff", f"HEAD~1:{file}", f"HEAD:{file}").output
    for unknown in (f"HEAD~7:{file}", "HEAD"):
        refused = run("diff", unknown)
        assert (refused.exit_code, "neither a file nor" in refused.output) == (2, True)
    assert run("diff", "--", "--output=x").exit_code == 2


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    refused = run("diff", path)
    assert (refused.exit_code, "broken.json" in refused.output) == (2, True)
    assert run("diff", path, "--fail-on", "all").exit_code == 2
