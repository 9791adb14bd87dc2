"""Ways to call `towline` as a person does, and a job server that tells what a test wants told."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

if sys.platform != "win32":  # a pseudo-terminal is POSIX's
    import fcntl
    import pty
    import termios

Run = Callable[..., subprocess.CompletedProcess[str]]
PATIENCE = 120


def towline(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "towline", *arguments]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing of the user's is read or written."""
    return {
        **os.environ,
        "TOWLINE_KEY": base64.b64encode(bytes(range(32))).decode(),
        "TOWLINE_STORE": str(tmp_path / "tokens"),
    }


@pytest.fixture
def begin(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start `towline` and let it run."""
    return lambda *arguments, **options: subprocess.Popen(
        towline(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Call `towline` and wait for it."""

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            towline(*arguments), env={**environment, **variables}, capture_output=True, text=True, timeout=250
        )
        assert "Traceback" not in answer.stderr
        return answer

    return call


# What a login does: the pseudo-terminal becomes the controlling one, so that its Ctrl-C is our SIGINT.
LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A command on a pseudo-terminal. `shown` is what it has written so far, `raw` with what steers the terminal."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOGIN, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment,
        )
        os.close(theirs)
        self.shown = self.raw = ""
        self._pieces: Queue[str | None] = Queue()
        self._hung_up = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        """Read until the command ends or the terminal is hung up; only this thread closes its side.

        A descriptor that is closed while a thread reads from it stays open until the read returns, so it never blocks.
        """
        try:
            while not self._hung_up.is_set():
                if not select.select([self._ours], [], [], 0.05)[0]:
                    continue
                if not (data := os.read(self._ours, 65_536)):
                    break
                self._pieces.put(data.decode(errors="replace"))
        except OSError:
            pass  # how Linux tells that the other side is closed
        os.close(self._ours)
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

    def hang_up(self) -> None:
        """Close the terminal's window, of which the command learns by SIGHUP."""
        self._hung_up.set()
        self._reader.join()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture
def open_terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Call `towline` on a terminal."""
    terminals: list[Terminal] = []

    def call(*arguments: str, columns: int = 100, **variables: str) -> Terminal:
        its_own = {**environment, "TERM": "xterm", **variables}
        terminals.append(Terminal(towline(*arguments), its_own, columns))
        return terminals[-1]

    yield call
    for terminal in terminals:
        terminal.close()


class JobServer:
    """A job server without a log: it tells of an item every 0.1 s, and of the job's end after `finish()`.

    `jobs` are the ids that were followed, `closes` the codes with which the followers left.
    """

    def __init__(self) -> None:
        self.item = "Emma"
        self.jobs: list[str] = []
        self.closes: list[int | None] = []
        self.followed = threading.Event()
        self.left = threading.Event()
        self._finished = threading.Event()
        self._server = serve(self._tell, "127.0.0.1", 0, process_request=self._answer, close_timeout=1)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/ws/progress"

    def finish(self) -> None:
        """Let the job end."""
        self._finished.set()

    def stop(self) -> None:
        """End it."""
        self.finish()
        self._server.shutdown()
        self._thread.join()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        return None if request.path.startswith("/ws/progress") else Response(404, "Not Found", Headers())

    def _tell(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        job = parse_qs(urlsplit(socket.request.path).query)["jobId"][0]
        self.jobs.append(job)

        def tell(kind: str, **payload: Any) -> None:
            socket.send(json.dumps({"type": kind, "jobId": job, "payload": {"type": kind, **payload}}))

        try:
            socket.recv()  # `ready`
            socket.send('{"type": "ready_ack"}')
            tell("job_started", totalCount=15)
            done = 0
            while True:
                done = done % 14 + 1
                tell("job_progress", progress=done / 15, status="working", processedCount=done, currentItem=self.item)
                self.followed.set()
                if self._finished.is_set():
                    break
                with suppress(TimeoutError):
                    socket.recv(timeout=0.1)
            tell("job_complete")
            socket.recv(timeout=120)
        except ConnectionClosed as error:
            self.closes.append(error.rcvd.code if error.rcvd is not None else None)
        finally:
            self.left.set()


@pytest.fixture
def job_server(environment: dict[str, str]) -> Iterator[JobServer]:
    """A job server, and a token for it in the environment."""
    environment["TOWLINE_TOKEN"] = "t1"
    server = JobServer()
    yield server
    server.stop()
