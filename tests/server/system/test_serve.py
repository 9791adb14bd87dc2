"""`towline serve --redis … --workers N`: several processes on one port, stopped and killed under a client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions
from interop.event_stream import followed, opened

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in Linux's /proc")

ROWS = 150
CSV = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(ROWS))
WORKERS = 3


def towline(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "towline", "serve", *arguments]


class Served:
    """The command as a person runs it; always on the same port."""

    def __init__(self, redis_url: str, folder: Path, port: int) -> None:
        self._command = towline("--port", str(port), "--redis", redis_url, "--files", str(folder / "files"))
        self._command += ["--workers", str(WORKERS), "--row-delay", "0.02"]
        self.url = f"http://127.0.0.1:{port}"
        self.files = folder / "files"
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"towline hub listening on {self.url}\n"
        return self.process

    def workers(self) -> list[int]:
        """Those that serve; not what Python itself has started for them."""
        pid = self.process.pid
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]

    def stop(self, sig: signal.Signals) -> int:
        self.process.send_signal(sig)
        return self.wait()

    def wait(self) -> int:
        """Wait for it to end by itself; its exit code."""
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def served(redis_process: Any, tmp_path: Path, free_port: Any, eventually: Any) -> Iterator[Served]:
    served = Served(redis_process.url, tmp_path, free_port())
    eventually(lambda: healthy(served.url))
    yield served
    if served.process.returncode is None:
        served.stop(signal.SIGTERM)


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    return False


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for is dead all the same."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def follow_to_the_end(
    client: Any,
    ready: Any,
    following: Any,
    eventually: Any,
    seen: list[dict[str, Any]],
    at: dict[int, Callable[[], object]],
) -> None:
    """Follow the job over as many sockets as it takes, doing what is to be done at the events named."""
    while not seen or seen[-1]["type"] != "job_complete":
        with contextlib.ExitStack() as stack:
            sockets: list[Any] = []

            def dialled(stack: contextlib.ExitStack = stack, sockets: list[Any] = sockets) -> bool:
                with contextlib.suppress(websockets.exceptions.InvalidHandshake, OSError, EOFError):
                    sockets.append(stack.enter_context(client.socket()))
                return bool(sockets)

            eventually(dialled)
            ready(sockets[0], {"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]} if seen else None)
            stop = min(at, default=10**6)
            seen += following(sockets[0], lambda frame, stop=stop: frame["seq"] >= stop).events
            if seen and seen[-1]["seq"] >= stop:
                at.pop(stop)()
                seen += following(sockets[0]).events


@pytest.mark.timeout(180)
def test_workers_are_killed_in_mid_job(
    served: Served, redis_process: Any, client_of: Any, ready: Any, following: Any, eventually: Any
) -> None:
    """All of them at once, so the one that runs the job is among them; each is replaced, and the job goes on."""
    before: list[int] = []

    def kill_all() -> None:
        before.extend(served.workers())
        for pid in before:
            os.kill(pid, signal.SIGKILL)

    seen: list[dict[str, Any]] = []
    with client_of(served.url) as client:
        client.start(CSV)
        follow_to_the_end(client, ready, following, eventually, seen, {40: kill_all})
        redis_process.check(client.job, seen)
        assert seen[-1]["payload"]["successRate"] == f"{ROWS}/{ROWS}"
    assert len(before) == WORKERS
    assert len(served.workers()) == WORKERS
    assert not set(before) & set(served.workers())


def test_a_stop_ends_the_streams_and_they_go_on_at_the_next_start(
    served: Served, client_of: Any, eventually: Any
) -> None:
    with client_of(served.url) as client:
        client.start(CSV)
        with opened(client) as stream:
            stream.read(lambda stream: len(stream.events) >= 20)
            served.process.send_signal(signal.SIGTERM)
            stream.read()
        assert stream.whole
        assert 1000 <= stream.retries[-1] <= 2000
        assert served.wait() == 0
        served.start()
        eventually(lambda: healthy(served.url))
        rest = followed(client, stream.last_id)
        assert rest.whole
        assert stream.texts + rest.texts == followed(client).texts
        assert rest.events[-1]["payload"]["successRate"] == f"{ROWS}/{ROWS}"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_sends_the_sockets_away_and_the_job_goes_on_at_the_next_start(
    served: Served, redis_process: Any, client_of: Any, ready: Any, following: Any, eventually: Any, sig: signal.Signals
) -> None:
    with client_of(served.url) as client:
        client.start(CSV)
        with client.socket() as socket:
            ready(socket)
            first = following(socket, lambda frame: frame["seq"] >= 20)
            workers = served.workers()
            served.process.send_signal(sig)
            rest = following(socket)
            assert rest.code == 1012
            assert json.loads(rest.reason)["spread"] >= 1
        assert served.wait() == 0
        assert not any(map(alive, workers))
        served.start()
        seen = first.events + rest.events
        follow_to_the_end(client, ready, following, eventually, seen, {})
        redis_process.check(client.job, seen)
        assert seen[-1]["payload"]["successRate"] == f"{ROWS}/{ROWS}"


def test_workers_do_not_outlive_their_parent(served: Served, eventually: Any) -> None:
    workers = served.workers()
    assert len(workers) == WORKERS
    served.stop(signal.SIGKILL)
    eventually(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize("everybody", [False, True], ids=["the parent", "all of them"])
def test_a_stop_lets_an_upload_come_to_its_end(served: Served, eventually: Any, everybody: bool) -> None:
    """A service manager may tell every process to stop, so each worker hears it twice."""
    host, port = served.url.removeprefix("http://").split(":")
    body = CSV[:60]
    head = f"POST /api/imports/csv HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: text/csv\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as upload:
        upload.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:30])
        eventually(lambda: any(served.files.glob("incoming-*/upload")))
        workers = served.workers()
        served.process.send_signal(signal.SIGTERM)
        if everybody:
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
        eventually(lambda: sum(map(alive, workers)) == 1)  # those that have nothing in hand
        upload.sendall(body[30:])
        assert upload.recv(100).startswith(b"HTTP/1.1 202 ")
    assert served.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--workers", "2"], 2, "must be 1 with an SQLite file"),
        (["--workers", "2", "--redis", "redis://127.0.0.1:1"], 5, "refused"),
        (["--redis", "http://127.0.0.1"], 2, "redis://"),
        (["--redis", "redis://:se/cret@127.0.0.1:6379"], 2, "percent-encoded"),
        (["--files", "/dev/null/files"], 5, "/dev/null/files"),
        (["--workers", "2", "--redis", "redis://127.0.0.1:1", "--files", "/dev/null/files"], 5, "/dev/null/files"),
    ],
)
def test_what_cannot_work_is_said_at_once(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    answer = subprocess.run(
        towline("--port", "0", *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert answer.returncode == code
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "cret" not in answer.stderr
    assert not list(tmp_path.iterdir())


def test_the_environment_may_name_the_redis(tmp_path: Path) -> None:
    environment = {**os.environ, "TOWLINE_REDIS": "redis://127.0.0.1:1"}
    answer = subprocess.run(
        towline("--port", "0"), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50
    )
    assert answer.returncode == 5
    assert "redis: ConnectionError" in answer.stderr
    assert not list(tmp_path.iterdir())
