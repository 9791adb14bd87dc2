"""The servers that run for the scenes, and the line that is printed for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import PROGRAMS, TOKEN, NotInstalled, Server, Tally
from interop.process import Process, free_port

TALLIES: dict[str, Tally] = {}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Server], tuple[Process, Path, Tally]]]:
    """Starts a server once a module; skips if it cannot be installed. Returns its process and folder."""
    started: dict[str, tuple[Process, Path, Tally]] = {}

    def run(server: Server) -> tuple[Process, Path, Tally]:
        title = server.title or server.name
        if title not in started:
            try:
                python = server.python()
            except NotInstalled as error:
                pytest.skip(f"{server.name}: {error}")
            folder, port = tmp_path_factory.mktemp(server.name), free_port()
            (folder / "token").write_text(TOKEN)
            environment = {"HOME": str(folder), "PYTHONPATH": str(PROGRAMS), **server.environment}
            process = Process([str(python), *server.command(port)], port, folder, environment)
            process.start()
            started[title] = (process, folder, TALLIES.setdefault(title, Tally(server.allowed)))
        return started[title]

    yield run
    for process, _, _ in started.values():
        process.end()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was counted for each server."""
    for title, tally in TALLIES.items():
        terminalreporter.write_line(f"{title}: {tally.line()}")
