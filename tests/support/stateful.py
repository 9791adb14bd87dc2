"""A Hypothesis state machine for a real `Connection`: its guarantees hold for any user, host, network and server.

    from stateful import connection_machine

    class TestConnection(connection_machine("trio").TestCase):
        settings = settings(max_examples=200, stateful_step_count=40)

Its rules write a story. The complete story is played under virtual time, and Hypothesis shrinks a failing story as far
as it can.

The guarantees: a job has exactly one end, or none if the user cancelled first, and nothing comes after it. Every event
is a cell of the table, and the recorded history replays. `cancel()` changes the state at once and is final. Leaving the
connection leaves nothing open, within the time that closing may take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import anyio

from towline._connection import Connection
from towline._exceptions import ForbiddenRequest, TowlineError
from towline._updates import AnyUpdate, JobCancelled, JobComplete, JobFailed
from towline.statemachine import State, replay
from towline.testing import (
    Answer,
    Drop,
    Hang,
    NoAnswer,
    Reach,
    Reaction,
    ScriptedServer,
    Unreachable,
    controlled,
    run_virtual,
)
from towline.testing.memory._network import Fate

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

#: One line of a story: the action and its argument.
Line = tuple[str, Any]

_PATIENCE: Final = 24 * 3600.0
_CLOSES: Final = (1000, 1001, 1008, 1011, 1012, 1013, 3000, 3500, 4401)
_REACTIONS: Final[dict[str, Reaction]] = {
    "503": Answer(503),
    "429": Answer(429, headers={"retry-after": "20"}),
    "401": Answer(401),
    "404": Answer(404),
    "400": Answer(400),
    "hang": Hang(),
    "drop": Drop(),
}
_WEATHERS: Final[dict[str, Fate]] = {
    "fair": Reach(),
    "slow": Reach(latency=0.3),
    "refused": Unreachable(),
    "silent": NoAnswer(),
}


def connection_machine(backend: str = "asyncio") -> type[RuleBasedStateMachine]:
    """Make the state machine for one backend; its `TestCase` is a test."""
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

    class ConnectionMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.story: list[Line] = []
            self.numbered = True

        @initialize(numbered=st.booleans())
        def server(self, numbered: bool) -> None:
            self.numbered = numbered

        @rule(what=st.sampled_from(["connect", "retry", "cancel", "aclose"]))
        def user(self, what: str) -> None:
            self.story.append((what, None))

        @rule(what=st.sampled_from(["background", "foreground", "path lost", "path back", "path other", "wake"]))
        def host(self, what: str) -> None:
            self.story.append((what, None))

        @rule(ending=st.sampled_from(["fin", "rst"]))
        def links_break(self, ending: str) -> None:
            self.story.append(("cut", ending))

        @rule(held=st.booleans())
        def links_go_silent(self, held: bool) -> None:
            self.story.append(("hold" if held else "release", None))

        @rule(weather=st.sampled_from(sorted(_WEATHERS)))
        def weather(self, weather: str) -> None:
            self.story.append(("weather", weather))

        @rule(code=st.sampled_from(_CLOSES))
        def server_closes(self, code: int) -> None:
            self.story.append(("close", code))

        @rule(call=st.sampled_from(["upgrade", "state"]), reaction=st.sampled_from([None, *sorted(_REACTIONS)]))
        def server_answers(self, call: str, reaction: str | None) -> None:
            self.story.append((call, reaction))

        @rule(count=st.integers(1, 5))
        def job_goes_on(self, count: int) -> None:
            self.story.append(("progress", count))

        @rule(how=st.sampled_from(["complete", "fail", "cancel"]))
        def job_ends(self, how: str) -> None:
            self.story.append(("end", how))

        @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 5.0, 30.0, 130.0, 700.0]))
        def time_passes(self, seconds: float) -> None:
            self.story.append(("sleep", seconds))

        def teardown(self) -> None:
            findings = play(self.story, backend=backend, numbered=self.numbered)
            if findings:  # an `assert` does not run under `python -O`
                raise AssertionError(f"{'; '.join(findings)} in {self.story}")

    return ConnectionMachine


def play(story: list[Line], *, backend: str = "asyncio", numbered: bool = True) -> list[str]:
    """Play one story with a real connection under virtual time; returns the violated guarantees."""
    return run_virtual(_Play(story, numbered).run, backend=backend)


class _Play:
    def __init__(self, story: list[Line], numbered: bool) -> None:
        self.story = story
        self.numbered = numbered
        self.findings: list[str] = []
        self.updates: list[AnyUpdate] = []
        self.count = 0

    async def run(self) -> list[str]:
        try:
            with anyio.fail_after(_PATIENCE):
                async with ScriptedServer(numbered=self.numbered) as server:
                    await self._follow(server)
        except TimeoutError:
            self.findings.append(f"hung in {self.line.state.value}")
        return self.findings

    async def _follow(self, server: ScriptedServer) -> None:
        self.server = server
        self.job = server.job("j1", token="t1")
        self.line = Connection(
            "ws://hub/ws/progress",
            job="j1",
            token=self._give_token,
            network=server.network,
        )
        controlled(self.line, random=lambda: 0.5, wall_time=anyio.current_time)
        self.job.start(total_count=1000)
        async with self.line:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen)
                for what, value in self.story:
                    await self._do(what, value)
                await self._finish_job()
                # The end is delivered before this; give the listener its turn.
                await anyio.sleep(1)
                tasks.cancel_scope.cancel()
            history = self.line.history()
            left_at = anyio.current_time()
        if anyio.current_time() - left_at > 2 * 2.0 + 3.0:
            self.findings.append(f"closing took {anyio.current_time() - left_at:g} s")
        if (departure := replay(history)) is not None:
            self.findings.append(f"the history does not replay: {departure}")
        await self._check_open_links()
        self._audit()

    async def _give_token(self) -> str:
        return self.job.token

    async def _listen(self) -> None:
        engine = self.line._engine
        assert engine is not None, "the connection was entered"
        while True:
            async for update in self.line.updates(wait=True):
                self.updates.append(update)
            if self.line.outcome is not None or self.line.state is State.CANCELLED:
                return
            # Iteration ends with `aclose` too, after which the user may connect again.
            await engine.runner.wait_changed()

    # --- the story -------------------------------------------------------------------------------------------------

    async def _do(self, what: str, value: Any) -> None:
        line = self.line
        simple: dict[str, Callable[[], object]] = {
            "connect": line.connect,
            "retry": line.retry,
            "background": line.background,
            "foreground": line.foreground,
            "path lost": lambda: line.report_network(False),
            "path back": lambda: line.report_network(True, "a"),
            "path other": lambda: line.report_network(True, "b"),
            "wake": line.report_wake,
            "cancel": self._cancel,
        }
        if what in simple:
            try:
                simple[what]()
            except ForbiddenRequest:
                if what not in ("connect", "retry"):
                    self.findings.append(f"{what} was not allowed")
        elif what == "aclose":
            await line.aclose()
        elif what == "sleep":
            await anyio.sleep(value)
        elif what in ("upgrade", "state"):
            self.server.always("upgrade" if what == "upgrade" else "state", _REACTIONS.get(value))
        elif what == "weather":
            self.server.network.weather = _WEATHERS[value]
        else:
            self._do_to_links(what, value)

    def _do_to_links(self, what: str, value: Any) -> None:
        match what:
            case "cut":
                for link in self.server.network.links:
                    link.cut(value)
            case "hold" | "release":
                for link in self.server.network.links:
                    getattr(link, what)()
            case "close":
                for socket in self.server.open_sockets:
                    socket.close(value)
            case "progress" if not self.job.ended:
                for _ in range(value):
                    self.count += 1
                    self.job.progress(self.count / 1000, processed=self.count)
            case "end" if not self.job.ended:
                endings: dict[str, Callable[[], object]] = {
                    "complete": self.job.complete,
                    "fail": self.job.fail,
                    "cancel": self.job.cancel,
                }
                endings[value]()

    def _cancel(self) -> None:
        line = self.line
        won = line.cancel()
        if won is not (line.state is State.CANCELLED) or won is not (line.outcome is None):
            self.findings.append(f"cancel() returned {won} in {line.state.value}")
        if line.cancel() is not won:
            self.findings.append("a second cancel() returned something else")

    async def _finish_job(self) -> None:
        """End the faults and the job, and reconnect until the end is delivered."""
        line = self.line
        self.server.network.weather = Reach()
        self.server.always("upgrade", None)
        self.server.always("state", None)
        for link in self.server.network.links:
            link.release()
        if not self.job.ended:
            self.job.complete()
        line.foreground()
        line.report_network(True, "a")
        while line.outcome is None and line.state is not State.CANCELLED:
            if line.state in (State.IDLE, State.EXHAUSTED):
                line.connect()
            try:
                await line.result()
            except TowlineError:
                await anyio.sleep(1)

    # --- the guarantees --------------------------------------------------------------------------------------------

    async def _check_open_links(self) -> None:
        for link in self.server.network.links:
            link.cut("rst")
        await anyio.sleep(5)
        if left := len(self.server.network.links):
            self.findings.append(f"{left} links were left open")

    def _audit(self) -> None:
        ends = [update for update in self.updates if isinstance(update, JobComplete | JobFailed | JobCancelled)]
        cancelled = self.line.state is State.CANCELLED
        if len(ends) != (0 if cancelled else 1):
            self.findings.append(f"{len(ends)} ends were delivered" + (" after cancel()" if cancelled else ""))
        if ends and self.updates[-1] is not ends[0]:
            self.findings.append("an update came after the end")
