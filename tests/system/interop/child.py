"""A follower in a process of its own, which can be made to stand still: `python -m interop.child URL JOB`.

The child writes each update as a line of JSON, and at last its failures, on the system's monotonic clock.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

import towline

from .follower import SELDOM_PINGS, Failure, Follower, failures_of


@dataclass
class ChildFollower(Follower):
    """Follows in a child, with `SELDOM_PINGS`."""

    _process: Process | None = None
    _failures: list[Failure] = field(default_factory=list)

    def send_signal(self, number: signal.Signals) -> None:
        """To the child."""
        assert self._process is not None
        self._process.send_signal(number)

    def failures(self) -> list[Failure]:
        """The links and attempts that failed, once the child has ended."""
        offset = anyio.current_time() - time.monotonic()
        return [replace(failure, at=failure.at + offset) for failure in self._failures]

    async def _follow(self) -> None:
        command = [sys.executable, "-m", __name__, self.url, self.job.name]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        async with await anyio.open_process(command, env=environment, stderr=None) as self._process:
            assert self._process.stdout is not None
            lines = BufferedByteReceiveStream(self._process.stdout)
            with suppress(anyio.EndOfStream, anyio.IncompleteRead):
                while True:
                    line = await lines.receive_until(b"\n", 1 << 16)
                    if line.startswith(b"["):
                        self._failures = msgspec.json.decode(line, type=list[Failure])
                    else:
                        self.updates.append(msgspec.json.decode(line, type=towline.AnyUpdate))


async def _main(url: str, job: str) -> None:
    async with towline.Connection(url, job=job, token="t1", policy=SELDOM_PINGS) as line:
        async for update in line:
            _write(update)
        offset = time.monotonic() - anyio.current_time()
        _write([replace(failure, at=failure.at + offset) for failure in failures_of(line)])


def _write(told: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    anyio.run(_main, sys.argv[1], sys.argv[2])
