"""An attached connection obeys its host: real engine, scripted server, virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import towline
import towline.host
from towline import State
from towline.host import Host, Path, PathMonitor
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
        async with towline.Connection(
            "ws://hub/ws/progress", job="j1", token="t1", network=server.network, allow_insecure=True
        ) as line:
            attached = towline.host.attach(line, monitor=PathMonitor(source), suspension=False, logind=False)
            async with attached as host:
                one = Scene(server, job, line, host)
                one.source = source
                await one.join()
                assert len(server.network.dials) == 2  # the socket and the state: the first path is no change
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
        await one.host._part("sleep")
        assert anyio.current_time() - before < 3
        assert one.line.state is State.BACKGROUNDED
        assert one.server.socket.client_close == (1001, "")
        assert not one.server.open_sockets
        await anyio.sleep(3600)
        assert len(one.server.sockets) == 1
        one.host._return("sleep")
        await one.join()
        assert len(one.server.sockets) == 2


async def test_waking_does_not_bring_back_what_the_application_hid() -> None:
    async with scene() as one:
        one.host.background()
        await one.host._part("sleep")
        one.host._return("sleep")
        await anyio.sleep(600)
        assert one.line.state is State.BACKGROUNDED
        one.host.foreground()
        await one.join()


async def test_leaving_the_block_leaves_the_connection_and_keeps_its_errors_bare() -> None:
    with pytest.raises(LookupError, match="bare"):
        async with scene() as one:
            async with towline.host.attach(one.line, monitor=PathMonitor(ScriptedSource()), logind=False) as host:
                assert host.sources == {"path", "suspension"}
                raise LookupError("bare")


async def test_the_grace_must_be_possible() -> None:
    async with scene() as one:
        with pytest.raises(towline.InvalidArgument, match="grace"):
            one.line.background(grace=-1)
