"""Signals as shells and terminals send them, and the command to resume that is printed then."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from towline.cli.follow._follow import resume_command

if sys.platform == "win32":
    pytest.skip("Windows has no such signals", allow_module_level=True)

Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., subprocess.Popen[str]]
PATIENCE = 40.0


def handled(number: signal.Signals, handler: Any) -> Callable[[], object]:
    """What a parent does between fork and exec."""
    return lambda: signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "backend"),
    [(signal.SIGINT, "asyncio"), (signal.SIGTERM, "trio"), (signal.SIGHUP, "asyncio"), (signal.SIGTSTP, "trio")],
)
def test_what_the_parent_ignores_stays_ignored(
    job_server: Any, begin: Begin, number: signal.Signals, backend: str
) -> None:
    """`trap '' INT`, `command &` in a script, `nohup`."""
    arguments = ["watch", "j1", "--url", job_server.url, "--backend", backend]
    with begin(*arguments, preexec_fn=handled(number, signal.SIG_IGN)) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("["):
            pass
        assert job_server.followed.wait(PATIENCE)
        while process.stdout.readline() != "started, 15 items\n":
            pass
        process.send_signal(number)
        assert "% " in process.stdout.readline()
        assert "% " in process.stdout.readline()
        job_server.finish()
        said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert said.splitlines()[-1] == "complete"
    assert "backgrounded" not in said


@pytest.mark.parametrize(("number", "backend"), [(signal.SIGTERM, "asyncio"), (signal.SIGHUP, "trio")])
def test_the_server_is_told_and_the_command_to_resume_is_printed(
    job_server: Any, begin: Begin, number: signal.Signals, backend: str
) -> None:
    arguments = ["watch", "j1", "--url", job_server.url, "--backend", backend]
    with begin(*arguments, preexec_fn=handled(number, signal.SIG_DFL)) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "started, 15 items\n":
            pass
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    resume = rf"  towline watch j1 --url {re.escape(job_server.url)} --store .*"
    assert re.fullmatch(rf"stopped following; the job continues. Resume with\n{resume}\n", errors)
    assert job_server.left.wait(PATIENCE)
    assert job_server.closes == [1001]


def test_a_terminal_that_is_closed_says_goodbye_to_the_server(job_server: Any, open_terminal: Any) -> None:
    """The terminal can be written to no more, and the server is told all the same."""
    terminal = open_terminal("watch", "j1", "--url", job_server.url)
    terminal.wait_for(r"\d+% connected")
    terminal.hang_up()
    assert job_server.left.wait(PATIENCE)
    assert job_server.closes == [1001]
    assert terminal.process.wait(PATIENCE) in (5, 130)  # by what it notices first


@pytest.mark.parametrize("job", ["-V1StGXR8", "--json", "it's a/b"])
def test_the_command_that_is_printed_resumes_any_job(
    job_server: Any, environment: dict[str, str], run: Run, begin: Begin, job: str
) -> None:
    with begin("watch", "--url", job_server.url, "--", job) as process:
        assert job_server.followed.wait(PATIENCE)
        assert process.stdout is not None
        while process.stdout.readline() != "started, 15 items\n":
            pass
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    words = shlex.split(errors.splitlines()[1])
    del environment["TOWLINE_TOKEN"], environment["TOWLINE_STORE"]
    job_server.finish()
    resumed = run(*words[1:])
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert job_server.jobs == [job, job]


def test_the_command_that_is_printed_works_in_another_folder(
    job_server: Any, environment: dict[str, str], begin: Begin, tmp_path: Any
) -> None:
    arguments = ["watch", "j1", "--url", job_server.url, "--store", "here", "--allow-insecure"]
    with begin(*arguments, cwd=tmp_path) as process:
        assert job_server.followed.wait(PATIENCE)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    words = shlex.split(errors.splitlines()[1])
    options = ["--allow-insecure", "--url", job_server.url, "--store", str(tmp_path / "here")]
    assert words == ["towline", "watch", "j1", *options]


def test_a_url_with_a_query_is_not_printed() -> None:
    """It may hold a secret; the record has it."""
    url = "wss://api.example/ws/progress"
    assert resume_command("j1", None, url) == f"towline watch j1 --url {url}"
    assert resume_command("j1", None, f"{url}?key=hunter2") == "towline watch j1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_hub_ignores_it_too(run: Run, begin: Begin, tmp_path: Any, number: signal.Signals) -> None:
    other = signal.SIGTERM if number == signal.SIGINT else signal.SIGINT

    def prepare() -> None:
        signal.signal(number, signal.SIG_IGN)
        signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)

    arguments = ["serve", "--port", "0", "--database", str(tmp_path / "hub.db")]
    file = tmp_path / "books.csv"
    file.write_text("title,author,isbn\nEmma,Jane Austen,9780141439587\n")
    with begin(*arguments, preexec_fn=prepare) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        process.send_signal(number)
        answer = run("import", str(file), "--url", url)
        process.send_signal(other)
        assert process.wait(PATIENCE) == 0
    assert answer.returncode == 0, answer.stderr
