"""The path monitor tells levels, after a lull, once each; its sources read the real system."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from queue import Queue
from typing import Any

import anyio
import pytest

from towline.host.path._monitor import PathMonitor, system_path_source
from towline.host.path._netlink import NetlinkPathSource, messages
from towline.host.path._path import Path
from towline.host.path._polling import PollingPathSource
from towline.testing import run_virtual, virtual_time_backends

WIFI, MOBILE, NONE = Path(True, "wlan0 192.168.1.7"), Path(True, "wwan0 10.0.0.9"), Path(False)

linux = pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")


class ScriptedSource:
    """A path that changes when the test says so; hints are counted, as sockets queue them."""

    def __init__(self) -> None:
        self.path = WIFI
        self.closed = False
        self._hints, self._heard = anyio.create_memory_object_stream[None](100)

    def hint(self, path: Path) -> None:
        self.path = path
        self._hints.send_nowait(None)

    def read(self) -> Path:
        return self.path

    async def wait_hint(self) -> None:
        await self._heard.receive()

    def close(self) -> None:
        self.closed = True
        self._hints.close()
        self._heard.close()


@pytest.fixture(params=virtual_time_backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def observe(backend: str, story: list[tuple[float, Path]], until: float) -> list[tuple[float, Path]]:
    """What a monitor tells, and when, of hints at given times."""

    async def main() -> list[tuple[float, Path]]:
        source = ScriptedSource()
        seen: list[tuple[float, Path]] = []

        async def tell() -> None:
            for at, path in story:
                await anyio.sleep_until(at)
                source.hint(path)

        with PathMonitor(source) as monitor, anyio.move_on_after(until):
            async with anyio.create_task_group() as group:
                group.start_soon(tell)
                async for path in monitor.changes():
                    seen.append((round(anyio.current_time(), 3), path))  # noqa: PERF401 - it never ends by itself
        assert source.closed
        return seen

    return run_virtual(main, backend=backend)


def test_the_present_path_is_told_first(backend: str) -> None:
    assert observe(backend, [], 60) == [(0, WIFI)]


def test_a_change_is_told_after_a_lull(backend: str) -> None:
    assert observe(backend, [(10, MOBILE)], 60) == [(0, WIFI), (10.5, MOBILE)]


def test_a_burst_is_told_once(backend: str) -> None:
    burst = [(10 + at, path) for at, path in [(0, NONE), (0.003, MOBILE), (0.018, NONE), (0.3, MOBILE)]]
    assert observe(backend, burst, 60) == [(0, WIFI), (10.8, MOBILE)]


def test_the_same_path_is_not_told_twice(backend: str) -> None:
    assert observe(backend, [(10, WIFI), (20, WIFI), (30, NONE), (40, NONE)], 60) == [(0, WIFI), (30.5, NONE)]


def test_a_short_flicker_is_not_told(backend: str) -> None:
    assert observe(backend, [(10, NONE), (10.4, WIFI)], 60) == [(0, WIFI)]


def test_endless_hints_cannot_hide_a_change(backend: str) -> None:
    noise = [(10 + number * 0.1, NONE) for number in range(80)]
    assert observe(backend, noise, 30) == [(0, WIFI), (10.8, NONE)]


# --- the real system -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_polling_reads_the_source_address_and_hints_by_itself() -> None:
    source = PollingPathSource(["127.0.0.1"], interval=0.001)
    assert source.read() == Path(True, "127.0.0.1")
    await source.wait_hint()
    assert PollingPathSource([]).read() == NONE
    source.close()


@linux
def test_netlink_reads_the_route_and_the_interface() -> None:
    source = NetlinkPathSource(["127.0.0.1"])
    assert source.read() == Path(True, "lo 127.0.0.1")
    source.close()


@linux
def test_netlink_is_what_linux_uses() -> None:
    source = system_path_source()
    assert isinstance(source, NetlinkPathSource)
    assert isinstance(source.read(), Path)
    source.close()


@pytest.mark.parametrize("platform", ["darwin", "win32", "sunos5"])
def test_without_its_extra_a_system_is_polled(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Network", "winrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "platform", platform)
    assert isinstance(system_path_source(), PollingPathSource)


def test_netlink_messages_are_split_and_damage_ends_them() -> None:
    one = struct.pack("=IHHII", 19, 16, 0, 7, 0) + b"abc" + b"\0"
    two = struct.pack("=IHHII", 16, 24, 0, 8, 0)
    assert list(messages(one + two)) == [(16, 7, b"abc"), (24, 8, b"")]
    assert list(messages(one[:18])) == []
    assert list(messages(struct.pack("=IHHII", 3, 16, 0, 7, 0))) == []


# --- network namespaces --------------------------------------------------------------------------------------------


def _namespaces_work() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"tl-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made


WATCHER = """
import json, sys, anyio
from towline.host.path._monitor import PathMonitor

async def main():
    with PathMonitor() as monitor:
        async for path in monitor.changes():
            print(json.dumps([path.up, path.identity]), flush=True)

anyio.run(main, backend=sys.argv[1])
"""


class Machine:
    """A machine of its own: a namespace with two uplinks, and a process in it that tells of its path."""

    def __init__(self, backend: str) -> None:
        self.name = f"tl-path-{os.getpid()}-{backend}"
        self._run("netns", "add", self.name)
        for link, address in (("wifi", "10.71.1.2/24"), ("mobile", "10.71.2.2/24")):
            self.ip("link", "add", link, "type", "veth", "peer", "name", f"{link}-far")
            self.ip("link", "set", f"{link}-far", "up")
            self.ip("link", "set", link, "up")
            self.ip("address", "add", address, "dev", link)
        self.ip("route", "add", "default", "via", "10.71.1.1", "metric", "10")
        self.ip("route", "add", "default", "via", "10.71.2.1", "metric", "20")
        self.paths: Queue[tuple[float, Path]] = Queue()
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", WATCHER, backend]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.paths.put((time.monotonic(), Path(*json.loads(line))))

    def _run(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def ip(self, *arguments: str) -> None:
        self._run("-n", self.name, *arguments)

    def next_path(self) -> tuple[float, Path]:
        return self.paths.get(timeout=120)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._run("netns", "delete", self.name)


@pytest.fixture(params=["asyncio", "trio"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if not _namespaces_work():
        pytest.skip("needs root and `ip netns`")
    machine = Machine(request.param)
    try:
        yield machine
    finally:
        machine.close()


def test_from_wifi_to_mobile_to_nothing_and_back(machine: Machine) -> None:
    assert machine.next_path()[1] == Path(True, "wifi 10.71.1.2")

    def after(*change: Any) -> Path:
        begun = time.monotonic()
        machine.ip(*change)
        at, path = machine.next_path()
        assert at - begun < 5  # usually 0.5 s; a carrier that comes back takes the kernel up to a second more
        return path

    assert after("address", "delete", "10.71.1.2/24", "dev", "wifi") == Path(True, "mobile 10.71.2.2")
    assert after("link", "set", "mobile-far", "down") == NONE  # no carrier: the address and its route stay
    assert after("link", "set", "mobile-far", "up") == Path(True, "mobile 10.71.2.2")
    machine.ip("address", "add", "10.71.1.2/24", "dev", "wifi")
    assert after("route", "add", "default", "via", "10.71.1.1", "metric", "10") == Path(True, "wifi 10.71.1.2")
    assert machine.paths.empty()


ALONE = """
import subprocess, sys, anyio
from towline.host import PathMonitor
from towline.host.path._server_path import ServerPathSource
from towline.host.path._monitor import system_path_source

async def main():
    def ip(line):
        subprocess.run(["ip", *line.split()], check=True)

    ip("link set lo up")
    source = system_path_source()
    with anyio.move_on_after(0.5):
        while True:
            await source.wait_hint()
    ip("rule add from all unreachable priority 10")
    with anyio.fail_after(10):
        await source.wait_hint()
    source.close()
    ip("rule delete priority 10")

    with PathMonitor(await ServerPathSource.towards("hub.plant")) as late:
        changes = late.changes()
        print(await anext(changes), flush=True)
        with open("/etc/hosts", "w") as names:
            names.write("10.71.3.1 hub.plant")
        ip("address add 10.71.3.2/24 dev lo")
        with anyio.fail_after(10):
            print(await anext(changes), flush=True)
        await changes.aclose()

    for host in ("10.71.3.1", "hub.plant"):
        source = await ServerPathSource.towards(host)
        print(source.read(), flush=True)
        source.close()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_rules_are_heard_and_a_way_to_the_server_is_enough(backend: str) -> None:
    """In a namespace with no way out. A VPN sets rules and leaves the routes; a plant's network leads nowhere else."""
    if not _namespaces_work():
        pytest.skip("needs root and `ip netns`")
    name = f"tl-alone-{os.getpid()}-{backend}"
    names = FilePath("/etc/netns", name, "hosts")  # ip-netns(8): laid over /etc/hosts
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        names.parent.mkdir(parents=True)
        names.touch()
        command = ["ip", "netns", "exec", name, sys.executable, "-c", ALONE, backend]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        shutil.rmtree(names.parent)
    path = Path(True, "lo 10.71.3.2")
    assert (answer.stdout, answer.stderr) == (f"{Path(False)}\n{path}\n{path}\n{path}\n", "")


@linux
@pytest.mark.anyio
async def test_lost_netlink_events_are_a_hint() -> None:
    source = NetlinkPathSource(["127.0.0.1"])

    class Overrun:
        def recv(self, size: int) -> bytes:
            raise OSError(105, "No buffer space available")

        def fileno(self) -> int:
            return readable.fileno()

        def close(self) -> None:
            pass

    readable, writer = socket.socketpair()
    with readable, writer:
        writer.send(b"x")
        source._events.close()
        source._events = Overrun()  # type: ignore[assignment]
        await source.wait_hint()
        source.close()
