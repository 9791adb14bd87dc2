"""Ctrl-C and Ctrl-Z as a person presses them: `towline` on a terminal of its own, against a running hub."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal is POSIX's", allow_module_level=True)

import fcntl
import pty
import termios

Run = Callable[..., subprocess.CompletedProcess[str]]
CTRL_C, CTRL_Z = b"\x03", b"\x1a"
PATIENCE = 40.0
ROWS = 20_000  # more than three minutes' work: more than any test takes

# What a login does: the pseudo-terminal becomes the controlling one, so that its Ctrl-C is our SIGINT.
LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A command on a pseudo-terminal. `shown` is what it has written so far, `raw` with what steers the terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOGIN, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**environment, "TERM": "xterm"},
        )
        os.close(theirs)
        self.shown = self.raw = ""
        self._pieces: Queue[str | None] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65_536):
                self._pieces.put(data.decode(errors="replace"))
        except OSError:
            pass  # how Linux tells that the other side is closed
        self._pieces.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until `pattern` was shown, and forget what was shown before its end."""
        while True:
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown).replace("\r", "")
            if found := re.search(pattern, plain):
                self.shown = plain[found.end() :]
                return found
            try:
                piece = self._pieces.get(timeout=PATIENCE)
            except Empty:
                raise AssertionError(f"no {pattern!r} in {plain!r}") from None
            assert piece is not None, f"it ended without {pattern!r}: {plain!r}"
            self.shown += piece
            self.raw += piece

    @property
    def has_cursor(self) -> bool:
        """Whether the cursor is shown, as the terminal was told last."""
        return self.raw.rfind("\x1b[?25h") >= self.raw.rfind("\x1b[?25l")

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def leave(self) -> tuple[int, str]:
        """Wait for its end; returns the exit code and the last words."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while piece := self._pieces.get():
            self.shown += piece
        return code, self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)


Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(environment: dict[str, str]) -> Iterator[Open]:
    """Call `towline` on a terminal."""
    terminals: list[Terminal] = []

    def call(*arguments: str) -> Terminal:
        terminals.append(Terminal([sys.executable, "-P", "-m", "towline", *arguments], environment))
        return terminals[-1]

    yield call
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def long(tmp_path: Path) -> str:
    file = tmp_path / "long.csv"
    file.write_text("title,author,isbn\n" + "Emma,Jane Austen,9780141439587\n" * ROWS)
    return str(file)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def stop_and_continue(terminal: Terminal) -> None:
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
    command = first.wait_for(r"stopped following; the job goes on. Resume with\n  (towline watch .*)\n")[1]
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
    second.wait_for(r"the server was asked to cancel the job, and will")
    code, last_words = second.leave()
    assert code == 3
    assert "canceled" in last_words

    told = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    assert [one["type"] for one in told if "job" in one["type"]] == ["job_canceled"]


def test_sigterm_at_a_terminal_is_the_end_of_it(open_terminal: Open, hub: str, long: str) -> None:
    terminal = open_terminal("import", long, "--url", hub)
    terminal.wait_for(r"\[connected\]")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.wait_for(r"stopped following; the job goes on. Resume with\n  towline watch .*\n")
    code, last_words = terminal.leave()
    assert code == 130
    assert "press Ctrl-C again" not in last_words
