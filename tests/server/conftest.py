"""Real hubs for the tests: in a thread of this process, or in a process of their own that can be killed."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions
from interop.process import free_port as find_free_port
from websockets.sync.client import ClientConnection, connect

from towline.protocols.wire.messages import TERMINAL_TYPES
from towline.server import Hub
from towline.server._serve import make_server
from towline.server.log._redis_store import RedisStore

PROGRAM = """
import sys
from towline.server import serve
serve(port=int(sys.argv[1]), database=sys.argv[2], row_delay=float(sys.argv[3]))
"""
WAIT = 20


class Client:
    """A plain client of a hub at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=WAIT)
        self.job = ""
        self.token = ""

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def start(self, body: bytes, path: str = "/api/imports/csv", **headers: str) -> httpx.Response:
        """Start a job with a raw body and remember its id and token."""
        headers = {"content-type": "text/csv"} | {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.http.post(path, content=body, headers=headers)
        if response.status_code == 202:
            self.job, self.token = response.json()["jobId"], response.json()["token"]
        return response

    def state(self) -> dict[str, Any]:
        response = self.http.get(f"/api/job-state/{self.job}", headers=self.auth)
        assert response.status_code == 200, response.text
        return response.json()

    def cancel(self) -> str:
        response = self.http.post(f"/api/jobs/{self.job}/cancel", headers=self.auth)
        assert response.status_code == 200, response.text
        return response.json()["result"]

    @contextlib.contextmanager
    def socket(self, **options: Any) -> Iterator[ClientConnection]:
        url = self.url.replace("http", "ws", 1) + f"/ws/progress?jobId={self.job}"
        with connect(url, **({"additional_headers": self.auth, "proxy": None} | options)) as socket:
            yield socket

    def refusal(self, path: str, **options: Any) -> Any:
        """The HTTP answer to an upgrade that is refused."""
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            with connect(self.url.replace("http", "ws", 1) + path, **({"proxy": None} | options)):
                pass
        return refused.value.response

    def follow(self, cursor: dict[str, Any] | None = None) -> "Followed":
        """Follow the job from a cursor to the socket's end."""
        with self.socket() as socket:
            say_ready(socket, cursor)
            return follow(socket)


class Followed:
    """What one socket brought: the acknowledgement, the events, and the close code."""

    def __init__(self) -> None:
        self.ack: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.code = 0
        self.reason = ""

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    @property
    def cursor(self) -> dict[str, Any]:
        return {"epoch": self.events[-1]["epoch"], "seq": self.events[-1]["seq"]}


def say_ready(socket: ClientConnection, cursor: dict[str, Any] | None = None) -> None:
    socket.send(json.dumps({"type": "ready", "timestamp": 1, **(cursor or {})}))


def follow(socket: ClientConnection, until: Callable[[dict[str, Any]], bool] = lambda frame: False) -> Followed:
    """Read frames until one fulfils `until`, or the socket ends."""
    followed = Followed()
    try:
        while True:
            frame = json.loads(socket.recv(timeout=WAIT))
            if frame["type"] == "ready_ack":
                followed.ack = frame
                continue
            followed.events.append(frame)
            if until(frame):
                return followed
    except websockets.exceptions.ConnectionClosed as closed:
        followed.code = closed.rcvd.code if closed.rcvd else 1006
        followed.reason = closed.rcvd.reason if closed.rcvd else ""
    return followed


@pytest.fixture
def following() -> Callable[..., Followed]:
    return follow


@pytest.fixture
def ready() -> Callable[..., None]:
    return say_ready


@pytest.fixture(scope="session")
def client_of() -> Callable[..., Any]:
    """A client of the hub at a URL: `with client_of(url) as client:`."""

    @contextlib.contextmanager
    def make(url: str) -> Iterator[Client]:
        client = Client(url)
        with client.http:
            yield client

    return make


@pytest.fixture(scope="session")
def serving(client_of: Any) -> Callable[..., Any]:
    """Serve a hub in a thread: `with serving(hub) as client:`."""

    @contextlib.contextmanager
    def serve_in_thread(hub: Hub) -> Iterator[Client]:
        listening = threading.Event()
        urls: list[str] = []

        def announce(url: str) -> None:
            urls.append(url)
            listening.set()

        server = make_server(hub, "127.0.0.1", 0, announce)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            assert listening.wait(WAIT)
            with client_of(urls[0]) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()

    return serve_in_thread


class HubProcess:
    """A hub in a process of its own, on one database, that can be killed and started again on the same port."""

    def __init__(self, database: Path, row_delay: float, program: str) -> None:
        self.database = database
        self._row_delay = row_delay
        self._program = program
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.client: Client

    def start(self) -> Client:
        arguments = [sys.executable, "-c", self._program, str(self._port), str(self.database), str(self._row_delay)]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        url = line.split()[-1]
        if not self._port:
            self._port = int(url.rpartition(":")[2])
            self.client = Client(url)
        return self.client

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        self._stop(signal.SIGKILL)

    def terminate(self) -> int:
        return self._stop(signal.SIGTERM)

    def send_terminate(self) -> None:
        assert self._process is not None
        self._process.terminate()

    def _stop(self, sig: int) -> int:
        assert self._process is not None
        self._process.send_signal(sig)
        return self.wait()

    def wait(self) -> int:
        """Wait for the process to end by itself; its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        code = process.wait(WAIT)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        if hasattr(self, "client"):
            self.client.http.close()


@pytest.fixture
def hub_process(tmp_path: Path) -> Iterator[Callable[..., HubProcess]]:
    """Make hubs in processes of their own: `hub_process(row_delay=0.01)`."""
    made: list[HubProcess] = []

    def make(row_delay: float = 0, program: str = PROGRAM) -> HubProcess:
        made.append(HubProcess(tmp_path / "hub.db", row_delay, program))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds, in real time, and fail if it does not within 20 s."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


class RedisProcess:
    """A real redis-server on a socket file of its own, that can be killed and started again with what it kept."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder = folder
        self._port = port
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{folder / 'redis.sock'}"
        self.start()

    def start(self) -> None:
        settings = [
            "--port",
            str(self._port),
            "--bind",
            "127.0.0.1",
            "--unixsocket",
            str(self._folder / "redis.sock"),
            "--dir",
            str(self._folder),
        ]
        settings += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(["redis-server", *settings], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "ready to accept connections" in line.lower():
                break

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(WAIT)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def check(self, job: str, seen: list[dict[str, Any]]) -> None:
        """What a client saw is the job's log: every event once, in order, counts that never go back, and one end."""
        with contextlib.closing(RedisStore(self.url)) as store:
            log = store.read(job, 0, 10_000)
        assert [(e["seq"], e["epoch"], e["type"]) for e in seen] == [(e.seq, e.epoch, e.type) for e in log]
        assert [e["seq"] for e in seen] == list(range(1, len(log) + 1))
        counts = [e["payload"]["processedCount"] for e in seen if e["type"] == "job_progress"]
        assert counts == sorted(counts)
        assert [e["type"] for e in seen if e["type"] in TERMINAL_TYPES] == [seen[-1]["type"]]


@pytest.fixture
def redis_process() -> Iterator[RedisProcess]:
    """A Redis of the test's own."""
    yield from run_redis()


@pytest.fixture
def redis_port_process(free_port: Any) -> Iterator[RedisProcess]:
    """A Redis of the test's own that listens on a port."""
    yield from run_redis(free_port())


@pytest.fixture
def redis_server(free_port: Any) -> Iterator[Callable[[], RedisProcess]]:
    """Start further servers, each on a port of its own: `redis_server()`."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.contextmanager(run_redis)(free_port()))


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Find a port that stays free while its server is down."""
    return find_free_port


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis that tests share; each takes a prefix of its own."""
    for process in run_redis():
        yield process.url


def run_redis(port: int = 0) -> Iterator[RedisProcess]:
    pytest.importorskip("redis", reason="the redis extra is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine (apt-get install redis-server)")
    # A short path: socket files have room for about 100 characters.
    with tempfile.TemporaryDirectory(prefix="towline") as folder:
        process = RedisProcess(Path(folder), port)
        try:
            yield process
        finally:
            process.stop()
