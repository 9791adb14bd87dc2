"""Ctrl-C once and twice: real signals to this process, real engine, scripted server, virtual time."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import towline
from towline import State
from towline.host import watch_interrupts
from towline.testing import Answer, Hang, ScriptedJob, ScriptedServer, virtual_time, virtual_time_backends

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_time(request.param)


class Scene:
    """Somebody follows a job at a terminal."""

    def __init__(self, server: ScriptedServer, job: ScriptedJob, line: towline.Connection) -> None:
        self.server, self.job, self.line = server, job, line
        self.told: list[object] = []

    async def press(self, number: signal.Signals = signal.SIGINT) -> None:
        signal.raise_signal(number)
        await anyio.sleep(0.1)

    @property
    def asked(self) -> int:
        return sum(request.call == "cancel" for request in self.server.requests)


@asynccontextmanager
async def scene(window: float = 3.0) -> AsyncIterator[Scene]:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start()
        async with (
            towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line,
            anyio.create_task_group() as tasks,
        ):
            one = Scene(server, job, line)

            async def watch() -> None:
                await watch_interrupts(line, one.told.append, window=window)

            tasks.start_soon(watch)
            await line.wait_for(State.CONNECTED, timeout=60)
            yield one
            tasks.cancel_scope.cancel()


async def test_once_stops_following_and_the_job_goes_on() -> None:
    async with scene() as one:
        await one.press()
        assert one.told == ["stopped"]
        await one.line.wait_for(State.BACKGROUNDED, timeout=1)
        await anyio.sleep(2)
        assert one.line.state is State.BACKGROUNDED
        assert one.server.socket.client_close == (1001, "")
        await anyio.sleep(1)
        assert one.line.state is State.CANCELLED
        assert [update async for update in one.line] == []
        assert one.asked == 0


async def test_twice_asks_the_server_and_tells_of_the_end() -> None:
    async with scene() as one:
        await one.press()
        await one.press()
        assert one.told == ["stopped", "accepted"]
        assert one.job.ended
        assert isinstance(await one.line.result(), towline.JobCancelled)
        assert one.asked == 1


async def test_twice_but_too_late_tells_of_the_end_that_came_first() -> None:
    async with scene() as one:
        await one.press()
        one.job.complete({"books": [], "errors": [], "successRate": "0/0"})
        await one.press()
        assert one.told == ["stopped", "too_late"]
        assert isinstance(await one.line.result(), towline.JobComplete)


async def test_too_late_and_the_state_not_to_be_had_is_followed_up() -> None:
    async with scene() as one:
        await one.press()
        one.job.complete({"books": [], "errors": [], "successRate": "0/0"})
        one.server.script("state", Answer(500))
        await one.press()
        assert one.told == ["stopped", "too_late"]
        assert isinstance(await one.line.result(), towline.JobComplete)


async def test_after_the_window_a_second_one_is_no_second_one() -> None:
    async with scene() as one:
        await one.press()
        await anyio.sleep(3)
        await one.press()
        assert one.line.state is State.CANCELLED
        assert one.asked == 0


@pytest.mark.parametrize("body", [{"jobId": "j1", "result": "unknown"}, {"jobId": "j1", "result": "what?"}])
async def test_a_server_that_does_not_say_is_told(body: dict[str, str]) -> None:
    async with scene() as one:
        one.server.script("cancel", Answer(200, body))
        await one.press()
        await one.press()
        assert one.told == ["stopped", "unknown"]
        assert one.line.state is State.CANCELLED


async def test_a_server_that_refuses_is_told() -> None:
    async with scene() as one:
        one.server.script("cancel", Answer(500))
        await one.press()
        await one.press()
        stopped, error = one.told
        assert stopped == "stopped"
        assert isinstance(error, towline.UnexpectedResponse)
        assert one.line.state is State.CANCELLED


async def test_a_third_one_waits_for_nothing() -> None:
    async with scene() as one:
        one.server.script("cancel", Hang())
        await one.press()
        await one.press()
        assert one.line.state is State.BACKGROUNDED
        await one.press()
        assert one.line.state is State.CANCELLED
        assert one.told == ["stopped"]


async def test_a_third_one_ends_the_wait_for_a_job_that_does_not_stop() -> None:
    async with scene() as one:
        one.server.script("cancel", Answer(200, {"jobId": "j1", "result": "accepted"}))
        await one.press()
        await one.press()
        await one.line.wait_for(State.CONNECTED, timeout=60)
        await one.press()
        assert one.told == ["stopped", "accepted"]
        assert one.line.state is State.CANCELLED


@pytest.mark.parametrize(
    ("window", "numbers", "told"),
    [
        (0.0, [signal.SIGINT], "stopped"),
        (3.0, [signal.SIGTERM], "terminated"),
        (3.0, [signal.SIGINT, signal.SIGTERM], "stopped"),
    ],
)
async def test_without_the_wait(window: float, numbers: list[signal.Signals], told: str) -> None:
    async with scene(window) as one:
        for number in numbers:
            await one.press(number)
        assert one.told == [told]
        assert one.line.state is State.CANCELLED
        assert one.asked == 0
