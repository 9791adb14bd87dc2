"""What docs/tutorial says to write, to type and to see, and a folder in which a test does so."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
#: Seconds without a line, after which a program hangs; not less on a busy machine.
PATIENCE = 150.0
_BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A block of a page. `file` is the name that the paragraph before a program gives it."""

    kind: str
    text: str
    file: str = ""


def blocks(page: str) -> list[Block]:
    """All code blocks of a page, in order."""
    text = (TUTORIAL / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        names = re.findall(r"`(\w+\.py)`", match["before"])
        file = names[-1] if match["kind"] == "python" else ""
        found.append(Block(match["kind"], match["text"], file))
    assert len(found) == text.count("\n```") // 2, "a block has no paragraph before it"
    return found


class Reader:
    """Reads what a program prints, as it comes. `lines` are those read so far, without what steers a terminal."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._coming: Queue[str | None] = Queue()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:  # text mode: a carriage return ends a line, too
                self._coming.put(line.replace("\x1b[K", "").rstrip("\n"))
        self._coming.put(None)

    def wait_for(self, pattern: str, holds: Callable[[re.Match[str]], bool] = lambda match: True) -> re.Match[str]:
        """Read on to a line that is `pattern`."""
        while True:
            line = self._next()
            assert line is not None, f"it ended without {pattern!r}: {self.lines}"
            if (match := re.fullmatch(pattern, line)) and holds(match):
                return match

    def finish(self) -> int:
        """Read to the program's end; returns its exit code."""
        while self._next() is not None:
            pass
        self.thread.join()
        return self.process.wait(PATIENCE)

    def _next(self) -> str | None:
        try:
            line = self._coming.get(timeout=PATIENCE)
        except Empty:
            raise AssertionError(f"nothing came after {self.lines}") from None
        if line:
            self.lines.append(line)
        return line


class Desk:
    """An empty folder, a token store and a free port, for one reader of the tutorial."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "towline-tutorial"
        self.folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self._started: list[Reader] = []

    def save(self, block: Block, **changes: str) -> None:
        """Write a program to its file, with the desk's port."""
        text = block.text.replace("8470", str(self.port))
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (self.folder / block.file).write_text(text, encoding="utf-8")

    def type(self, command: str, *more: str) -> Reader:
        """Type one command of a page."""
        arguments = [*shlex.split(command), *more]
        if arguments[0] == "towline":
            arguments = [sys.executable, "-P", "-m", *arguments]
        elif arguments[0] == "python":
            arguments[0] = sys.executable
        process = subprocess.Popen(
            arguments,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(Reader(process))
        return self._started[-1]

    def run(self, command: str, *, code: int = 0) -> str:
        """Type a command, and wait for its exit code; returns all that it prints."""
        reader = self.type(command)
        assert reader.finish() == code, reader.lines
        return "".join(f"{line}\n" for line in reader.lines)

    def make_zen(self, command: str) -> None:
        """Type the command that writes a text, whose `>` is a shell's."""
        command, _, name = command.partition(" > ")
        _, *arguments = shlex.split(command)
        text = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=PATIENCE).stdout
        (self.folder / name).write_bytes(text)

    def serve(self, command: str, announced: str, *more: str) -> Reader:
        """Start a hub, and see what the page shows."""
        hub = self.type(command, "--port", str(self.port), *more)
        for line in announced.replace("8470", str(self.port)).splitlines():
            hub.wait_for(re.escape(line))
        return hub

    def stop(self, hub: Reader) -> None:
        """Stop a hub as Ctrl-C does."""
        hub.process.terminate()  # SIGINT, if the tests run in a shell's background, is ignored
        assert hub.finish() == 0

    def clear(self) -> None:
        """End what still runs."""
        for reader in self._started:
            if reader.process.poll() is None:
                reader.process.kill()
            reader.process.wait(PATIENCE)
            reader.thread.join()
