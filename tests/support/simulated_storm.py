"""Follows a whole job through random faults, in memory and under virtual time: the engine's endurance test.

The seed decides everything random, so that a failing run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

from towline._connection import Connection
from towline._exceptions import Exhausted, TowlineError
from towline._updates import AnyUpdate
from towline.protocols.wire.messages import JobState
from towline.statemachine import State
from towline.testing import (
    Accept,
    Answer,
    Drop,
    Hang,
    NoAnswer,
    Reach,
    Reaction,
    ScriptedJob,
    ScriptedServer,
    Unreachable,
    audit_updates,
    controlled,
    run_virtual,
)

#: Longer than any run can take, in virtual seconds.
_PATIENCE: Final = 24 * 3600.0
_CLOSE_CODES: Final = (1000, 1001, 1011, 1012, 1013, 1014, 3000, 4000)


@dataclass(slots=True)
class StormReport:
    """The result of one run. `findings` is empty if all checks passed; `faults` are (virtual second, fault)."""

    seed: int
    findings: list[str] = field(default_factory=list)
    updates: list[AnyUpdate] = field(default_factory=list)
    faults: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0
    dials: int = 0
    exhausted: int = 0

    def __str__(self) -> str:
        listed = ", ".join(f"{at:.1f} s {what}" for at, what in self.faults)
        return f"seed {self.seed}: {'; '.join(self.findings) or 'all checks passed'} (faults: {listed or 'none'})"


def simulate_storm(seed: int, *, backend: str = "asyncio") -> StormReport:
    """Follow a simulated job with a real `Connection` through the faults that `seed` decides; never raises for them.

    It checks that there is exactly one end, or `Exhausted` was raised, and nothing after it. Against the server's log
    there is no gap and no repeat, and no count decreases. Nothing is left open when the connection is closed.
    """
    return run_virtual(_Storm(seed).run, backend=backend)


class _Storm:
    def __init__(self, seed: int) -> None:
        self.report = StormReport(seed)
        self.random = random.Random(seed)
        self.server = ScriptedServer(numbered=self.random.random() < 0.8)
        self.job: ScriptedJob
        self.line: Connection
        self.old_states: list[JobState] = []

    async def run(self) -> StormReport:
        try:
            with anyio.fail_after(_PATIENCE):
                async with self.server:
                    await self._follow()
                    self.report.seconds = anyio.current_time()
        except TimeoutError:
            self.report.findings.append(f"hung in {self.line.state.value}")
        except TowlineError as error:
            self.report.findings.append(f"raised {error!r}")
        self.report.dials = len(self.server.network.dials)
        return self.report

    async def _follow(self) -> None:
        self.server.network.weather = Reach(latency=self.random.choice([0, 0.01, 0.2]))
        self.job = self.server.job("j1", token="t1")
        self.line = Connection(
            "ws://hub/ws/progress",
            job="j1",
            token=self._give_token,
            network=self.server.network,
        )
        controlled(self.line, random=self.random.random, wall_time=anyio.current_time)
        async with self.line:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run_job)
                tasks.start_soon(self._make_faults)
                await self._listen()
                tasks.cancel_scope.cancel()
        self._audit()
        for link in self.server.network.links:
            link.release()  # a black hole hides from the server that the client has closed
        await anyio.sleep(1)
        if left := len(self.server.network.links):
            self.report.findings.append(f"{left} links left open")

    async def _give_token(self) -> str:
        return self.job.token

    # --- the job, the listener and the faults ----------------------------------------------------------------------

    async def _run_job(self) -> None:
        total = self.random.randint(1, 40)
        pace = self.random.choice([0.5, 5.0, 20.0])
        self.job.start(total_count=total)
        for count in range(1, total + 1):
            await anyio.sleep(self.random.expovariate(1 / pace))
            self.job.progress(count / total, processed=count, keep_alive=self.random.random() < 0.05)
            self.old_states.append(self.job.state())
        endings: list[Callable[[], object]] = [self.job.complete, self.job.fail, self.job.cancel]
        self.random.choice(endings)()

    async def _listen(self) -> None:
        slow = self.random.random() < 0.1
        while True:
            try:
                async for update in self.line:
                    self.report.updates.append(update)
                    if slow:
                        await anyio.sleep(self.random.uniform(0, 20))
                return
            except Exhausted:
                # It was reported; a user would try again later.
                self.report.exhausted += 1
                self._end_faults()
                self.line.retry()

    async def _make_faults(self) -> None:
        for _ in range(self.random.randint(0, 12)):
            await anyio.sleep(self.random.expovariate(1 / self.random.choice([0.2, 5, 30])))
            fault = self.random.choice(_FAULTS)
            self.report.faults.append((anyio.current_time(), fault.__name__.strip("_")))
            fault(self)
            if self.random.random() < 0.7:
                await anyio.sleep(self.random.choice([0.1, 5, 40, 900]))
                self._end_faults()
        await anyio.sleep(60)
        self._end_faults()

    def _end_faults(self) -> None:
        self.server.network.weather = Reach()
        self.job.silent = False
        for call in ("upgrade", "state"):
            self.server.always(call, None)
        for link in self.server.network.links:
            link.release()
        self.line.foreground()
        self.line.report_network(True, "a")

    # --- the end ---------------------------------------------------------------------------------------------------

    def _audit(self) -> None:
        self.report.findings += audit_updates(self.report.updates, self.job.log)
        if self.line.state is not State.IDLE:
            self.report.findings.append(f"{self.line.state.value} after the end")


# --- faults: plain functions, one each -------------------------------------------------------------------------------


def _cut_fin(storm: _Storm) -> None:
    for socket in storm.server.open_sockets:
        socket.cut("fin")


def _cut_rst(storm: _Storm) -> None:
    for socket in storm.server.open_sockets:
        socket.cut("rst")


def _cut_everything(storm: _Storm) -> None:
    for link in storm.server.network.links:
        link.cut("rst")


def _black_hole(storm: _Storm) -> None:
    for link in storm.server.network.links:
        link.hold()


def _half_black_hole(storm: _Storm) -> None:
    direction = storm.random.choice(["up", "down"])
    for link in storm.server.network.links:
        link.hold("up" if direction == "up" else "down")


def _close(storm: _Storm) -> None:
    code = storm.random.choice(_CLOSE_CODES)
    for socket in storm.server.open_sockets:
        socket.close(code, '{"retry_in": 1, "spread": 10}' if code == 1012 else "")


def _server_gone(storm: _Storm) -> None:
    storm.server.network.weather = Unreachable(resolved=storm.random.random() < 0.8)
    _cut_rst(storm)


def _no_answer(storm: _Storm) -> None:
    storm.server.network.weather = NoAnswer()
    _cut_fin(storm)


def _bad_upgrades(storm: _Storm) -> None:
    reactions: list[Reaction] = [
        Answer(503, headers={"retry-after": "2"}),
        Answer(429),
        Answer(502),
        Hang(),
        Drop("fin"),
        Drop("rst"),
        Accept(close_after=0.5, close_code=1012),
        Accept(answers_ready=False),
    ]
    storm.server.script("upgrade", *(storm.random.choice(reactions) for _ in range(storm.random.randint(1, 4))))
    _cut_rst(storm)


def _bad_states(storm: _Storm) -> None:
    reactions: list[Reaction] = [Answer(500), Answer(429), Hang(), Drop("rst"), Answer(200, b"<html>")]
    if storm.old_states:
        reactions.append(Answer(body=storm.random.choice(storm.old_states)))
    storm.server.script("state", *(storm.random.choice(reactions) for _ in range(storm.random.randint(1, 3))))
    _cut_rst(storm)


def _lost_messages(storm: _Storm) -> None:
    storm.job.silent = True


def _repeated_messages(storm: _Storm) -> None:
    for socket in storm.server.open_sockets:
        for event in storm.random.choices(storm.job.log, k=3):
            if not event.terminal:
                socket.send_event(event)


def _short_memory(storm: _Storm) -> None:
    storm.job.forget(storm.job.last_seq)
    _cut_rst(storm)


def _cut_at_a_byte(storm: _Storm) -> None:
    for link in storm.server.network.links:
        direction = storm.random.choice(["up", "down"])
        some = storm.random.randint(0, 3000)
        if direction == "up":
            link.end_after(link.carried("up") + some, "up")
        else:
            link.end_after(link.carried("down") + some, "down")


def _one_byte_reads(storm: _Storm) -> None:
    for link in storm.server.network.links:
        link.set_largest_read(1)


def _token_expires(storm: _Storm) -> None:
    old = storm.job.token
    storm.server.renew(storm.job)
    storm.server.revoke(old)
    for socket in storm.server.open_sockets:
        socket.close(storm.random.choice([1008, 4401]))


def _new_epoch(storm: _Storm) -> None:
    storm.job.begin_new_epoch(f"{storm.job.epoch}+")


def _background(storm: _Storm) -> None:
    storm.line.background()


def _path_lost(storm: _Storm) -> None:
    storm.line.report_network(False)
    _black_hole(storm)


def _path_changed(storm: _Storm) -> None:
    storm.line.report_network(True, f"path {storm.random.random()}")


def _woke(storm: _Storm) -> None:
    storm.line.report_wake()


def _retry(storm: _Storm) -> None:
    # Not allowed once the job has ended.
    if storm.line.state not in (State.IDLE, State.CANCELLED):
        storm.line.retry()


_FAULTS: Final[tuple[Callable[[_Storm], None], ...]] = (
    _cut_fin,
    _cut_rst,
    _cut_everything,
    _black_hole,
    _half_black_hole,
    _close,
    _server_gone,
    _no_answer,
    _bad_upgrades,
    _bad_states,
    _lost_messages,
    _repeated_messages,
    _short_memory,
    _cut_at_a_byte,
    _one_byte_reads,
    _token_expires,
    _new_epoch,
    _background,
    _path_lost,
    _path_changed,
    _woke,
    _retry,
)
