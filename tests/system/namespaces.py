"""Two machines with a network between them: Linux namespaces, with a real hub in one and real followers in the other.

`Uplinks` joins them by two veth pairs, "wifi" and "mobile", of which the follower's machine prefers the first.
`BadWire` joins them by a pair of TUN devices, whose packets this process carries: late, and not all of them.
Both need root and `ip`; whatever they made is gone when their block is left. Load this file by its path.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Self

import pytest

HUB, PORT = "10.71.9.1", 8470
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_WAIT = 20.0
_numbers = itertools.count()

START = """
import sys, anyio
from towline.cli.follow._start import start_job
from towline.transport import Upload

async def main():
    csv = sys.stdin.buffer.read()
    async def pieces():
        yield csv
    job = await start_job(f"http://127.0.0.1:{sys.argv[1]}/api/imports/csv", Upload(pieces(), len(csv)))
    print(job.job, job.token.reveal())

anyio.run(main)
"""

FOLLOW = """
import json, sys, time
import anyio, towline, towline.host
from towline.statemachine import Policy
from towline.testing import audit_updates

options = json.loads(sys.stdin.readline())

def tell(**what):
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)

class Told(towline.host.PathMonitor):
    async def changes(self, **options):
        async for path in super().changes(**options):
            tell(path=path.identity)
            yield path

async def main():
    def changed(change):
        cause = change.cause
        why = {} if cause is None else {"code": cause.code, "cause": cause.text}
        tell(state=change.state.value, previous=change.previous.value, **why)

    async def listen(line):
        updates = []
        async for update in line:
            tell(update=type(update).__name__, seq=update.seq)
            updates.append(update)
        tell(findings=audit_updates(updates))

    async def obey(host):
        while word := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            getattr(host, word.strip())()

    async def follow():
        line = towline.Connection(
            options["url"], job=options["job"], token=options["token"], on_state=changed,
            network=towline.Network(allow_insecure=True), policy=Policy(grace=options["grace"]),
        )
        monitor = Told() if options["path"] else None
        async with line, towline.host.attach(line, monitor=monitor, path=options["path"], sleep=False) as host:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(obey, host)
                with anyio.move_on_after(options["seconds"]):
                    await listen(line)
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(options["links"]):
            tasks.start_soon(follow)

anyio.run(main, backend=options["backend"])
"""


def skip_unless_possible(*, tun: bool = False) -> None:
    """Skip the test, with a clear word, where namespaces cannot be had."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("no `ip` on this machine (apt-get install iproute2)")
    if tun and not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun on this machine")
    probe = f"tl-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"`ip netns` does not work here: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    """Run `ip`; raises `CalledProcessError` with what it said."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Follower:
    """A process that follows a job in a namespace of its own, and what it told, as it came."""

    process: subprocess.Popen[str]
    heard: list[dict[str, Any]] = field(default_factory=list)
    _new: Queue[dict[str, Any] | None] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._new.put(json.loads(line))
        self._new.put(None)

    def wait_for(self, within: float = _WAIT, **what: Any) -> float:
        """Wait until it tells so; returns when it did, on the monotonic clock. Fails after `within` seconds."""
        deadline = time.monotonic() + within
        while True:
            try:
                told = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {what} within {within:g} s; it told {self.heard[-20:]}") from None
            assert told is not None, f"it ended without {what}; it told {self.heard[-20:]}"
            self.heard.append(told)
            if what.items() <= told.items():
                return float(told["at"])

    def hear(self) -> None:
        """Take in what it has told by now."""
        with contextlib.suppress(Empty):
            while (told := self._new.get_nowait()) is not None:
                self.heard.append(told)

    def since(self, **what: Any) -> list[dict[str, Any]]:
        """What it has told since it last told so."""
        last = max(place for place, told in enumerate(self.heard) if what.items() <= told.items())
        return self.heard[last + 1 :]

    def say(self, word: str) -> None:
        """Tell its host a word: `background` or `foreground`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    @property
    def losses(self) -> list[dict[str, Any]]:
        """The links that it lost, with `code` and `cause`."""
        return [
            told
            for told in self.heard
            if told.get("state") == "reconnecting" and told["previous"] in ("syncing", "connected")
        ]

    @property
    def updates(self) -> list[str]:
        return [told["update"] for told in self.heard if "update" in told]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.hear()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class TwoMachines:
    """The namespaces, the hub's process and the followers'. A subclass joins the two."""

    def __init__(self, row_delay: float = 0.2) -> None:
        self._row_delay = row_delay
        number = f"{os.getpid()}-{next(_numbers)}"
        self.near, self.far = f"tl-near-{number}", f"tl-far-{number}"
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            for name in (self.near, self.far):
                ip("netns", "add", name)
                undo.callback(ip, "netns", "delete", name)
                ip("-n", name, "link", "set", "lo", "up")
            self._join(undo)
            ip("-n", self.far, "address", "add", f"{HUB}/32", "dev", "lo")
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="towline"))
            command = [sys.executable, "-P", "-m", "towline", "serve", "--host", "0.0.0.0", "--port", str(PORT)]
            command += ["--database", f"{folder}/hub.db", "--row-delay", str(self._row_delay)]
            hub = self._start(self.far, command, stdout=subprocess.PIPE)
            undo.callback(_end, hub)
            assert hub.stdout is not None
            assert "listening" in hub.stdout.readline()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _join(self, undo: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def _start(self, namespace: str, command: list[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(["ip", "netns", "exec", namespace, *command], text=True, **options)

    def start_job(self, csv: bytes) -> tuple[str, str]:
        """Start an import, from the hub's own machine; its id and token."""
        command = ["ip", "netns", "exec", self.far, sys.executable, "-P", "-c", START, str(PORT)]
        done = subprocess.run(command, input=csv, capture_output=True, check=True)
        job, token = done.stdout.decode().split()
        return job, token

    def follow(
        self,
        job: tuple[str, str],
        *,
        backend: str = "asyncio",
        path: bool = True,
        links: int = 1,
        grace: float = 30,
        seconds: float = 300,
    ) -> Follower:
        """Follow it from the near machine by the policy that users have (but for the background's `grace`).

        It does so over so many links, with the path watched or not, and ends with the job, or after `seconds`.
        """
        process = self._start(
            self.near, [sys.executable, "-P", "-c", FOLLOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        follower = Follower(process)
        self._undo.callback(follower.close)
        options = {"url": f"ws://{HUB}:{PORT}/ws/progress", "job": job[0], "token": job[1], "backend": backend}
        options |= {"path": path, "links": links, "grace": grace, "seconds": seconds}
        follower.say(json.dumps(options))
        return follower

    def sockets_at_hub(self) -> set[str]:
        """The addresses from which the hub's machine has open sockets."""
        command = ["ip", "netns", "exec", self.far, "ss", "-Htn", "state", "established", f"sport = :{PORT}"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return {line.split()[-1].rpartition(":")[0] for line in lines}

    def near_ip(self, *arguments: str) -> None:
        """`ip` on the near machine."""
        ip("-n", self.near, *arguments)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Uplinks(TwoMachines):
    """See the module's text."""

    def _join(self, undo: contextlib.ExitStack) -> None:
        for number, link in enumerate(("wifi", "mobile"), start=1):
            ip("-n", self.near, "link", "add", link, "type", "veth", "peer", "name", link, "netns", self.far)
            for name, host in ((self.near, 2), (self.far, 1)):
                ip("-n", name, "address", "add", f"10.71.{number}.{host}/24", "dev", link)
                ip("-n", name, "link", "set", link, "up")
            self.add_route(link)

    def add_route(self, link: str) -> None:
        """The near machine's way out over one uplink; wifi is the better one."""
        number = {"wifi": 1, "mobile": 2}[link]
        self.near_ip("route", "add", "default", "via", f"10.71.{number}.1", "metric", str(10 * number))

    def lose_address(self, link: str) -> None:
        """As when the access point is out of reach: its route goes with it, and open sockets hang."""
        number = {"wifi": 1, "mobile": 2}[link]
        self.near_ip("address", "delete", f"10.71.{number}.2/24", "dev", link)

    def regain_address(self, link: str) -> None:
        """Back again, with its route."""
        number = {"wifi": 1, "mobile": 2}[link]
        self.near_ip("address", "add", f"10.71.{number}.2/24", "dev", link)
        self.add_route(link)


class BadWire(TwoMachines):
    """See the module's text. `latency` is in seconds each way; `loss` is each packet's chance to be lost, each way.

    `carried` and `lost` count packets of both ways.
    """

    def __init__(self, *, latency: float, loss: float, seed: int, row_delay: float = 1.0) -> None:
        super().__init__(row_delay)
        self.carried = self.lost = 0
        self._latency, self._loss, self._random = latency, loss, random.Random(seed)

    def _join(self, undo: contextlib.ExitStack) -> None:
        ends = []
        for namespace, host in ((self.near, 2), (self.far, 1)):
            name = f"tl{os.getpid() % 100_000}w{host}"
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, end)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
            ip("link", "set", name, "netns", namespace)  # its packets still come to this process
            ip("-n", namespace, "address", "add", f"10.71.1.{host}/24", "dev", name)
            ip("-n", namespace, "link", "set", name, "up")
            ends.append(end)
        self.near_ip("route", "add", "default", "via", "10.71.1.1")
        wake, stop = os.pipe()
        carrier = threading.Thread(target=self._carry, args=(*ends, wake))
        carrier.start()
        undo.callback(os.close, wake)
        undo.callback(carrier.join)
        undo.callback(os.close, stop)

    def _carry(self, near: int, far: int, stop: int) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        for order in itertools.count():
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            readable, _, _ = select.select([near, far, stop], [], [], wait)
            if stop in readable:
                return
            for end in readable:
                packet = os.read(end, 65_536)
                if self._random.random() < self._loss:
                    self.lost += 1
                    continue
                other = far if end == near else near
                heapq.heappush(under_way, (time.monotonic() + self._latency, order * 2 + (end == far), other, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(under_way)
                os.write(end, packet)
                self.carried += 1
