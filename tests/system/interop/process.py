"""A server or proxy as a process that is signalled, ended and begun again on its port."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

#: Each is given once: two programs of one scene could else be given the same before one of them listens.
_PORTS: Final = iter(random.sample(range(20_000, 32_000), 12_000))


def free_port() -> int:
    """A port nobody listens on, below those that the system gives to clients: it stays free while a server is down."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port from 20000 to 31999 is free")


class Process:
    """One program on one port of 127.0.0.1, with its workers."""

    def __init__(self, command: Sequence[str], port: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.port = port
        self._command = command
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._output = folder / f"output-{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{self._command} does not listen:\n{self._output.read_text()[-2000:]}")

    def send_signal(self, number: int) -> None:
        """To it and its workers: the session that was begun for it holds them all."""
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it: by SIGKILL with its workers, or by another signal, which it passes on to them itself, within 8 s."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            if number != signal.SIGKILL:
                self._process.send_signal(number)
                self._process.wait(8)
        with suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        self._process.wait(8)
        self._process = None
