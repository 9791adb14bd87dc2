"""The blocking façade, on real sockets and real threads: a hub of one job on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import anyio
import anyio.from_thread
import pytest

from towline import Cancelled, DeadlineExceeded, ForbiddenRequest, InvalidArgument, JobComplete, Policy, State
from towline.blocking import Connection, attach
from towline.engine.delivery.inbox import INBOX_LIMIT
from towline.protocols import Polling
from towline.testing import MemoryLink, ScriptedJob, ScriptedServer

RESULT = {"books": [], "errors": [], "successRate": "1/1"}


@contextmanager
def served(backend: str) -> Iterator[tuple[str, ScriptedJob, anyio.from_thread.BlockingPortal]]:
    """A scripted server behind a real port: what comes in is carried to it by hand."""

    async def carry(stream: anyio.abc.ByteStream, server: ScriptedServer) -> None:
        link = MemoryLink()

        async def pump(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream) -> None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                async for data in source:
                    await target.send(data)
                await target.send_eof()

        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(pump, stream, link.client)
            tasks.start_soon(pump, link.client, stream)
            async with link.server:
                await server._serve(link)
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()

    ready = threading.Event()
    found: list[object] = []
    over: list[anyio.Event] = []

    async def main() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            ScriptedServer() as server,
            anyio.create_task_group() as tasks,
        ):
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            found.extend([f"ws://127.0.0.1:{port}/ws/progress", server.job("j1", token="t1")])
            tasks.start_soon(listener.serve, lambda stream: carry(stream, server))
            over.append(anyio.Event())
            ready.set()
            await over[0].wait()
            tasks.cancel_scope.cancel()

    with anyio.from_thread.start_blocking_portal(backend) as portal:
        future = portal.start_task_soon(main)
        assert ready.wait(120)
        yield found[0], found[1], portal  # type: ignore[misc]
        portal.call(over[0].set)
        future.result(5)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_job_is_followed_from_a_plain_thread(backend: str) -> None:
    asked: list[int] = []

    def provider() -> str:
        asked.append(threading.get_ident())
        return "t1"

    with served(backend) as (url, job, portal):
        with Connection(url, job="j1", token=provider, backend=backend) as line:
            assert line.wait_for(State.CONNECTED, timeout=120) is State.CONNECTED
            with pytest.raises(DeadlineExceeded):
                line.result(timeout=0.01)
            portal.call(lambda: job.progress(0.5, processed=1))
            portal.call(lambda: job.complete(RESULT))
            assert [update.seq for update in line] == [1, 2]
            assert isinstance(line.result(timeout=120), JobComplete)
            assert list(line) == [line.outcome]
            assert line.statistics().updates == 2
            assert line.history().entries
        assert isinstance(line.outcome, JobComplete)
        assert line.cancel() is False
    assert len(asked) == 1
    assert asked[0] != threading.get_ident()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_iterator_that_a_thread_keeps_does_not_stop_its_wait_for_the_end(backend: str) -> None:
    with served(backend) as (url, job, portal):
        with Connection(url, job="j1", token="t1", backend=backend) as line:
            line.wait_for(State.CONNECTED, timeout=120)
            kept = line.updates()
            portal.call(job.start)
            assert next(kept).seq == 1
            for _ in range(2 * INBOX_LIMIT):
                portal.call(job.start)
            portal.call(lambda: job.complete(RESULT))
            outcome = line.result(timeout=120)
            assert isinstance(outcome, JobComplete)
            assert list(kept)[-1] == outcome


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancel_from_another_thread_ends_whoever_waits(backend: str) -> None:
    with served(backend) as (url, _, _portal):
        with Connection(url, job="j1", token="t1", backend=backend) as line:
            line.wait_for(State.CONNECTED, timeout=120)
            answers: list[bool] = []
            timers = [threading.Timer(0.1, lambda: answers.append(line.cancel())) for _ in range(3)]
            for timer in timers:
                timer.start()
            assert list(line) == []
            with pytest.raises(Cancelled):
                line.result()
            for timer in timers:
                timer.join()
            assert answers == [True] * 3
        assert line.cancel() is True


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_bodys_errors_come_out_and_closing_can_be_begun_anew(backend: str) -> None:
    with served(backend) as (url, _, _portal):
        with pytest.raises(KeyError, match="mine"):
            with Connection(url, job="j1", token="t1", backend=backend, policy=Policy(dial_spacing=0)) as line:
                line.wait_for(State.CONNECTED, timeout=120)
                line.close()
                assert line.state is State.IDLE
                line.connect()
                line.wait_for(State.CONNECTED, timeout=120)
                raise KeyError("mine")
        with pytest.raises(ForbiddenRequest):
            line.result()
        with pytest.raises(ForbiddenRequest):
            line.connect()


def test_the_error_before_the_block_names_with() -> None:
    with pytest.raises(ForbiddenRequest, match="or `with` for a blocking one"):
        list(Connection(Polling("http://127.0.0.1:1/jobs/7")))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_window_of_another_thread_is_hidden_and_shown(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    policy = Policy(dial_spacing=0.0, grace=0.0)
    with served(backend) as (url, job, portal):
        line = Connection(url, job="j1", token="t1", backend=backend, policy=policy)
        with pytest.raises(ForbiddenRequest, match="attaching"), attach(line):
            pass
        with line, attach(line, job_control=True) as host:
            assert host.sources == {"suspension"}
            assert set(host.missing) >= {"path", "job control"}  # a server on this machine, another thread's signals
            line.wait_for(State.CONNECTED, timeout=120)
            window = threading.Thread(target=host.background)
            window.start()
            window.join()
            line.wait_for(State.BACKGROUNDED, timeout=120)
            portal.call(lambda: job.complete(RESULT))
            host.foreground()
            assert isinstance(line.result(10), JobComplete)


def run_alone(script: str, backend: str) -> tuple[int, str, str]:
    """Run a script that follows the job in a process of its own: its exit code, what it printed, and its errors."""
    with served(backend) as (url, job, portal):
        portal.call(job.start)
        command = [sys.executable, "-c", script, url, backend]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return answer.returncode, answer.stdout, answer.stderr


UNTIDY = """
import sys
from towline.blocking import Connection

def updates():
    with Connection(sys.argv[1], job="j1", token="t1", backend=sys.argv[2]) as line:
        yield from line

kept = updates()
print(type(next(kept)).__name__)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_block_that_is_never_left_does_not_hold_up_the_interpreter(backend: str) -> None:
    """A global generator is closed when the interpreter is torn down, and no other thread runs any more."""
    assert run_alone(UNTIDY, backend) == (0, "JobStarted\n", "")


FORKED = """
import os, signal, sys, warnings
from towline import ForbiddenRequest
from towline.blocking import Connection, attach
from towline.engine.delivery.inbox import INBOX_LIMIT

# From Python 3.12 such a fork brings a warning. This test is about programs that fork all the same.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def refused(use):
    try:
        use()
    except ForbiddenRequest as error:
        assert "forked" in str(error)
    else:
        raise AssertionError(use)

with Connection(sys.argv[1], job="j1", token="t1", backend=sys.argv[2]) as line:
    with attach(line, sleep=False):
        next(updates := iter(line))
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), line.cancel())
        else:
            signal.alarm(10)  # what hangs dies of it
            for use in (line.statistics, lambda: next(updates), lambda: line.result(timeout=1)):
                refused(use)

if not child:
    refused(line.cancel)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_process_is_told_and_leaves_and_the_parent_goes_on(backend: str) -> None:
    assert run_alone(FORKED, backend) == (0, "7 True\n", "")


GREENLETS = """
import gevent.monkey
gevent.monkey.patch_all()
import subprocess, sys, threading
from towline import ForbiddenRequest, State
from towline.blocking import Connection

left = []

def follow(number):
    with Connection(sys.argv[1], job="j1", token="t1") as line:
        line.wait_for(State.CONNECTED, timeout=120)
        gevent.sleep(0.5)
        left.append((number, line.state.value))

for _ in range(2):  # the loop ends with the last of them, and another can begin
    threads = [threading.Thread(target=follow, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
print(sorted(left))

import asyncio

async def beside_a_loop():
    try:
        with Connection(sys.argv[1], job="j1", token="t1"):
            pass
    except ForbiddenRequest as error:
        print("gevent" in str(error))

asyncio.run(beside_a_loop())
"""


@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_under_gevent_connections_share_a_loop() -> None:
    code, printed, errors = run_alone(GREENLETS, "asyncio")
    assert printed == f"{[(n, 'connected') for n in (0, 0, 1, 1, 2, 2)]}\nTrue\n", errors
    assert code == 0


def test_a_protocol_is_a_target_and_names_its_job() -> None:
    line = Connection(Polling("http://127.0.0.1:9/jobs/7"))
    assert (line.job, line.state) == ("/jobs/7", State.IDLE)
    with pytest.raises(InvalidArgument, match="job"):
        Connection("ws://127.0.0.1:9/ws/progress")
