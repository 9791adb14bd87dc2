"""A following that a request interrupts before any one of its lines, as a signal handler does."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import anyio

import towline
import towline.host
from towline import Backoff, Connection, ForbiddenRequest, JobComplete, JobEnded, Policy, Progress, State
from towline.statemachine import replay
from towline.testing import ScriptedServer, run_virtual

RESULT = {"books": [], "errors": [], "successRate": "1/1"}


class Interrupt:
    """Does what a signal handler does: makes a call before line `at` of Towline's own code; with None it counts."""

    def __init__(self, at: int | None, act: Callable[[], object]) -> None:
        self.at, self.act, self.count, self.where = at, act, 0, ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("towline.") or ".testing" in name:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.where = f"{name}:{frame.f_code.co_name}:{frame.f_lineno}"
                self.act()
        return self


@contextmanager
def traced(tracer: Interrupt) -> Iterator[None]:
    """Trace a block, and give the process its own tracer back: that of coverage."""
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)


class Seen(NamedTuple):
    lines: int
    where: str
    #: What the request returned or raised, and what was wrong afterwards.
    answer: object
    wrong: list[str]


def connection(server: ScriptedServer, **options: Any) -> Connection:
    return Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network, **options)


async def interrupted_cancel(at: int | None) -> Seen:
    """A whole following with `cancel()` before line `at`: entering, progress, a drop, the end, leaving."""
    answers: list[bool] = []
    wrong: list[str] = []
    after: list[object] = []
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=3)
        line = connection(server, policy=Policy(dial_spacing=0, backoff=Backoff(base=0.1, shared_window=0.1)))
        interrupt = Interrupt(at, lambda: answers.append(line.cancel()))
        try:
            with traced(interrupt), anyio.fail_after(60):
                async with line:
                    await line.wait_for(State.CONNECTED, State.CANCELLED)
                    job.progress(0.5)
                    async for update in line:
                        if answers == [True]:
                            after.append(update)
                        if isinstance(update, Progress):
                            server.socket.cut()
                            job.complete(RESULT)
        except towline.Cancelled:  # before the block was entered
            if answers != [True]:
                wrong.append("entering raised Cancelled")
        except TimeoutError:
            wrong.append("the block was not left")
        # An update that the iteration had in its hand already is the one of the moment; a second one is not.
        if len(after) > 1:
            wrong.append(f"delivered after cancel(): {after}")
        if answers and (line.state is State.CANCELLED) is not answers[0]:
            wrong.append(f"cancel() returned {answers[0]}, the state is {line.state.value}")
        if answers == [False] and not isinstance(line.outcome, JobComplete):
            wrong.append("cancel() returned False, and there is no end")
        if answers and line.cancel() is not answers[0]:
            wrong.append("a second cancel() was answered otherwise")
        if line._engine is not None and (departure := replay(line.history())) is not None:
            wrong.append(f"the history does not replay: {departure}")
    return Seen(interrupt.count, interrupt.where, answers, wrong)


async def interrupted_request(at: int | None, request: str) -> Seen:
    """The same with a request after which following goes on: the job's end is delivered all the same."""
    answers: list[object] = []
    wrong: list[str] = []

    def act() -> None:
        call: dict[str, Callable[[], object]] = {
            "connect": lambda: line.connect(token="t1"),
            "retry": line.retry,
            "background": lambda: (line.background(grace=0), line.foreground()),
            "path": lambda: (line.report_network(False), line.report_network(True)),
            "wake": line.report_wake,
        }
        try:
            answers.append(call[request]())
        except ForbiddenRequest as error:
            answers.append(error)

    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=3)
        line = connection(server, policy=Policy(dial_spacing=0, backoff=Backoff(base=0.1, shared_window=0.1)))
        interrupt = Interrupt(at, act)
        try:
            with traced(interrupt), anyio.fail_after(120):
                async with line:
                    async for update in line:
                        if not isinstance(update, JobComplete):
                            await line.wait_for(State.CONNECTED, State.IDLE)
                            job.complete(RESULT)
        except TimeoutError:
            wrong.append(f"{line.state.value}: the end did not come")
        if not isinstance(line.outcome, JobComplete):
            wrong.append("no outcome")
        if any(isinstance(answer, ForbiddenRequest) for answer in answers) and not (
            isinstance(answers[0], JobEnded) or answers[0].state in ("not entered", "left", "idle")  # type: ignore[attr-defined]
        ):
            wrong.append(f"refused: {answers[0]}")
        if line._engine is not None and (departure := replay(line.history())) is not None:
            wrong.append(f"the history does not replay: {departure}")
    return Seen(interrupt.count, interrupt.where, answers, wrong)


def interrupt_everywhere(backend: str, story: Callable[..., Any], *args: object, tried: int) -> None:
    for _ in range(2):  # what runs once only, runs now
        lines = run_virtual(story, None, *args, backend=backend).lines
    gc.collect()
    wrong = []
    came = 0
    for at in range(1, lines + 1, max(1, lines // tried)):
        seen = run_virtual(story, at, *args, backend=backend)
        came += bool(seen.answer)
        wrong += [f"line {at}, {seen.where}: {each}" for each in seen.wrong]
    assert wrong == []
    assert came > tried * 0.8, "the interruption came, in nearly all of the runs"
