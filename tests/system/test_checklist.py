"""The checklist of what people do to a program that follows a job, each line played on real sockets.

Through `FaultProxy` everywhere; and in network namespaces, with the kernel's own path events, where root and `ip` are.
The hub is a process of its own, the pipelines are the hub's and the examples' own, and the policy is the one that users
have, on a phone where it matters (there the background has no grace).
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from namespaces import Uplinks, skip_unless_possible

import towline
import towline.host
from towline import JobComplete, State
from towline.server import read_events
from towline.statemachine import Policy
from towline.testing import (
    Detour,
    FaultProxy,
    LoggedEvent,
    NoAnswer,
    ScriptedServer,
    audit_updates,
    run_virtual,
    virtual_time_backends,
)
from towline.transport import Endpoint

ROOT = Path(__file__).parents[2]
HUB = f"""
import importlib.util, pathlib, sys
from towline.server import Hub, HubLimits, csv_import, serve

def load(name):
    spec = importlib.util.spec_from_file_location(name, pathlib.Path({str(ROOT)!r}, "examples", f"{{name}}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

hub = Hub(sys.argv[2], limits=HubLimits(running_jobs=1))
hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=float(sys.argv[3])))
enrichment = load("batch_enrichment")
catalogue = enrichment.load_catalogue(pathlib.Path({str(ROOT)!r}, "towline", "cli", "books.csv"))
hub.job("batch_enrichment", path="/api/enrich", media_types=("application/json",))(
    enrichment.batch_enrichment(catalogue)
)
if importlib.util.find_spec("zxingcpp"):
    hub.job("ai_scan", path="/api/scan", media_types=("image/png",))(load("ai_scan").ai_scan)
serve(port=int(sys.argv[1]), hub=hub)
"""
PHONE = Policy(grace=0.0)

pytestmark = pytest.mark.timeout(180)
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def load(path: str) -> ModuleType:
    """A module of the repository, by its path there."""
    spec = importlib.util.spec_from_file_location(f"checklist_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hub_process = load("tests/server/conftest.py").hub_process


def books(rows: int) -> bytes:
    return b"title,author,isbn\n" + b"Emma,Jane Austen,9780141439587\n" * rows


class Counted(Detour):
    """The way through a proxy, which may change; it counts what was asked of it, also what no proxy sees."""

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(proxy)
        self.attempts: list[float] = []

    def lead(self, proxy: FaultProxy) -> None:
        """Dial another proxy from now on."""
        self.via = proxy

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        self.attempts.append(anyio.current_time())
        return await super().connect(endpoint)


class Scene:
    """A hub that can be killed, one job of it, and the way there."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.client = hub.start()
        self.job = self.token = ""
        self.updates: list[towline.AnyUpdate] = []

    @property
    def port(self) -> int:
        return int(self.client.url.rpartition(":")[2])

    def start(self, body: bytes, path: str = "/api/imports/csv", media_type: str = "text/csv") -> None:
        assert self.client.start(body, path, content_type=media_type).status_code == 202
        self.job, self.token = self.client.job, self.client.token

    def line(self, network: Counted, policy: Policy | None = None) -> towline.Connection:
        url = f"ws://127.0.0.1:{self.port}/ws/progress"
        return towline.Connection(url, job=self.job, token=self.token, network=network, policy=policy)

    async def listen(self, line: towline.Connection) -> None:
        async for update in line:
            self.updates.append(update)

    def progressed(self, count: int) -> Callable[[], bool]:
        """Whether the job is known to have come so far."""
        return lambda: any(isinstance(u, towline.Progress) and (u.processed_count or 0) >= count for u in self.updates)

    def log(self) -> list[LoggedEvent]:
        """The hub's own log of the job, as it is on disk."""
        return [LoggedEvent(e.epoch, e.seq, 0.0, e.type, "") for e in read_events(self.hub.database, self.job)]

    def findings(self) -> list[str]:
        """What the follower was told, held against the log."""
        return audit_updates(self.updates, self.log())

    async def ended(self) -> None:
        """Wait until the hub says that the job has ended."""
        with anyio.fail_after(60):
            while (await anyio.to_thread.run_sync(self.client.state))["status"] == "running":  # noqa: ASYNC110
                await anyio.sleep(0.1)


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    with anyio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110 - plain to read
            await anyio.sleep(0.02)


@pytest.fixture
def scene(hub_process: Any) -> Callable[[float], Scene]:
    return lambda row_delay: Scene(hub_process(row_delay, HUB))


# --- through the proxy ---------------------------------------------------------------------------------------------


@backends
def test_airplane_mode_in_mid_import(backend: str, scene: Callable[[float], Scene]) -> None:
    """CSV import: airplane mode on in mid-import and off again; nothing is lost, and no attempt is made meanwhile."""
    one = scene(0.1)
    one.start(books(120))

    async def main() -> None:
        async with FaultProxy("127.0.0.1", one.port) as proxy:
            way = Counted(proxy)
            async with one.line(way) as line, anyio.create_task_group() as tasks:
                tasks.start_soon(one.listen, line)
                line.report_network(True, "wlan0 192.0.2.7")
                await until(one.progressed(10))
                proxy.black_hole()
                line.report_network(False)
                await line.wait_for(State.RECONNECTING, timeout=7)
                asked = len(way.attempts)
                await anyio.sleep(5)
                assert len(way.attempts) == asked, "an attempt while there was no path"
                assert line.state is State.RECONNECTING
                await proxy.heal()
                await proxy.cut("rst")
                line.report_network(True, "wlan0 192.0.2.7")
                await line.wait_for(State.CONNECTED, timeout=10)
                assert isinstance(await line.result(), JobComplete)

    anyio.run(main, backend=backend)
    assert one.findings() == []


@backends
def test_the_worker_killed_in_mid_batch(backend: str, scene: Callable[[float], Scene]) -> None:
    """Batch enrichment: the process that does the work is killed twice, another goes on; one end, each event once."""
    one = scene(0.0)
    titles = [{"title": random.Random(n).choice(["Emma", "Walden", "No Such Book"])} for n in range(10_000)]
    one.start(json.dumps({"books": titles}).encode(), "/api/enrich", "application/json")

    async def main() -> None:
        async with FaultProxy("127.0.0.1", one.port) as proxy:
            async with one.line(Counted(proxy)) as line, anyio.create_task_group() as tasks:
                tasks.start_soon(one.listen, line)
                await until(one.progressed(200))
                await anyio.to_thread.run_sync(one.hub.kill)
                await line.wait_for(State.RECONNECTING, timeout=5)
                done = one.log()[-1]
                await anyio.to_thread.run_sync(one.hub.start)
                await until(lambda: one.log()[-1].seq > done.seq)
                await anyio.to_thread.run_sync(one.hub.kill)
                assert not done.terminal
                assert not one.log()[-1].terminal, "both kills were in mid-batch"
                await anyio.to_thread.run_sync(one.hub.start)
                assert isinstance(await line.result(), JobComplete)

    anyio.run(main, backend=backend)
    assert one.findings() == []


def shelf() -> bytes:
    """A photo with one barcode, as the quick suite makes it."""
    pytest.importorskip("zxingcpp", reason="the scan needs zxing-cpp and pillow")
    picture: bytes = load("tests/server/test_examples.py").shelf(("9780306406157", 0, (50, 60)))
    return picture


@backends
def test_a_scan_that_ends_in_the_background(backend: str, scene: Callable[[float], Scene]) -> None:
    """Scan: the app goes to the background, the job ends meanwhile; on return there is exactly one completion. In the
    background no attempt is made."""
    photo = shelf()
    one = scene(0.05)
    one.start(books(60))  # the hub does one job at a time: the scan waits for this one
    one.start(photo, "/api/scan", "image/png")

    async def main() -> None:
        async with FaultProxy("127.0.0.1", one.port) as proxy:
            way = Counted(proxy)
            async with one.line(way, PHONE) as line, anyio.create_task_group() as tasks:
                tasks.start_soon(one.listen, line)
                async with towline.host.attach(line, path=False, sleep=False) as host:
                    await line.wait_for(State.CONNECTED, timeout=10)
                    assert not any(isinstance(update, JobComplete) for update in one.updates)
                    host.background()
                    await line.wait_for(State.BACKGROUNDED, timeout=3)
                    asked = len(way.attempts)
                    await one.ended()
                    await anyio.sleep(5)
                    assert len(way.attempts) == asked, "an attempt in the background"
                    assert line.state is State.BACKGROUNDED
                    host.foreground()
                    outcome = await line.result()
                    await anyio.sleep(1)  # for a second completion to come, if it would
            assert isinstance(outcome, JobComplete)
            assert outcome.result["totalDetected"] == 1

    anyio.run(main, backend=backend)
    assert sum(isinstance(update, JobComplete) for update in one.updates) == 1
    assert one.findings() == []


@backends
def test_wifi_to_cellular_with_the_old_socket_half_open(backend: str, scene: Callable[[float], Scene]) -> None:
    """Wi-Fi to cellular: the old socket hangs without an error, for us and for the server; it is lost within 7 s of the
    path event, the new one comes over the other uplink, and nothing comes twice."""
    one = scene(0.1)
    one.start(books(150))

    async def main() -> None:
        async with FaultProxy("127.0.0.1", one.port) as wifi, FaultProxy("127.0.0.1", one.port) as cellular:
            way = Counted(wifi)
            async with one.line(way) as line, anyio.create_task_group() as tasks:
                tasks.start_soon(one.listen, line)
                line.report_network(True, "wlan0 192.0.2.7")
                await until(one.progressed(10))
                wifi.black_hole()
                way.lead(cellular)
                line.report_network(True, "wwan0 198.51.100.9")
                await line.wait_for(State.RECONNECTING, timeout=7)
                await line.wait_for(State.CONNECTED, timeout=10)
                assert wifi.statistics().links == 1, "the server still has the old socket"
                assert len(cellular.dials) >= 1
                assert isinstance(await line.result(), JobComplete)

    anyio.run(main, backend=backend)
    assert one.findings() == []


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_attempts_without_a_path_are_one_a_minute(backend: str) -> None:
    """Attempts counted with the path down: none, but the one trial after each 60 s; in the background: none at all."""

    async def main() -> list[float]:
        async with ScriptedServer() as server:
            server.job("j1", token="t1").start(total_count=10)
            line = towline.Connection(
                "ws://hub/ws/progress", job="j1", token="t1", network=server.network, policy=PHONE
            )
            async with line:
                await line.wait_for(State.CONNECTED)
                line.report_network(True, "a")
                server.network.weather = NoAnswer()
                server.socket.hold()
                line.report_network(False)
                await line.wait_for(State.RECONNECTING, timeout=7)
                begun, before = anyio.current_time(), len(server.network.dials)
                await anyio.sleep(300)
                trials = [dial.at - begun for dial in server.network.dials[before:]]
                line.background()
                await line.wait_for(State.BACKGROUNDED, timeout=15)
                quiet = len(server.network.dials)
                await anyio.sleep(3600)
                assert len(server.network.dials) == quiet, "an attempt in the background"
                line.cancel()
            return trials

    trials = run_virtual(main, backend=backend)
    # Each trial waits its 10 s for an answer before the next minute is held.
    assert [round(at) for at in trials] == [60, 130, 200, 270]


# --- in network namespaces -----------------------------------------------------------------------------------------


@pytest.fixture
def machines() -> Iterator[Uplinks]:
    skip_unless_possible()
    with Uplinks(row_delay=0.2) as machines:
        yield machines


def ends_once(follower: Any) -> None:
    """It is told the end once, and nothing after it; nothing was left out or told twice."""
    follower.wait_for(60, findings=[])
    assert follower.updates.count("JobComplete") == 1
    assert follower.updates[-1] == "JobComplete"


@backends
def test_a_path_event_tells_of_a_dead_link(backend: str, machines: Uplinks) -> None:
    """Wi-Fi to cellular in namespaces: told by a path event within 1 s, lost within 7 s, back over the other uplink
    while the server still has the old socket. Back on Wi-Fi, the living socket is left alone."""
    follower = machines.follow(machines.start_job(books(150)), backend=backend)
    follower.wait_for(path="wifi 10.71.1.2")
    follower.wait_for(state="connected")
    machines.lose_address("wifi")
    begun = time.monotonic()
    assert follower.wait_for(path="mobile 10.71.2.2") - begun < 1
    assert follower.wait_for(state="reconnecting") - begun < 7
    follower.wait_for(state="connected")
    assert machines.sockets_at_hub() == {"10.71.1.2", "10.71.2.2"}
    machines.regain_address("wifi")
    follower.wait_for(path="wifi 10.71.1.2")
    ends_once(follower)
    assert len(follower.losses) == 1


@backends
def test_without_path_events_silence_tells_of_a_dead_link(backend: str, machines: Uplinks) -> None:
    """The same without path events: lost within the liveness limit of 25 s (and 10 %)."""
    follower = machines.follow(machines.start_job(books(250)), backend=backend, path=False)
    follower.wait_for(state="connected")
    machines.lose_address("wifi")
    begun = time.monotonic()
    assert follower.wait_for(60, state="reconnecting") - begun < 25 * 1.1
    follower.wait_for(state="connected")
    ends_once(follower)


@backends
def test_airplane_mode_in_namespaces(backend: str, machines: Uplinks) -> None:
    """CSV import: both uplinks go in mid-import; no attempt until one is back; then on to exactly one end."""
    follower = machines.follow(machines.start_job(books(200)), backend=backend)
    follower.wait_for(state="connected")
    follower.wait_for(update="Progress")
    for link in ("wifi", "mobile"):
        machines.lose_address(link)
    follower.wait_for(path=None)
    follower.wait_for(state="reconnecting")
    time.sleep(8)
    follower.hear()
    assert follower.heard[-1].get("state") == "reconnecting", "an attempt while there was no path"
    machines.regain_address("mobile")
    follower.wait_for(path="mobile 10.71.2.2")
    follower.wait_for(state="connected")
    ends_once(follower)


@backends
def test_background_in_namespaces(backend: str, machines: Uplinks) -> None:
    """The app in the background, its uplink changed, the job ended meanwhile: no attempt, one completion on return."""
    follower = machines.follow(machines.start_job(books(30)), backend=backend, grace=0.0)
    follower.wait_for(state="connected")
    follower.say("background")
    follower.wait_for(state="backgrounded")
    machines.lose_address("wifi")
    time.sleep(10)  # thirty rows take 6 s
    follower.hear()
    assert "connecting" not in [told.get("state") for told in follower.since(state="backgrounded")]
    follower.say("foreground")
    ends_once(follower)
