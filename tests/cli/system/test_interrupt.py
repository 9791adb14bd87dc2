"""Ctrl-C and Ctrl-Z as a person presses them: `towline` on a terminal of its own, against a running hub."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal is POSIX's", allow_module_level=True)

Run = Callable[..., subprocess.CompletedProcess[str]]
CTRL_C, CTRL_Z = b"\x03", b"\x1a"
PATIENCE = 40.0
ROWS = 20_000  # more than three minutes' work: more than any test takes

Open = Callable[..., Any]


@pytest.fixture
def long(tmp_path: Path) -> str:
    file = tmp_path / "long.csv"
    file.write_text("title,author,isbn\n" + "Emma,Jane Austen,9780141439587\n" * ROWS)
    return str(file)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def stop_and_continue(terminal: Any) -> None:
    """Ctrl-Z, and what `fg` does."""
    terminal.press(CTRL_Z)
    assert not terminal.has_cursor
    terminal.wait_for(r"\[backgrounded\]")  # it parts from the hub before it stops
    assert terminal.has_cursor, "the shell is to have it"
    deadline = time.monotonic() + PATIENCE
    while not is_stopped(terminal.process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for(r"\[connecting\]")
    assert not terminal.has_cursor


@pytest.mark.parametrize(
    ("backend", "ended_by"), [("asyncio", "the end of the window"), ("trio", signal.SIGTERM)], ids=["asyncio", "trio"]
)
def test_once_leaves_the_job_and_twice_cancels_it(
    run: Run, open_terminal: Open, hub: str, long: str, backend: str, ended_by: signal.Signals | str
) -> None:
    first = open_terminal("import", long, "--url", hub, "--backend", backend)
    first.wait_for(r"\[connected\]")
    first.press(CTRL_C)
    command = first.wait_for(r"stopped following; the job continues. Resume with\n  (towline watch .*)\n")[1]
    first.wait_for(r"press Ctrl-C again within 3 s to ask the server to cancel it")
    if isinstance(ended_by, signal.Signals):
        first.process.send_signal(ended_by)
    code, last_words = first.leave()
    assert code == 130
    assert "asked" not in last_words

    _, *arguments = shlex.split(command)
    second = open_terminal(*arguments, "--backend", backend)
    second.wait_for(r"\[connected\]")
    if Path("/proc/self/stat").exists():
        stop_and_continue(second)
    second.press(CTRL_C)
    second.wait_for(r"press Ctrl-C again")
    second.press(CTRL_C)
    second.wait_for(r"the server accepted the request to cancel the job")
    code, last_words = second.leave()
    assert code == 3
    assert "canceled" in last_words

    told = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    assert [one["type"] for one in told if "job" in one["type"]] == ["job_canceled"]


def test_sigterm_at_a_terminal_is_the_end_of_it(open_terminal: Open, hub: str, long: str) -> None:
    terminal = open_terminal("import", long, "--url", hub)
    terminal.wait_for(r"\[connected\]")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.wait_for(r"stopped following; the job continues. Resume with\n  towline watch .*\n")
    code, last_words = terminal.leave()
    assert code == 130
    assert "press Ctrl-C again" not in last_words
