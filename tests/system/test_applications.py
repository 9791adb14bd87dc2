"""The example applications: each toolkit's own loop, a real hub, a window that is hidden in mid-job and shown again."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

import towline
import towline.blocking
from towline import State
from towline.cli.follow._start import StartedJob, start_job

EXAMPLES = Path(__file__).parents[2] / "examples"
POLICY = towline.Policy(grace=0.1, dial_spacing=0.1)
ROWS = 400
ROW_DELAY = 0.02
PATIENCE = 60

pytestmark = pytest.mark.timeout(180)


class Following:
    """A job, the connection that follows it, and what that told: updates, and every state in order."""

    def __init__(self, hub: str) -> None:
        body = b"title,author,isbn\n" + b"Emma,Jane Austen,9780141439587\n" * ROWS
        self.job: StartedJob = anyio.run(start_job, f"{hub}/api/imports/csv", body)
        self.url = hub.replace("http", "ws", 1) + "/ws/progress"
        self.updates: list[towline.AnyUpdate] = []
        self.states: list[State] = []

    def connection(self, kind: Callable[..., Any]) -> Any:
        return kind(self.url, job=self.job.job, token=self.job.token, policy=POLICY, on_state=self.changed)

    def changed(self, change: towline.StateChange) -> None:
        self.states.append(change.state)

    def is_on_its_way(self) -> bool:
        return State.CONNECTED in self.states and sum(isinstance(one, towline.Progress) for one in self.updates) > 3

    def check(self) -> None:
        """It was quiet once, in mid-job, came back by itself, and was told of the end exactly once."""
        assert self.states.count(State.BACKGROUNDED) == 1
        quiet = self.states.index(State.BACKGROUNDED)
        assert State.CONNECTED in self.states[:quiet]
        assert self.states[quiet + 1 : quiet + 4] == [State.CONNECTING, State.SYNCING, State.CONNECTED]
        assert self.states[-1] is State.IDLE
        ends = [one for one in self.updates if isinstance(one, towline.JobComplete)]
        assert len(ends) == 1
        assert self.updates[-1] is ends[0]


@pytest.fixture
def following(hub: str) -> Following:
    return Following(hub)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import an example as Python does that runs it: with its folder on the path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.mark.skipif(importlib.util.find_spec("textual") is None, reason="needs textual (tests/system/requirements.txt)")
@pytest.mark.parametrize("how", ["focus", "suspend"])
def test_textual(following: Following, load: Callable[[str], ModuleType], how: str) -> None:
    from textual import events

    class Watch(load("textual_watch").Watch):  # type: ignore[misc]
        def show(self, update: towline.AnyUpdate) -> None:
            following.updates.append(update)
            super().show(update)

    async def main() -> None:
        line = following.connection(towline.Connection)
        app = Watch(line)

        async def until(condition: Callable[[], bool]) -> None:
            while not condition():  # noqa: ASYNC110 - the application has nothing to wait for
                await anyio.sleep(0.01)

        with anyio.fail_after(PATIENCE):
            async with app.run_test() as pilot:
                await until(following.is_on_its_way)
                if how == "focus":
                    app.post_message(events.AppBlur())
                else:
                    await app.run_action("suspend_process")
                    assert line.state is State.BACKGROUNDED  # before the process would stop
                await until(lambda: line.state is State.BACKGROUNDED)
                if how == "focus":
                    app.post_message(events.AppFocus())
                else:
                    app.app_resume_signal.publish(app)
                await until(lambda: app.return_value is not None)
                await pilot.pause()
        assert isinstance(app.return_value, towline.JobComplete)

    anyio.run(main)
    following.check()


@pytest.mark.skipif(importlib.util.find_spec("PySide6") is None, reason="needs PySide6 (tests/system/requirements.txt)")
@pytest.mark.parametrize("how", ["hide", "minimise"])
def test_qt(following: Following, load: Callable[[str], ModuleType], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtCore import QTimer
    from PySide6.QtWidgets import QApplication

    example = load("qt_watch")
    application = QApplication.instance() or QApplication([])
    line = following.connection(towline.blocking.Connection)
    window = example.Window(line)
    window.updated.connect(lambda update: following.updates.append(update) if update is not None else None)
    application.setQuitOnLastWindowClosed(False)
    hide, show = (window.hide, window.show) if how == "hide" else (window.showMinimized, window.showNormal)
    steps = [
        (following.is_on_its_way, hide),
        (lambda: line.state is State.BACKGROUNDED, show),
        (lambda: line.outcome is not None and not window.isVisible(), application.quit),
    ]
    errors: list[str] = []
    deadline = time.monotonic() + PATIENCE

    def look() -> None:
        if time.monotonic() > deadline:
            errors.append(f"{len(steps)} steps are left in {line!r}")
            application.quit()
        elif steps and steps[0][0]():
            steps.pop(0)[1]()

    timer = QTimer()
    timer.timeout.connect(look)
    timer.start(10)
    window.show()
    application.exec()
    timer.stop()
    window.close()
    assert errors == []
    assert window.bar.value() == window.bar.maximum()
    following.check()


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An X server in memory."""
    if shutil.which("Xvfb") is None or importlib.util.find_spec("tkinter") is None:
        pytest.skip("needs Xvfb and tkinter (Debian: xvfb, python3-tk)")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        monkeypatch.setenv("DISPLAY", f":{server.stdout.readline().strip()}")
        yield
        server.terminate()


def test_tk(following: Following, load: Callable[[str], ModuleType], display: None) -> None:
    class Window(load("tk_watch").Window):  # type: ignore[misc]
        def take(self, update: towline.AnyUpdate) -> None:
            following.updates.append(update)
            super().take(update)

    line = following.connection(towline.blocking.Connection)
    window = Window(line)
    steps = [
        (following.is_on_its_way, window.withdraw),
        (lambda: line.state is State.BACKGROUNDED, window.deiconify),
    ]
    errors: list[str] = []
    deadline = time.monotonic() + PATIENCE

    def look() -> None:
        if time.monotonic() > deadline:
            errors.append(f"{len(steps)} steps are left in {line!r}")
            window.leave()
            return
        if steps and steps[0][0]():
            steps.pop(0)[1]()
        if steps:
            window.after(10, look)

    window.after(10, look)
    window.mainloop()  # until the job's end closes it
    assert errors == []
    assert isinstance(line.outcome, towline.JobComplete)
    following.check()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.skipif(importlib.util.find_spec("textual") is None, reason="needs textual (tests/system/requirements.txt)")
def test_textual_on_a_terminal_is_stopped_by_ctrl_z_and_goes_on(following: Following) -> None:
    command = [sys.executable, str(EXAMPLES / "textual_watch.py"), following.url, following.job.job]
    environment = {**os.environ, "TOWLINE_TOKEN": following.job.token.reveal(), "TERM": "xterm-256color"}
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", LOGIN, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        screen = Screen(ours)
        try:
            screen.wait_for(b"connected")
            os.write(ours, b"\x1a")
            deadline = time.monotonic() + PATIENCE
            while not is_stopped(process.pid):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGCONT)
            screen.wait_for(b"it ended: JobComplete")
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            screen.close()


# What a login does: the pseudo-terminal becomes the controlling one.
LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


class Screen:
    """What a program writes to its terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._written = b""
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while not self._ended:
            try:
                data = os.read(self._terminal, 65_536)
            except OSError:  # how Linux tells that the other side is closed
                data = b""
            with self._more:
                self._written += data
                self._ended = not data
                self._more.notify_all()

    def wait_for(self, words: bytes) -> None:
        with self._more:
            assert self._more.wait_for(lambda: words in self._written or self._ended, PATIENCE), self._written[-2000:]
            assert words in self._written, self._written[-2000:]

    def close(self) -> None:
        self._reader.join()
        os.close(self._terminal)


@pytest.mark.skipif(importlib.util.find_spec("textual") is None, reason="needs textual (tests/system/requirements.txt)")
def test_the_example_runs_as_a_program_and_says_what_is_wrong(hub: str) -> None:
    url = hub.replace("http", "ws", 1) + "/ws/progress"
    command = [sys.executable, str(EXAMPLES / "textual_watch.py"), url, "no-such-job"]
    environment = {**os.environ, "TOWLINE_TOKEN": "wrong", "TERM": "xterm"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert answer.returncode == 1, answer.stderr
    assert "Traceback" not in answer.stderr
