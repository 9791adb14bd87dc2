"""Two hubs behind nginx, two Celery workers behind Redis, one client: kill what you like, the client sees one story."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions

from towline.server._redis import RedisStore

pytest.importorskip("celery")
if shutil.which("nginx") is None:
    pytest.skip("no nginx on this machine (apt-get install nginx-light)", allow_module_level=True)

ROOT = Path(__file__).parents[3]
BOOKS = 80
NGINX = """
daemon off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    upstream hubs {{
        server 127.0.0.1:{one} max_fails=1 fail_timeout=1s;
        server 127.0.0.1:{two} max_fails=1 fail_timeout=1s;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://hubs; proxy_http_version 1.1; proxy_connect_timeout 1s;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
        }}
    }}
}}
"""


class Scene:
    """Everything that runs, by name."""

    def __init__(self, redis_url: str, folder: Path, ports: tuple[int, int, int]) -> None:
        self._folder = folder
        self._ports = ports
        self._environment = os.environ | {
            "TOWLINE_REDIS": redis_url,
            "TOWLINE_FILES": str(folder / "files"),
            "CATALOGUE": str(ROOT / "examples" / "books.csv"),
            "DELAY": "0.03",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = f"http://127.0.0.1:{ports[2]}"

    def start_hub(self, number: int) -> None:
        self._start(
            f"hub {number}", [sys.executable, "-m", "examples.celery_enrichment"], PORT=str(self._ports[number])
        )

    def start_worker(self, number: int) -> None:
        worker = [
            "celery",
            "--app",
            "examples.celery_enrichment.app",
            "worker",
            "--concurrency",
            "1",
            "--loglevel",
            "info",
        ]
        self._start(f"worker {number}", [sys.executable, "-m", *worker, "--hostname", f"w{number}@%h"])

    def start_nginx(self) -> None:
        one, two, port = self._ports
        (self._folder / "nginx.conf").write_text(NGINX.format(one=one, two=two, port=port))
        self._start("nginx", ["nginx", "-p", str(self._folder), "-e", "stderr", "-c", "nginx.conf"])

    def _start(self, name: str, command: list[str], **environment: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def kill_pool_process(self, name: str) -> None:
        """Kill the process in which the worker's tasks run; its parent lives on."""
        pid = self.processes[name].pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    def text_of(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()


@pytest.fixture
def scene(redis_port_process: Any, tmp_path: Path, free_port: Any, eventually: Any) -> Iterator[Scene]:
    scene = Scene(redis_port_process.url, tmp_path, (free_port(), free_port(), free_port()))

    def healthy(port: int) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
        return False

    try:
        for number in (0, 1):
            scene.start_hub(number)
            scene.start_worker(number)
        scene.start_nginx()
        for port in scene._ports:
            eventually(lambda port=port: healthy(port))
        for number in (0, 1):
            eventually(lambda number=number: "ready." in scene.text_of(f"worker {number}"))
        yield scene
    finally:
        for name in list(scene.processes):
            scene.kill(name)


def batch() -> bytes:
    return json.dumps({"books": [{"title": "Emma" if n % 2 else f"No. {n}"} for n in range(BOOKS)]}).encode()


def check(redis_url: str, job: str, seen: list[dict[str, Any]]) -> None:
    store = RedisStore(redis_url)
    log = store.read(job, 0, 10_000)
    store.close()
    assert [(e["seq"], e["epoch"], e["type"]) for e in seen] == [(e.seq, e.epoch, e.type) for e in log]
    assert [e["seq"] for e in seen] == list(range(1, len(log) + 1))
    counts = [e["payload"]["processedCount"] for e in seen if e["type"] == "job_progress"]
    assert counts == sorted(counts)
    assert seen[-1]["type"] == "job_complete"
    assert seen[-1]["payload"]["successCount"] == BOOKS // 2
    assert len(seen[-1]["payload"]["enrichedBooks"]) == BOOKS


def connect_at_last(client: Any, stack: contextlib.ExitStack, eventually: Any) -> Any:
    """Dial until nginx finds a hub that lives."""
    sockets: list[Any] = []

    def dialled() -> bool:
        with contextlib.suppress(websockets.exceptions.InvalidStatus, OSError, EOFError):
            sockets.append(stack.enter_context(client.socket()))
        return bool(sockets)

    eventually(dialled)
    return sockets[0]


def test_kill_a_node_and_a_worker(
    scene: Scene, redis_port_process: Any, client_of: Any, ready: Any, following: Any, eventually: Any
) -> None:
    with client_of(scene.url) as client:
        assert client.start(batch(), "/api/enrich", content_type="application/json").status_code == 202
        seen: list[dict[str, Any]] = []
        killed = {10: "worker 0", 25: "hub 0", 40: "worker 1", 55: "hub 1"}
        while not seen or seen[-1]["type"] != "job_complete":
            with contextlib.ExitStack() as stack:
                socket = connect_at_last(client, stack, eventually)
                ready(socket, {"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]} if seen else None)
                stop = min(killed, default=10**6)
                seen += following(socket, lambda frame, stop=stop: frame["seq"] >= stop).events
                if stop in killed:
                    name = killed.pop(stop)
                    if name.startswith("worker"):
                        scene.kill_pool_process(name)
                    else:
                        scene.kill(name)
                        scene.start_hub(int(name[-1]))
                    seen += following(socket, lambda frame, stop=stop: frame["seq"] >= stop + 2).events
        assert not killed
        check(redis_port_process.url, client.job, seen)


def test_a_canceled_job_frees_its_worker(scene: Scene, client_of: Any, ready: Any, following: Any) -> None:
    with client_of(scene.url) as client:
        for _ in range(3):
            client.start(batch(), "/api/enrich", content_type="application/json")
            with client.socket() as socket:
                ready(socket)
                following(socket, lambda frame: frame["seq"] >= 5)
                assert client.cancel() == "accepted"
                assert following(socket).events[-1]["type"] == "job_canceled"
        client.start(b'{"books": []}', "/api/enrich", content_type="application/json")
        assert client.follow().events[-1]["payload"]["totalProcessed"] == 0
