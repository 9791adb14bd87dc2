"""NetworkManager's judgement over the kernel's path: a real dbus-daemon, and a NetworkManager that says what the test
says. The kernel's path is the loopback's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from queue import Empty, Queue
from typing import Any

import anyio
import pytest

pytest.importorskip("jeepney")
if sys.platform != "linux":
    pytest.skip("NetworkManager is Linux's", allow_module_level=True)

import anyio.lowlevel
from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_error, new_method_return, new_signal
from jeepney.io.blocking import DBusConnection, open_dbus_connection

import towline
import towline.host
from towline.host import NetlinkPathSource, Path, PathMonitor
from towline.host._bus import Bus, BusUnavailable, open_bus
from towline.host.path._network_manager import Connectivity, NetworkManagerPathSource
from towline.testing import ScriptedServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(25)]

NAME = "org.freedesktop.NetworkManager"
PROPERTIES = DBusAddress("/org/freedesktop/NetworkManager", interface="org.freedesktop.DBus.Properties")
UP, LIMITED, NONE = Path(True, "lo 127.0.0.1"), Path(True, "lo 127.0.0.1, limited"), Path(False)
CONNECTED_GLOBAL, DISCONNECTED = 70, 20
SETTLE = 0.05


class FakeNetworkManager:
    """Answers for its properties, and tells when they change. `asked` counts the questions."""

    def __init__(self, address: str) -> None:
        self.asked = 0
        self.refuses = False
        self._properties: dict[str, tuple[str, Any]] = {
            "Connectivity": ("u", int(Connectivity.FULL)),
            "State": ("u", CONNECTED_GLOBAL),
            "Version": ("s", "1.42.4"),
        }
        self._orders: Queue[tuple[dict[str, tuple[str, Any]], threading.Event]] = Queue()
        self._over = threading.Event()
        self._bus: DBusConnection = open_dbus_connection(address)
        self._bus.send_and_get_reply(message_bus.RequestName(NAME))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def become(self, connectivity: int, state: int = CONNECTED_GLOBAL) -> None:
        done = threading.Event()
        self._orders.put(({"Connectivity": ("u", connectivity), "State": ("u", state)}, done))
        assert done.wait(120)

    def close(self) -> None:
        """Leave the bus, which tells everybody."""
        self._over.set()
        self._thread.join()
        self._bus.close()

    def _run(self) -> None:
        with suppress(ConnectionError):  # the bus may go first
            while not self._over.is_set():
                with suppress(Empty):
                    changed, done = self._orders.get_nowait()
                    self._properties |= changed
                    self._bus.send(new_signal(PROPERTIES, "PropertiesChanged", "sa{sv}as", (NAME, changed, [])))
                    done.set()
                try:
                    call = self._bus.receive(timeout=0.01)
                except TimeoutError:
                    continue
                if call.header.message_type is not MessageType.method_call:
                    continue
                assert call.header.fields[HeaderFields.member] == "GetAll"
                self.asked += 1
                if self.refuses:
                    self._bus.send(new_error(call, "org.freedesktop.DBus.Error.AccessDenied"))
                else:
                    self._bus.send(new_method_return(call, "a{sv}", (self._properties,)))


@pytest.fixture
def manager(bus: str) -> Iterator[FakeNetworkManager]:
    manager = FakeNetworkManager(bus)
    yield manager
    manager.close()


class Watched:
    """The paths that a monitor tells, one after the other."""

    def __init__(self, source: NetworkManagerPathSource) -> None:
        self.source = source
        self.tell, self._told = anyio.create_memory_object_stream[Path](100)

    async def next(self) -> Path:
        with anyio.fail_after(10):
            return await self._told.receive()

    async def nothing_for(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        assert self._told.statistics().current_buffer_used == 0

    def close(self) -> None:
        self.tell.close()
        self._told.close()


@asynccontextmanager
async def watched(bus: Bus) -> AsyncIterator[Watched]:
    source = NetworkManagerPathSource(NetlinkPathSource(["127.0.0.1"]))
    seen = Watched(source)

    async def tell() -> None:
        with PathMonitor(source, settle=SETTLE) as monitor:
            async for path in monitor.changes():
                await seen.tell.send(path)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tell)
        tasks.start_soon(source.watch, bus)
        yield seen
        tasks.cancel_scope.cancel()
    seen.close()


async def test_full_is_the_kernels_path_and_a_portal_is_none_until_somebody_signed_in(
    bus: str, manager: FakeNetworkManager
) -> None:
    async with open_bus(bus) as conversation, watched(conversation) as seen:
        assert await seen.next() == UP
        manager.become(Connectivity.PORTAL)
        assert await seen.next() == NONE
        manager.become(Connectivity.FULL)
        assert await seen.next() == UP
        manager.become(Connectivity.LIMITED)
        assert await seen.next() == LIMITED
        manager.become(Connectivity.FULL)
        assert await seen.next() == UP
        await seen.nothing_for(4 * SETTLE)


async def test_levels_are_read_and_a_flicker_is_not_told(bus: str, manager: FakeNetworkManager) -> None:
    async with open_bus(bus) as conversation, watched(conversation) as seen:
        assert await seen.next() == UP
        for _ in range(20):
            manager.become(Connectivity.PORTAL)
            manager.become(Connectivity.FULL)
        manager.become(Connectivity.LIMITED)
        assert await seen.next() == LIMITED
        await seen.nothing_for(4 * SETTLE)


@pytest.mark.parametrize(
    ("connectivity", "state"),
    [
        (Connectivity.NONE, CONNECTED_GLOBAL),
        (Connectivity.UNKNOWN, CONNECTED_GLOBAL),
        (Connectivity.PORTAL, DISCONNECTED),  # of a path that it does not manage it knows nothing
        (99, CONNECTED_GLOBAL),
    ],
)
async def test_else_the_kernel_decides(bus: str, manager: FakeNetworkManager, connectivity: int, state: int) -> None:
    async with open_bus(bus) as conversation, watched(conversation) as seen:
        assert await seen.next() == UP
        manager.become(Connectivity.PORTAL)
        assert await seen.next() == NONE
        manager.become(connectivity, state)
        assert await seen.next() == UP
        assert seen.source.connectivity is Connectivity.UNKNOWN or connectivity == Connectivity.NONE


async def test_it_goes_away_and_comes_back(bus: str, manager: FakeNetworkManager) -> None:
    async with open_bus(bus) as conversation, watched(conversation) as seen:
        assert await seen.next() == UP
        manager.become(Connectivity.PORTAL)
        assert await seen.next() == NONE
        manager.close()
        assert await seen.next() == UP
        second = await anyio.to_thread.run_sync(FakeNetworkManager, bus)
        try:
            second.become(Connectivity.PORTAL)
            assert await seen.next() == NONE
            second.refuses = True
            second.become(Connectivity.PORTAL)
            assert await seen.next() == UP
        finally:
            second.close()


async def test_without_it_the_kernel_decides_until_it_is_there(bus: str) -> None:
    async with open_bus(bus) as conversation, watched(conversation) as seen:
        assert await seen.next() == UP
        late = await anyio.to_thread.run_sync(FakeNetworkManager, bus)
        try:
            late.become(Connectivity.PORTAL)
            assert await seen.next() == NONE
        finally:
            late.close()
        assert await seen.next() == UP


async def test_the_bus_goes_away_and_the_kernels_path_is_left(private_bus: Any) -> None:
    manager = await anyio.to_thread.run_sync(FakeNetworkManager, private_bus.address)
    source = NetworkManagerPathSource(NetlinkPathSource(["127.0.0.1"]))
    try:
        async with open_bus(private_bus.address) as conversation, anyio.create_task_group() as tasks:

            async def go() -> None:
                manager.become(Connectivity.PORTAL)
                while source.read() != NONE:
                    await source.wait_hint()
                private_bus.stop()

            tasks.start_soon(go)
            with anyio.fail_after(10), pytest.raises(BusUnavailable, match="lost"):
                await source.watch(conversation)
        with anyio.fail_after(1):
            await source.wait_hint()
        assert source.read() == UP
    finally:
        source.close()
        manager.close()


async def test_a_hint_of_the_kernels_is_one_here_too() -> None:
    class Beneath:
        closed = fails = False

        def read(self) -> Path:
            return UP

        async def wait_hint(self) -> None:
            await anyio.lowlevel.checkpoint()
            if self.fails:
                raise OSError("the socket broke")

        def close(self) -> None:
            self.closed = True

    beneath = Beneath()
    source = NetworkManagerPathSource(beneath)
    with anyio.fail_after(5):
        await source.wait_hint()
        beneath.fails = True
        with pytest.raises(OSError, match="the socket broke"):
            await source.wait_hint()
    source.close()
    assert beneath.closed


async def test_attached_it_is_a_source_and_the_end_of_the_bus_is_told_once(
    private_bus: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private_bus.address)
    async with ScriptedServer() as server:
        server.job("j1", token="t1").start()
        async with (
            towline.Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line,
            towline.host.attach(line) as host,
        ):
            assert host.sources == {"path", "connectivity", "suspension"}
            assert "NameHasNoOwner" in host.missing["sleep"]
            private_bus.stop()
            with anyio.fail_after(10):
                while "connectivity" in host.sources:  # noqa: ASYNC110 - a set has nothing to wait for
                    await anyio.sleep(0.01)
            assert host.missing["connectivity"] == "the connection to the bus was lost"
            assert host.sources == {"path", "suspension"}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the host no longer reports connectivity: the connection to the bus was lost"]
