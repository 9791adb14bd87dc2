"""An attached connection obeys its host: real engine, scripted server, virtual time."""

import asyncio
import logging
import pathlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import towline
import towline.host
from towline import State
from towline.host import Host, Path, PathMonitor, PollingPathSource, _bus
from towline.testing import Reach, ScriptedJob, ScriptedServer, Unreachable, virtual_time, virtual_time_backends

pytestmark = pytest.mark.anyio

WIFI, MOBILE, NONE = Path(True, "wlan0 192.168.1.7"), Path(True, "wwan0 10.0.0.9"), Path(False)


@pytest.fixture(params=virtual_time_backends())
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_time(request.param)


class ScriptedSource:
    """A path that changes when the test says so."""

    def __init__(self) -> None:
        self.path = WIFI
        self._hint = anyio.Event()

    def become(self, path: Path) -> None:
        self.path = path
        self._hint.set()
        self._hint = anyio.Event()

    def read(self) -> Path:
        return self.path

    async def wait_hint(self) -> None:
        await self._hint.wait()

    def close(self) -> None:
        pass


class Scene:
    """A connection that follows a job, its server, and the machine it runs on."""

    def __init__(self, server: ScriptedServer, job: ScriptedJob, line: towline.Connection, host: Host) -> None:
        self.server, self.job, self.line, self.host = server, job, line, host
        self.source: ScriptedSource

    async def join(self) -> None:
        await self.line.wait_for(State.CONNECTED, timeout=60)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    source = ScriptedSource()
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start()
        async with towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line:
            attached = towline.host.attach(line, monitor=PathMonitor(source), suspension=False, sleep=False)
            async with attached as host:
                assert host.sources == {"path"}
                assert host.missing == {}
                one = Scene(server, job, line, host)
                one.source = source
                await one.join()
                assert len(server.sockets) == 1  # the first path is no change
                yield one


async def test_a_lost_path_holds_dials_back_and_a_new_one_lets_them_go() -> None:
    async with scene() as one:
        one.source.become(NONE)
        one.server.network.weather = Unreachable()
        one.server.socket.hold()  # no route: nothing is told, nothing arrives
        await anyio.sleep(30)
        assert one.line.state is State.RECONNECTING
        dials = len(one.server.network.dials)
        await anyio.sleep(30)
        assert len(one.server.network.dials) == dials, "no attempt while the path is down"
        await anyio.sleep(15)
        assert len(one.server.network.dials) == dials + 1, "but the one trial after 60 s"
        one.server.network.weather = Reach()
        before = anyio.current_time()
        one.source.become(MOBILE)
        await one.join()
        assert anyio.current_time() - before < 6


async def test_a_changed_path_probes_and_finds_a_dead_socket() -> None:
    async with scene() as one:
        one.server.socket.hold()  # wifi went: the old socket hangs with no error
        before = anyio.current_time()
        one.source.become(MOBILE)
        await one.server.wait_sockets(2)
        assert anyio.current_time() - before < 12  # 0.5 s to settle, 5 s for the probe, then a dial
        await one.join()


async def test_a_changed_path_leaves_a_living_socket_alone() -> None:
    async with scene() as one:
        one.source.become(MOBILE)
        await anyio.sleep(60)
        assert len(one.server.sockets) == 1
        assert one.line.state is State.CONNECTED


async def test_in_the_background_there_is_no_attempt_and_no_wake_up() -> None:
    async with scene() as one:
        await anyio.sleep(7)
        one.host.background()
        await one.line.wait_for(State.BACKGROUNDED, timeout=31)
        await anyio.sleep(1)
        assert one.server.socket.client_close == (1001, "")
        requests, dials = len(one.server.requests), len(one.server.network.dials)
        one.job.progress(0.5)
        one.job.complete({"books": [], "errors": [], "successRate": "1/1"})
        await anyio.sleep(3600)
        assert (len(one.server.requests), len(one.server.network.dials)) == (requests, dials)
        one.host.foreground()
        outcome = await one.line.result()
        assert isinstance(outcome, towline.JobComplete)


async def test_a_coming_sleep_parts_from_the_server_before_it_comes() -> None:
    async with scene() as one:
        before = anyio.current_time()
        await one.host._close_connection("sleep")
        assert anyio.current_time() - before < 3
        assert one.line.state is State.BACKGROUNDED
        assert one.server.socket.client_close == (1001, "")
        assert not one.server.open_sockets
        await anyio.sleep(3600)
        assert len(one.server.sockets) == 1
        one.host._resume("sleep")
        await one.join()
        assert len(one.server.sockets) == 2


async def test_a_process_that_will_be_stopped_parts_first_and_comes_back() -> None:
    async with scene() as one:
        await one.host.suspend()
        assert one.line.state is State.BACKGROUNDED
        assert one.server.socket.client_close == (1001, "")
        await anyio.sleep(3600)
        assert len(one.server.sockets) == 1
        one.host.resume()
        await one.join()


async def test_waking_does_not_bring_back_what_the_application_hid() -> None:
    async with scene() as one:
        one.host.background()
        await one.host._close_connection("sleep")
        one.host._resume("sleep")
        await anyio.sleep(600)
        assert one.line.state is State.BACKGROUNDED
        one.host.foreground()
        await one.join()


async def test_leaving_the_block_leaves_the_connection_and_keeps_its_errors_bare() -> None:
    with pytest.raises(LookupError, match="bare"):
        async with scene() as one:
            async with towline.host.attach(one.line, monitor=PathMonitor(ScriptedSource()), sleep=False) as host:
                assert host.sources == {"path", "suspension"}
                raise LookupError("bare")


async def test_what_a_source_told_ends_with_the_block() -> None:
    """Nobody would tell that the path is back, or that the machine has woken."""
    async with ScriptedServer() as server:
        server.job("j1", token="t1").start()
        async with towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line:
            source = ScriptedSource()
            async with towline.host.attach(line, monitor=PathMonitor(source), suspension=False, sleep=False):
                await line.wait_for(State.CONNECTED, timeout=60)
                source.become(NONE)
                await anyio.sleep(1)
            server.socket.cut("rst")
            await line.wait_for(State.RECONNECTING, timeout=1)
            await line.wait_for(State.CONNECTED, timeout=20)

            async with towline.host.attach(line, path=False, suspension=False, sleep=False) as host:
                host.background()
                await host._close_connection("sleep")
                host.foreground()
                assert line.state is State.BACKGROUNDED
            await line.wait_for(State.CONNECTED, timeout=20)


async def test_leaving_the_block_with_a_path_is_no_event() -> None:
    source = ScriptedSource()
    async with scene() as one:
        async with towline.host.attach(one.line, monitor=PathMonitor(source), suspension=False, sleep=False):
            await anyio.sleep(1)
        assert b'"event":"path_' not in one.line.history().to_json()


async def test_the_block_may_outlive_what_is_followed() -> None:
    source = ScriptedSource()
    source.path = NONE
    async with scene() as one, towline.host.attach(one.line, monitor=PathMonitor(source), sleep=False) as host:
        await host._close_connection("sleep")
        one.line.cancel()


@pytest.mark.parametrize("options", [{}, {"path": False}])
async def test_a_connection_is_entered_before_it_is_attached(options: dict[str, bool]) -> None:
    line = towline.Connection("wss://hub.example/ws/progress", job="j1", token="t1")
    with pytest.raises(towline.ForbiddenRequest, match="not entered"):
        async with towline.host.attach(line, **options):
            pytest.fail("it is not entered")


async def test_the_grace_must_be_possible() -> None:
    async with scene() as one:
        with pytest.raises(towline.InvalidArgument, match="grace"):
            one.line.background(grace=-1)


# --- no wake-up at rest ----------------------------------------------------------------------------------------------


@pytest.fixture
def passes(anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the loop has woken: asked for within it."""
    count = 0

    def pass_by(*_: object) -> None:
        nonlocal count
        count += 1

    if anyio_backend[0] == "trio":
        import trio

        class Instrument(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                pass_by()

        added = False

        def look() -> int:
            nonlocal added
            if not added:
                added = True
                trio.lowlevel.add_instrument(Instrument())
            return count

    else:
        patched = False

        def look() -> int:
            nonlocal patched
            if not patched:
                patched = True
                selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
                select = selector.select
                monkeypatch.setattr(selector, "select", lambda timeout=None: pass_by() or select(timeout))
            return count

    return look


async def passes_while(seconds: float, passes: Callable[[], int]) -> int:
    before = passes()
    await anyio.sleep(seconds)
    return passes() - before


@asynccontextmanager
async def polled(server: ScriptedServer, **options: Any) -> AsyncIterator[tuple[towline.Connection, Host]]:
    """A connection told of its host by everything that has a timer."""
    async with towline.Connection(
        "ws://hub/ws/progress", job="j1", token="t1", network=server.network, **options
    ) as line:
        monitor = PathMonitor(PollingPathSource(["127.0.0.1"]))
        async with towline.host.attach(line, monitor=monitor, sleep=False) as host:
            assert host.sources == {"path", "suspension"}
            yield line, host


async def test_at_rest_the_loop_sleeps_however_long_it_is(passes: Callable[[], int]) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1").start()
        async with polled(server) as (line, host):
            await line.wait_for(State.CONNECTED, timeout=60)
            assert await passes_while(600, passes) > 100, "pings, polls and looks at the clock"
            host.background()
            await line.wait_for(State.BACKGROUNDED, timeout=60)
            await anyio.sleep(10)  # a poll that was under way
            dials = len(server.network.dials)
            hour, hours = await passes_while(3600, passes), await passes_while(3 * 3600, passes)
            assert hour == hours
            assert len(server.network.dials) == dials
            host.foreground()
            await line.wait_for(State.CONNECTED, timeout=60)
            assert await passes_while(600, passes) > 100


async def test_hidden_after_giving_up_it_sleeps_too(passes: Callable[[], int]) -> None:
    policy = towline.Policy(backoff=towline.Backoff(attempts=2))
    async with ScriptedServer() as server:
        server.job("j1", token="t1").start()
        server.network.weather = Unreachable()
        async with polled(server, policy=policy) as (line, host):
            with pytest.raises(towline.Exhausted):
                await line.result()
            host.background()
            await anyio.sleep(60)
            dials = len(server.network.dials)
            hour, hours = await passes_while(3600, passes), await passes_while(3 * 3600, passes)
            assert hour == hours
            assert len(server.network.dials) == dials
            server.network.weather = Reach()
            host.foreground()
            await line.wait_for(State.CONNECTED, timeout=60)


# --- sources that are missing, or fail -------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("the host ")]


async def test_a_source_that_fails_is_told_once_and_holds_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(ScriptedSource):
        async def wait_hint(self) -> None:
            await super().wait_hint()
            if self.path is MOBILE:
                raise OSError("the driver fell over")

    source = Failing()
    async with ScriptedServer() as server:
        server.job("j1", token="t1").start()
        async with towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line:
            attached = towline.host.attach(line, monitor=PathMonitor(source), suspension=False, sleep=False)
            async with attached as host:
                await line.wait_for(State.CONNECTED, timeout=60)
                source.become(NONE)
                await anyio.sleep(1)
                server.socket.cut()
                await anyio.sleep(20)
                assert line.state is State.RECONNECTING
                source.become(MOBILE)
                await line.wait_for(State.CONNECTED, timeout=20)
                assert host.sources == set()
                assert host.missing == {"path": "the driver fell over"}
    assert told(caplog) == ["the host no longer reports path: the driver fell over"]


async def test_for_a_server_on_this_machine_no_path_is_watched() -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1").start()
        async with (
            towline.Connection("ws://127.0.0.1/ws/progress", job="j1", token="t1", network=server.network) as line,
            towline.host.attach(line, sleep=False) as host,
        ):
            assert host.sources == {"suspension"}
            assert set(host.missing) == {"path"}


async def test_what_is_missing_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "towline")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start()
        async with (
            towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line,
            towline.host.attach(line) as host,
        ):
            assert host.sources >= {"path", "suspension"}
            assert not host.sources & set(host.missing)
            job.complete({"books": [], "errors": [], "successRate": "0/0"})
            assert isinstance(await line.result(), towline.JobComplete)
    assert sorted(told(caplog)) == [
        f"the host cannot report {source}: {why}" for source, why in sorted(host.missing.items())
    ]
    if sys.platform == "linux":
        assert set(host.missing) == {"connectivity", "sleep"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no message bus is asked")
async def test_a_bus_that_says_nothing_holds_the_block_up_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
    monkeypatch.setattr("towline.host.path._server_path._LOOKUP", 0.0)
    async with await anyio.create_unix_listener(tmp_path / "bus"), ScriptedServer() as server:
        server.job("j1", token="t1").start()
        async with towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line:
            begun = anyio.current_time()
            async with towline.host.attach(line) as host:
                assert anyio.current_time() - begun == pytest.approx(_bus.PATIENCE)
                assert host.missing == dict.fromkeys(("connectivity", "sleep"), "the bus does not answer")
