"""The conversation with logind, on a private bus: a real dbus-daemon, and a logind that does what the test says."""

import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import anyio
import pytest

pytest.importorskip("jeepney")

from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_error, new_method_return, new_signal
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from towline.host._bus import Bus, BusUnavailable, open_bus
from towline.host.sleep._logind import connect_logind

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(25),
]

MANAGER = DBusAddress("/org/freedesktop/login1", interface="org.freedesktop.login1.Manager")


class FakeLogind:
    """Gives locks (the write ends of pipes) and tells of sleep. `locks` has what was asked for each."""

    def __init__(self, address: str) -> None:
        self.locks: Queue[tuple[str, ...]] = Queue()
        self.refuses = self.is_silent = False
        self._ends: deque[int] = deque()
        self._orders: Queue[bool] = Queue()
        self._over = threading.Event()
        self._bus: DBusConnection = open_dbus_connection(address, enable_fds=True)
        self._bus.send_and_get_reply(message_bus.RequestName("org.freedesktop.login1"))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def tell(self, *, sleeping: bool) -> None:
        self._orders.put(sleeping)

    @property
    def lock_is_held(self) -> bool:
        """Whether the client holds the oldest lock: a pipe reads as ended when its last write end is closed."""
        try:
            return os.read(self._ends[0], 1) != b""
        except BlockingIOError:
            return True

    def take_back(self) -> bool:
        """Wait until the client has given back the oldest lock, then forget it."""
        for _ in range(500):
            if not self.lock_is_held:
                os.close(self._ends.popleft())
                return True
            threading.Event().wait(0.01)
        return False

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._bus.close()
        for end in self._ends:
            os.close(end)

    def _run(self) -> None:
        while not self._over.is_set():
            with suppress(Empty):
                self._bus.send(new_signal(MANAGER, "PrepareForSleep", "b", (self._orders.get_nowait(),)))
            try:
                call = self._bus.receive(timeout=0.02)
            except TimeoutError:
                continue
            if call.header.message_type is not MessageType.method_call or self.is_silent:
                continue
            if call.header.fields.get(HeaderFields.member) != "Inhibit" or self.refuses:
                self._bus.send(new_error(call, "org.freedesktop.DBus.Error.AccessDenied"))
                continue
            ours, theirs = os.pipe()
            self._bus.send(new_method_return(call, "h", (theirs,)))
            os.close(theirs)
            os.set_blocking(ours, False)
            self._ends.append(ours)
            self.locks.put(tuple(call.body))


@pytest.fixture
def logind(bus: str) -> Iterator[FakeLogind]:
    logind = FakeLogind(bus)
    yield logind
    logind.close()


async def test_the_lock_is_held_until_the_work_is_done(bus: str, logind: FakeLogind) -> None:
    story: list[str] = []
    woke = anyio.Event()

    async def before_sleep() -> None:
        await anyio.sleep(0.05)
        assert logind.lock_is_held
        story.append("parted")

    def after_sleep() -> None:
        story.append("woke")
        woke.set()

    with anyio.fail_after(20):
        async with connect_logind(bus) as conversation, anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.watch_sleep, before_sleep, after_sleep)
            asked = await anyio.to_thread.run_sync(logind.locks.get)
            assert asked == ("sleep", "Towline", "close connections cleanly", "delay")
            logind.tell(sleeping=True)
            assert await anyio.to_thread.run_sync(logind.take_back)
            assert story == ["parted"]
            logind.tell(sleeping=False)
            await woke.wait()
            await anyio.to_thread.run_sync(logind.locks.get)  # a new lock for the next sleep
            logind.tell(sleeping=True)
            assert await anyio.to_thread.run_sync(logind.take_back)
            assert story == ["parted", "woke", "parted"]
            tasks.cancel_scope.cancel()


async def test_leaving_gives_the_lock_back(bus: str, logind: FakeLogind) -> None:
    async def nothing() -> None:
        pass

    with anyio.fail_after(20):
        async with connect_logind(bus) as conversation, anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.watch_sleep, nothing, lambda: None)
            await anyio.to_thread.run_sync(logind.locks.get)
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(logind.take_back)


async def test_a_refusal_is_told(bus: str, logind: FakeLogind) -> None:
    async def nothing() -> None:
        pass

    logind.refuses = True
    with anyio.fail_after(20), pytest.raises(BusUnavailable, match="AccessDenied"):
        async with connect_logind(bus) as conversation:
            await conversation.watch_sleep(nothing, lambda: None)


async def test_a_bus_without_logind_is_told(bus: str) -> None:
    with anyio.fail_after(20), pytest.raises(BusUnavailable, match="NameHasNoOwner"):
        async with connect_logind(bus):
            pass


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "tcp:host=localhost,port=1", "?"])
async def test_no_bus_is_told(address: str) -> None:
    with pytest.raises(BusUnavailable, match="no system bus"):
        async with connect_logind(address):
            pass


async def test_something_else_than_a_bus_is_told(tmp_path: Path) -> None:
    async with await anyio.create_unix_listener(tmp_path / "x") as listener, anyio.create_task_group() as tasks:

        async def refuse(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(b"REJECTED\r\n")

        tasks.start_soon(listener.serve, refuse)
        with anyio.fail_after(20), pytest.raises(BusUnavailable, match="rejected the login"):
            async with connect_logind(f"unix:path={tmp_path / 'x'}"):
                pass
        tasks.cancel_scope.cancel()


async def test_a_bus_that_says_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towline.host._bus.PATIENCE", 0.05)
    async with await anyio.create_unix_listener(tmp_path / "x"):
        with anyio.fail_after(20), pytest.raises(BusUnavailable, match="does not answer"):
            async with connect_logind(f"unix:path={tmp_path / 'x'}"):
                pass


async def test_a_bus_that_falls_silent_is_told(
    private_bus: Any, logind: FakeLogind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has let us in, and does not say who has logind's name."""
    monkeypatch.setattr("towline.host.sleep._logind.PATIENCE", 0.05)

    @asynccontextmanager
    async def open_and_stop(address: str) -> AsyncIterator[Bus]:
        async with open_bus(address) as bus:
            private_bus.daemon.send_signal(signal.SIGSTOP)
            try:
                yield bus
            finally:
                private_bus.daemon.send_signal(signal.SIGCONT)

    monkeypatch.setattr("towline.host.sleep._logind.open_bus", open_and_stop)
    with anyio.fail_after(20), pytest.raises(BusUnavailable, match="does not answer"):
        async with connect_logind(private_bus.address):
            pass


async def test_a_logind_that_says_nothing_is_told(
    bus: str, logind: FakeLogind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> None:
        pass

    logind.is_silent = True
    async with connect_logind(bus) as conversation:
        monkeypatch.setattr("towline.host._bus.ANSWER", 0.05)
        with anyio.fail_after(20), pytest.raises(BusUnavailable, match="does not answer"):
            await conversation.watch_sleep(nothing, lambda: None)
