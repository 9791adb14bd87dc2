"""NetworkManager itself, on a bus and in a network namespace of its own, beside a web server that it asks for the way.

Needs root, `ip netns`, and Debian's `network-manager` and `dbus`. It is told to manage one interface of the namespace
and to leave names and hostnames alone; nothing outside the namespace is touched but its own folder in /run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import pytest

NEEDED = ("ip", "NetworkManager", "nmcli", "dbus-daemon")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or any(shutil.which(name) is None for name in NEEDED),
        reason="needs root, ip, NetworkManager and dbus-daemon (Debian: iproute2, network-manager, dbus)",
    ),
]

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
  </policy>
</busconfig>
"""

MANAGER = """[main]
plugins=keyfile
dns=none
rc-manager=unmanaged
hostname-mode=none
no-auto-default=*
auth-polkit=false
[keyfile]
path={folder}/connections
[connectivity]
uri=http://10.73.1.1:8080/check
response=NetworkManager is online
interval=300
timeout=20
[device]
match-device=interface-name:up0
managed=1
"""

CONNECTION = """[connection]
id=up0
uuid={uuid}
type=ethernet
interface-name=up0
[ipv4]
method=manual
address1=10.73.1.2/24,10.73.1.1
[ipv6]
method=disabled
"""

WEB = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        body = Path(sys.argv[1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = HTTPServer(("10.73.1.1", 8080), Page)
print("ready", flush=True)
server.serve_forever()
"""

WATCHER = """
import json, sys, anyio
from towline.host import NetlinkPathSource, PathMonitor
from towline.host._bus import open_bus
from towline.host.path._network_manager import NetworkManagerPathSource

async def main():
    async with open_bus() as bus, anyio.create_task_group() as tasks:
        source = NetworkManagerPathSource(NetlinkPathSource())
        tasks.start_soon(source.watch, bus)
        with PathMonitor(source) as monitor:
            async for path in monitor.changes():
                print(json.dumps([path.up, path.identity]), flush=True)

anyio.run(main, backend=sys.argv[1])
"""

UP, LIMITED, DOWN = [True, "up0 10.73.1.2"], [True, "up0 10.73.1.2, limited"], [False, None]


class Machine:
    """A machine with one uplink, its NetworkManager, and what answers at the other end of the link."""

    def __init__(self, folder: Path, things: ExitStack) -> None:
        self._folder = folder
        self._things = things
        self._environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/bus"}
        self._here, self._there = (f"tl-nm-{os.getpid()}-{end}" for end in ("here", "there"))
        for name in (self._here, self._there):
            self._ip("netns", "add", name)
            things.callback(self._ip, "netns", "delete", name)
        self._ip("-n", self._here, "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", self._there)
        self._ip("-n", self._there, "address", "add", "10.73.1.1/24", "dev", "down0")
        self._ip("-n", self._there, "link", "set", "down0", "up")
        self._ip("-n", self._here, "link", "set", "lo", "up")
        self.answer("NetworkManager is online")
        self._web = self._start("ip", "netns", "exec", self._there, sys.executable, "-c", WEB, str(folder / "answer"))
        assert self._web.stdout is not None
        assert self._web.stdout.readline() == "ready\n"
        (folder / "connections").mkdir()
        (folder / "none").mkdir()
        (folder / "bus.conf").write_text(BUS.format(folder=folder))
        (folder / "manager.conf").write_text(MANAGER.format(folder=folder))
        keyfile = folder / "connections" / "up0.nmconnection"
        keyfile.write_text(CONNECTION.format(uuid=uuid.uuid4()))
        keyfile.chmod(0o600)
        bus = self._start("dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--print-address=1")
        assert bus.stdout is not None
        bus.stdout.readline()
        self.start_manager()

    def start_manager(self) -> None:
        # A read-only /sys is how NetworkManager knows that no udev will tell it of links.
        options = f"--no-daemon --config={self._folder}/manager.conf --config-dir={self._folder}/none"
        files = f"--state-file={self._folder}/state --pid-file={self._folder}/pid --intern-config={self._folder}/intern"
        command = f"mount -o remount,ro /sys; exec NetworkManager {options} {files}"
        self._manager = self._start("ip", "netns", "exec", self._here, "sh", "-c", command)
        subprocess.run(["nm-online", "-q", "-s", "-t", "30"], env=self._environment, check=False)

    def stop_manager(self) -> None:
        self._manager.terminate()
        self._manager.wait()

    def answer(self, body: str) -> None:
        """What the server at the other end says from now on."""
        new = self._folder / "answer.new"
        new.write_text(body)
        new.replace(self._folder / "answer")

    def stop_answering(self) -> None:
        self._web.terminate()
        self._web.wait()

    def connectivity(self) -> str:
        """What NetworkManager finds when it looks now."""
        return self.nmcli("networking", "connectivity", "check")

    def wait_connectivity(self, expected: str) -> None:
        """Wait until NetworkManager has its connection, and finds this."""
        deadline = time.monotonic() + 40
        while (found := self.connectivity()) != expected:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def nmcli(self, *arguments: str) -> str:
        command = ["nmcli", *arguments]
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True).stdout.strip()

    def watch(self, backend: str) -> Queue[list[object]]:
        """What a monitor on this machine tells."""
        told: Queue[list[object]] = Queue()
        watcher = self._start("ip", "netns", "exec", self._here, sys.executable, "-c", WATCHER, backend)

        def read() -> None:
            assert watcher.stdout is not None
            for line in watcher.stdout:
                told.put(json.loads(line))

        reader = threading.Thread(target=read)
        reader.start()
        self._things.callback(reader.join)
        self._things.callback(watcher.terminate)
        return told

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def _start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

        def end() -> None:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

        self._things.callback(end)
        return process


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as things:
        yield Machine(tmp_path, things)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_from_full_to_a_portal_to_nobody_and_through_a_restart(machine: Machine, backend: str) -> None:
    machine.wait_connectivity("full")
    told = machine.watch(backend)

    def next_path() -> list[object]:
        return told.get(timeout=40)

    assert next_path() == UP
    machine.answer("<html>sign in first</html>")
    assert machine.connectivity() == "portal"
    assert next_path() == DOWN
    machine.answer("NetworkManager is online")
    assert machine.connectivity() == "full"
    assert next_path() == UP
    machine.stop_answering()
    assert machine.connectivity() == "limited"
    assert next_path() == LIMITED
    machine.stop_manager()  # it leaves the interface as it is
    assert next_path() == UP
    machine.start_manager()
    machine.wait_connectivity("limited")
    assert next_path() == LIMITED
    machine.nmcli("networking", "off")
    assert next_path() == DOWN
    assert told.empty()
