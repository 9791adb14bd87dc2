"""What a program around a connection may do to it: call it at any moment, fail in its own code, leave it anywhere."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from interrupted import connection, interrupt_everywhere, interrupted_cancel, interrupted_request

import towline
import towline.host
from towline import (
    Backoff,
    Connection,
    Exhausted,
    ForbiddenRequest,
    JobComplete,
    Network,
    Policy,
    State,
    UnexpectedFailure,
)
from towline._facts import Closed, Fact, Received, Want
from towline.protocols.towline import Towline
from towline.storage import Record, RecordKey
from towline.testing import ScriptedServer

pytestmark = pytest.mark.anyio
Follow = Callable[..., Connection]
URL = "ws://hub/ws/progress"
RESULT = {"books": [], "errors": [], "successRate": "1/1"}
BACKENDS = ["asyncio", "trio"]


def is_asyncio() -> bool:
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancel_between_any_two_lines_is_kept_and_answered_truly(backend: str) -> None:
    """Lines between entering and leaving, evenly spread; `system` tries more of them."""
    interrupt_everywhere(backend, interrupted_cancel, tried=30)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("request_", ["connect", "retry", "background", "path", "wake"])
def test_other_requests_between_any_two_lines_lose_nothing(backend: str, request_: str) -> None:
    interrupt_everywhere(backend, interrupted_request, request_, tried=7)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no signals to a thread")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_in_a_signal_handler_wakes_an_idle_loop(backend: str) -> None:
    async def main() -> float:
        async with ScriptedServer() as server:
            server.job("j1", token="t1").start(total_count=3)
            line = connection(server, policy=Policy(ping_after=8.0, lost_after=20.0))
            answers: list[tuple[float, bool]] = []
            before = signal.signal(signal.SIGUSR1, lambda *_: answers.append((time.monotonic(), line.cancel())))
            thread = threading.main_thread().ident
            assert thread is not None
            timer = threading.Timer(0.3, signal.pthread_kill, (thread, signal.SIGUSR1))
            try:
                async with line:
                    await line.wait_for(State.CONNECTED)
                    timer.start()
                    async for _ in line:
                        pass
                ((at, answer),) = answers
                assert answer
                return time.monotonic() - at
            finally:
                signal.signal(signal.SIGUSR1, before)

    assert anyio.run(main, backend=backend) < 1.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_finalizer_and_another_thread_may_cancel(backend: str) -> None:
    async def main(way: str) -> None:
        async with ScriptedServer() as server:
            server.job("j1", token="t1").start(total_count=3)
            async with connection(server) as line:
                await line.wait_for(State.CONNECTED)
                if way == "thread":
                    thread = threading.Thread(target=line.cancel)
                    thread.start()
                    thread.join()  # it does not wait for this loop
                else:

                    class Window:
                        def __del__(self) -> None:
                            line.cancel()

                    window = Window()
                    window.itself = window  # type: ignore[attr-defined]
                    del window
                    gc.collect()
                assert line.state is State.CANCELLED
                with anyio.fail_after(1):
                    assert [update async for update in line] == []

    for way in ("thread", "finalizer"):
        anyio.run(main, way, backend=backend)


async def test_nothing_is_delivered_after_cancel_though_it_waits(follow: Follow, server: ScriptedServer) -> None:
    job = server.job("j1", token="t1")
    job.start(total_count=3)
    async with follow(server) as line:
        await line.wait_for(State.CONNECTED)
        job.progress(0.5)
        await anyio.sleep(1)
        seen = []
        async for update in line:
            seen.append(update)
            assert line.cancel()
        assert len(seen) == 1


async def test_an_end_that_came_first_stands(follow: Follow, server: ScriptedServer) -> None:
    server.job("j1", token="t1").complete(RESULT)
    async with follow(server) as line:
        await line.result()
        assert line.cancel() is False
        assert [type(update) async for update in line] == [JobComplete]


# --- code of the program that fails, or is cancelled -------------------------------------------------------------


async def wait_for_something_cancelled() -> None:
    """Wait for a task of the program that somebody cancels: a cancellation that is not ours."""
    if is_asyncio():
        task = asyncio.ensure_future(asyncio.sleep(3600))
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        await task
        return
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            caught.append(error)
            raise
    raise caught[0]


def cancelled_result() -> None:
    """Ask a cancelled future of the program for its result."""
    if is_asyncio():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        future.result()
    raise asyncio.CancelledError


@pytest.mark.parametrize("kind", ["coroutine", "plain"])
@pytest.mark.parametrize("handler", ["on_state", "on_update"])
async def test_a_foreign_cancellation_in_a_handler_is_its_failure(
    follow: Follow, server: ScriptedServer, caplog: pytest.LogCaptureFixture, handler: str, kind: str
) -> None:
    async def waiting(told: object) -> None:
        await wait_for_something_cancelled()

    def plain(told: object) -> None:
        cancelled_result()

    job = server.job("j1", token="t1")
    job.start(total_count=3)
    options: dict[str, Any] = {handler: waiting if kind == "coroutine" else plain}
    async with follow(server, **options) as line:
        await line.wait_for(State.CONNECTED)
        job.progress(0.5)
        await anyio.sleep(1)
        server.socket.cut()
        await line.wait_for(State.CONNECTED, timeout=60)
        await anyio.sleep(1)
        job.complete(RESULT)
        assert isinstance(await line.result(), JobComplete)
        assert line.statistics().handler_errors > 0
    assert "a handler raised" in caplog.text


async def test_a_foreign_cancellation_in_the_provider_costs_an_attempt(follow: Follow, server: ScriptedServer) -> None:
    asked = 0

    async def provide() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await wait_for_something_cancelled()
        return "t1"

    server.job("j1", token="t1").complete(RESULT)
    async with follow(server, token=provide) as line:
        assert isinstance(await line.result(), JobComplete)
        causes = [entry.event.cause.text for entry in line.history().entries if getattr(entry.event, "cause", None)]
    assert any("Cancelled" in text for text in causes)


async def test_a_foreign_cancellation_in_a_protocol_is_its_failure(follow: Follow, server: ScriptedServer) -> None:
    class Own(Towline):
        def read(self, want: Want, received: Received) -> Iterable[Fact]:
            if isinstance(received, Closed):
                cancelled_result()
            return super().read(want, received)

    job = server.job("j1", token="t1")
    job.start()
    async with follow(server, url=Own(URL, "j1")) as line:
        await line.wait_for(State.CONNECTED)
        server.socket.close(4000)
        await line.wait_for(State.RECONNECTING, timeout=5)
        job.complete(RESULT)
        assert isinstance(await line.result(), JobComplete)
        # The close keeps the engine's own meaning.
        causes = [entry.event.cause.code for entry in line.history().entries if getattr(entry.event, "cause", None)]
        assert causes == ["close 4000"]


async def test_our_own_cancellation_still_ends_a_handler_and_a_provider(follow: Follow, server: ScriptedServer) -> None:
    async def endless(*_: object) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    async with follow(server, token=endless, on_state=endless) as line:
        await anyio.sleep(1)
        assert line.cancel()
        begun = anyio.current_time()
        await line.wait_for(State.CANCELLED)
    assert anyio.current_time() - begun < 1
    assert line.statistics().handler_errors == 0


class Broken(Network):
    """A network and a store of the program that raise what is none of Towline's errors, `times` times each."""

    def __init__(self, server: ScriptedServer, error: Any, times: int = 1000) -> None:
        super().__init__(allow_insecure=True)
        self.server, self.error, self.times = server, error, times

    async def _fail(self) -> None:
        if self.times > 0:
            self.times -= 1
            if callable(self.error):
                await self.error()
            raise self.error

    async def connect(self, *args: Any, **options: Any) -> Any:
        await self._fail()
        return await self.server.network.connect(*args, **options)

    async def read(self, key: RecordKey) -> Record | None:
        await self._fail()
        return None

    async def save(self, *args: Any, **options: Any) -> None:
        await self._fail()

    async def save_cursor(self, *args: Any) -> None:
        await self._fail()

    async def mark_ended(self, *args: Any) -> None:
        await self._fail()

    async def delete(self, key: RecordKey) -> None: ...


FAILURES = [OSError(5, "broken"), ValueError("mine"), ExceptionGroup("g", [KeyError()]), wait_for_something_cancelled]


@pytest.mark.parametrize("error", FAILURES, ids=["OSError", "ValueError", "group", "cancelled"])
async def test_a_network_that_raises_anything_costs_attempts(
    follow: Follow, server: ScriptedServer, caplog: pytest.LogCaptureFixture, error: Any
) -> None:
    job = server.job("j1", token="t1")
    job.start()
    async with follow(server, network=Broken(server, error, times=2)) as line:
        await line.wait_for(State.CONNECTED, timeout=60)
        job.complete(RESULT)
        assert isinstance(await line.result(), JobComplete)
    assert "an attempt to connect raised" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("error", FAILURES, ids=["OSError", "ValueError", "group", "cancelled"])
async def test_a_network_that_always_raises_is_a_typed_end_with_its_cause(
    follow: Follow, server: ScriptedServer, error: Any
) -> None:
    policy = Policy(backoff=Backoff(attempts=1))
    with pytest.raises(Exhausted) as raised:
        async with follow(server, network=Broken(server, error), policy=policy) as line:
            await line.result()
    assert isinstance(raised.value.__cause__, UnexpectedFailure)
    cause = raised.value.__cause__.__cause__
    assert cause is error or callable(error)


@pytest.mark.parametrize("error", FAILURES, ids=["OSError", "ValueError", "group", "cancelled"])
async def test_a_store_that_raises_anything_is_said_and_does_not_stop_it(
    follow: Follow, server: ScriptedServer, caplog: pytest.LogCaptureFixture, error: Any
) -> None:
    job = server.job("j1", token="t1")
    job.complete(RESULT)
    async with follow(server, store=Broken(server, error)) as line:
        assert [type(update) async for update in line][-1] is JobComplete
        await anyio.sleep(1)
        assert isinstance(line.statistics().store_problem, UnexpectedFailure)
    assert caplog.text.count("the store failed") == 1


@pytest.mark.parametrize("error", FAILURES, ids=["OSError", "ValueError", "group", "cancelled"])
async def test_a_store_that_has_to_be_read_and_raises_is_a_typed_error(server: ScriptedServer, error: Any) -> None:
    with pytest.raises(UnexpectedFailure, match="the store raised"):
        async with Connection(job="j1", store=Broken(server, error)):
            raise AssertionError("it has no token")


async def test_a_call_that_the_network_fails_is_a_typed_error(follow: Follow, server: ScriptedServer) -> None:
    network = Broken(server, OSError(5, "broken"), times=0)
    async with follow(server, network=network) as line:
        await line.wait_for(State.CONNECTED)
        network.times = 100
        with pytest.raises(UnexpectedFailure, match="a call about the job raised OSError"):
            await line.cancel_job()


@pytest.mark.parametrize(
    "part",
    [
        "runner._timers.Timers._fire",
        "engine.sequence.sequencer.Sequencer.opened",
        "engine.delivery.publisher.Publisher.release_buffer",
        "engine.intake.Intake.take_in",
    ],
)
async def test_a_bug_in_any_part_is_a_typed_end(
    follow: Follow, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"towline.{part}", broken)
    with pytest.raises(Exhausted) as raised:
        async with follow(server, policy=Policy(backoff=Backoff(attempts=1, seconds=60))) as line:
            await anyio.sleep(1)
            if server.network.links:
                server.socket.cut()
            await line.result()
    assert isinstance(raised.value.__cause__, UnexpectedFailure)
    assert isinstance(raised.value.__cause__.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_the_end_of_the_process_comes_out_of_a_task_as_itself(
    follow: Follow, server: ScriptedServer, error: BaseException
) -> None:
    async def provide() -> str:
        raise error

    with pytest.raises(type(error)) as raised:
        async with follow(server, token=provide) as line:
            await line.result()
    assert raised.value is error


@pytest.mark.parametrize("started", [True, False])
# asyncio never awaits the coroutine of a task that is cancelled before its first step.
@pytest.mark.filterwarnings("ignore:coroutine 'Tasks._run' was never awaited")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_program_that_cancels_all_tasks_ends_the_block_with_an_error(
    server: ScriptedServer, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before a task of ours has run its first step."""
    # A kept log record would keep the coroutine until a later test, which has no filter for the warning.
    monkeypatch.setattr(logging.getLogger("towline"), "disabled", True)
    if not is_asyncio():
        pytest.skip("trio's tasks cannot be cancelled one by one")

    async def cancel_all() -> None:
        async with connection(server) as line:
            if started:
                await line.wait_for(State.CONNECTED)
            for task in asyncio.all_tasks():
                if task.get_name() == "towline link":
                    task.cancel()
            await anyio.sleep(60)

    failure: str | None = None
    try:
        await cancel_all()
    except UnexpectedFailure as error:
        failure = str(error)
    assert failure is not None
    gc.collect()


# --- left in another task ----------------------------------------------------------------------------------------


async def in_a_task(call: Callable[[], Any]) -> BaseException | None:
    """Make a call in a task that ends with it; what it raised."""
    task = asyncio.ensure_future(call())
    await asyncio.wait([task])
    return task.exception()


@pytest.mark.parametrize("left_in", ["another task", "the outer one"])
async def test_left_in_another_task_it_says_so_and_nothing_is_left(
    server: ScriptedServer, left_in: str, follow: Follow
) -> None:
    if not is_asyncio():
        pytest.skip("for trio, see the test below: there a task cannot end before the block does")
    server.job("j1", token="t1").start()
    stack = AsyncExitStack()
    line = follow(server)
    assert await in_a_task(lambda: stack.enter_async_context(line)) is None
    await line.wait_for(State.CONNECTED, timeout=5)
    if left_in == "another task":
        error = await in_a_task(stack.aclose)
    else:
        with pytest.raises(ForbiddenRequest) as raised:
            await stack.aclose()
        error = raised.value
    assert isinstance(error, ForbiddenRequest)
    assert "one task" in str(error)
    assert line.state is State.IDLE
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("towline ")] == []
    with pytest.raises(ForbiddenRequest):
        line.connect()


async def test_on_trio_too_it_says_so_and_nothing_is_left(server: ScriptedServer, follow: Follow) -> None:
    if is_asyncio():
        pytest.skip("for asyncio, see the test above")
    server.job("j1", token="t1").start()
    line = follow(server)
    stack = AsyncExitStack()
    over = anyio.Event()

    async def enter() -> None:
        await stack.enter_async_context(line)
        await over.wait()

    # trio itself complains of the task that entered, at its end: nobody else can close what was opened there.
    with pytest.raises(ExceptionGroup, match="Exceptions from Trio nursery") as raised:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            await anyio.sleep(1)
            assert line.state is State.CONNECTED
            with pytest.raises(ForbiddenRequest, match="one task"):
                await stack.aclose()
            assert line.state is State.IDLE
            await anyio.sleep(0.1)
            assert list(server.network.links) == []
            over.set()
    assert raised.group_contains(RuntimeError, match="corrupted")


async def test_attach_left_in_another_task_says_so(server: ScriptedServer, follow: Follow) -> None:
    if not is_asyncio():
        pytest.skip("for trio, see the test below: there a task cannot end before the block does")
    server.job("j1", token="t1").start()
    stack = AsyncExitStack()
    async with follow(server) as line:
        host = towline.host.attach(line, path=False, sleep=False)
        assert await in_a_task(lambda: stack.enter_async_context(host)) is None
        await anyio.sleep(1)
        error = await in_a_task(stack.aclose)
        assert isinstance(error, ForbiddenRequest)
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "towline suspension"] == []
        await line.wait_for(State.CONNECTED)
