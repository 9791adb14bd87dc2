"""What somebody meets first: the version, the list of commands, and a hub with a sample job."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import towline
from towline.cli._app import app

Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., subprocess.Popen[str]]
ROOT = Path(__file__).parent.parent.parent


def test_the_version_is_the_same_everywhere() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"towline {towline.__version__}\n"
    assert version("towline") == towline.__version__
    assert f"## {towline.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("group", [[], ["tokens"], ["diagram"]], ids=" ".join)
def test_no_summary_of_a_command_is_cut_off(group: list[str]) -> None:
    shown = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "80"}).stdout
    assert "..." not in shown.partition("Commands:")[2]


def test_every_option_and_argument_says_what_it_is() -> None:
    commands = [get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        assert command.help, command.name
        assert all(getattr(parameter, "help", "") for parameter in command.params), command.name
    assert len(commands) > 12


def test_no_option_does_nothing() -> None:
    """A flag whose opposite is the default has no `--no-` form."""
    commands = [get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        assert not any(getattr(parameter, "secondary_opts", []) for parameter in command.params), command.name


@contextmanager
def sample(begin: Begin, folder: Path, *arguments: str) -> Iterator[list[str]]:
    """Run `towline serve --sample`; yields the lines that it prints. The hub is stopped at the end."""
    command = ["serve", "--sample", "--port", "0", "--row-delay", "0.004", *arguments]
    with begin(*command, cwd=folder) as hub:
        assert hub.stdout is not None
        yield [hub.stdout.readline().rstrip() for _ in range(5)]
        hub.terminate()
        assert (hub.wait(120), hub.stdout.read()) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="the hub is stopped by a signal")
def test_a_sample_job_is_followed_by_the_command_that_is_printed(run: Run, begin: Begin, tmp_path: Path) -> None:
    with sample(begin, tmp_path) as (_, _, command, _, _):
        assert command == f"  towline watch towline-sample --store {tmp_path / 'tokens'}"
    with sample(begin, tmp_path) as (listening, _, same, page, _):  # the job continues
        assert same == command
        url = listening.split()[-1]
        assert f" {url} " in page
        assert "<title>Jobs</title>" in httpx.get(url).text
        assert [job["jobId"] for job in httpx.get(f"{url}/api/jobs").json()["jobs"]] == ["towline-sample"]
        watched = run(*command.split()[1:])
    assert watched.returncode == 0
    assert "started, 318 items\n" in watched.stdout
    assert watched.stdout.endswith("complete: 306/318, 12 rows rejected\n")
    with sample(begin, tmp_path) as (_, _, other, _, _):
        assert other.split()[2] == "towline-sample-2"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with sample(begin, folder) as (_, _, again, _, _):
        assert again == command  # another hub: the record of the first job, which ended, does not count here
        assert "started" in run(*again.split()[1:]).stdout


def test_what_a_sample_cannot_do_is_said() -> None:
    for option in (["--host", "0.0.0.0"], ["--redis", "redis://127.0.0.1:9"], ["--workers", "2"]):
        refused = CliRunner().invoke(app, ["serve", "--sample", *option])
        assert (refused.exit_code, f"leave out {option[0]}" in refused.stderr) == (2, True)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_number_that_is_no_port_is_refused(port: str) -> None:
    refused = CliRunner().invoke(app, ["serve", "no_module:hub", "--port", port])
    assert (refused.exit_code, "--port" in refused.stderr) == (2, True)


def test_a_store_that_cannot_be_used_stops_the_sample_with_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = str(tmp_path / "hub.db")
    answer = run("serve", "--sample", "--port", "0", "--database", database, "--store", str(tmp_path / "file"))
    assert answer.returncode == 5
    assert answer.stderr.startswith("towline: ")
