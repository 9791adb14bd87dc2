"""A job that goes on when told, and its follower, whose updates are held against the job's log."""

from __future__ import annotations

import json
import ssl as ssl_module
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

import towline
from towline.statemachine import Backoff, GapFound, Lost, Policy, Refused, TokenRejected, Verdict
from towline.testing import LoggedEvent, audit_updates

from .app import EVENTS, Close, Refusal, log_type

#: Liveness and dials in seconds where the defaults take minutes.
QUICK = Policy(
    dial_spacing=0.2,
    ping_after=0.7,
    lost_after=1.5,
    connect_deadline=3,
    backoff=Backoff(base=0.2, cap=1, shared_window=0.5),
)
#: Pings often, and waits long for their answers: what is lost is not lost to a busy machine.
PINGS = Policy(ping_after=1, lost_after=30)
#: The first ping comes after any proxy or server here has lost its patience.
SELDOM_PINGS = Policy(ping_after=20, lost_after=30, dial_spacing=0.2, backoff=QUICK.backoff)
LOG = [LoggedEvent("e1", seq, 0.0, log_type(seq), "") for seq in range(1, EVENTS + 1)]


class Job:
    """A job whose events happen when the scene says so."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._file = folder / name
        self._count = 0
        self.go_on(1)

    def go_on(self, events: int) -> None:
        """Let so many more events happen; the last one ends it."""
        self._count = min(self._count + events, EVENTS)
        self._write(self._file, str(self._count))

    async def work(self, events: int) -> None:
        """The same, one by one."""
        for _ in range(events):
            self.go_on(1)
            await anyio.sleep(0.03)

    def refuse(self, refusal: Refusal) -> None:
        """Let the server refuse the job's upgrades."""
        self._write(self._file.with_suffix(".refusal"), json.dumps(refusal))

    def close(self, close: Close) -> None:
        """Let the server close the job's next socket."""
        self._write(self._file.with_suffix(".close"), json.dumps(close))

    def upgrades(self) -> list[float]:
        """When the server was asked for upgrades, in seconds since 1970."""
        return [float(line) for line in self._file.with_suffix(".upgrades").read_text().splitlines()]

    def _write(self, file: Path, text: str) -> None:
        # At once and whole: the server reads it at any moment.
        new = file.with_name(f"{file.name}.new")
        new.write_text(text)
        new.replace(file)


@dataclass(frozen=True)
class Failure:
    """A link or an attempt that failed, as the engine recorded it: `at` on the loop's clock."""

    code: str
    at: float


def failures_of(line: towline.Connection) -> list[Failure]:
    """The links and attempts that failed so far."""
    return [
        Failure(entry.event.cause.code, entry.facts.now)
        for entry in line.history().entries
        if isinstance(entry.event, Lost | TokenRejected | Refused | GapFound)
        and entry.verdict in (Verdict.MOVED, Verdict.KEPT)
    ]


@dataclass
class Follower:
    """Follows a job to its end, or until the engine gives up."""

    url: str
    job: Job
    policy: Policy = QUICK
    ssl: ssl_module.SSLContext | None = None
    token: str | towline.TokenProvider = "t1"
    updates: list[towline.AnyUpdate] = field(default_factory=list)
    gave_up: str | None = None
    _line: towline.Connection | None = None

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow while the block lasts, and then to the job's end. What takes longer than a minute is left without."""
        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow)
                yield
                await self.job.work(EVENTS)

    async def shown(self, seq: int) -> None:
        """Wait until the job's event number `seq` was delivered."""
        await _until(lambda: any((getattr(update, "seq", None) or 0) >= seq for update in self.updates))

    async def failed(self, times: int) -> None:
        """Wait until so many links and attempts failed."""
        await _until(lambda: len(self.failures()) >= times)

    def failures(self) -> list[Failure]:
        """The links and attempts that failed so far."""
        return [] if self._line is None else failures_of(self._line)

    def findings(self) -> list[str]:
        """What was wrong with the updates: none may be lost or come twice, and the end comes once."""
        return audit_updates(self.updates, LOG, ended=self.gave_up is None)

    async def _follow(self) -> None:
        network = towline.Network(tls=self.ssl)
        line = towline.Connection(self.url, job=self.job.name, token=self.token, policy=self.policy, network=network)
        async with line:
            self._line = line
            try:
                async for update in line:
                    self.updates.append(update)
            except towline.Exhausted as exhausted:
                self.gave_up = exhausted.reason
                # An attempt too many would come within the backoff.
                await anyio.sleep(1.5 * self.policy.backoff.cap)


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - an attempt refused for its token changes no state, so nothing tells of it
        await anyio.sleep(0.02)
