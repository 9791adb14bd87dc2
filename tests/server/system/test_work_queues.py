"""Two hubs behind nginx, two workers of a queue behind Redis, one client: kill what you like, it sees one story."""

import contextlib
import json
import os
import re
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

from towline.server._files import UPLOAD_FILE
from towline.server.log._base import Job
from towline.server.log._redis_store import RedisStore

if shutil.which("nginx") is None:
    pytest.skip("no nginx on this machine (apt-get install nginx-light)", allow_module_level=True)

ROOT = Path(__file__).parents[3]
BOOKS = 80
TRIES = 5  # of the examples
LOST_AFTER = 2.0
#: How a queue's worker is started, and the word by which it says that it works.
QUEUES = {
    "celery": (
        "celery --app examples.celery_enrichment.app worker --concurrency 1 --loglevel info --hostname w{number}@%h",
        "ready.",
    ),
    "taskiq": ("taskiq worker --workers 1 examples.taskiq_enrichment:broker", "Listening started."),
}
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

    def __init__(self, queue: str, redis_url: str, folder: Path, ports: tuple[int, int, int]) -> None:
        self._queue = queue
        self._folder = folder
        self.files = folder / "files"
        self._ports = ports
        self._environment = os.environ | {
            "TOWLINE_REDIS": redis_url,
            "TOWLINE_FILES": str(folder / "files"),
            "CATALOGUE": str(ROOT / "towline" / "cli" / "books.csv"),
            "DELAY": "0.03",
            "LOST_AFTER": str(LOST_AFTER),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = f"http://127.0.0.1:{ports[2]}"

    def start_hub(self, number: int) -> None:
        command = [sys.executable, "-m", f"examples.{self._queue}_enrichment"]
        self._start(f"hub {number}", command, PORT=str(self._ports[number]))

    def start_worker(self, number: int) -> None:
        command, _ = QUEUES[self._queue]
        self._start(f"worker {number}", [sys.executable, "-m", *command.format(number=number).split()])

    def tries_again(self) -> int:
        """How many runs have failed and will be repeated, by what the workers say."""
        return len(re.findall(r"Retry in 1s|Retrying\.", self.text_of("worker 0")))

    def works(self, number: int) -> bool:
        _, word = QUEUES[self._queue]
        return word in self.text_of(f"worker {number}")

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


@pytest.fixture(params=QUEUES)
def scene(
    request: pytest.FixtureRequest, redis_port_process: Any, tmp_path: Path, free_port: Any, eventually: Any
) -> Iterator[Scene]:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed (make test-system)")
    scene = Scene(request.param, redis_port_process.url, tmp_path, (free_port(), free_port(), free_port()))

    def healthy(port: int) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
        return False

    try:
        for number in (0, 1):
            scene.start_hub(number)
        scene.start_nginx()
        for port in scene._ports:
            eventually(lambda port=port: healthy(port))
        yield scene
    finally:
        for name in list(scene.processes):
            scene.kill(name)


@pytest.fixture
def working(scene: Scene, eventually: Any) -> Scene:
    """The scene with its workers."""
    for number in (0, 1):
        scene.start_worker(number)
    for number in (0, 1):
        eventually(lambda number=number: scene.works(number))
    return scene


def batch() -> bytes:
    return json.dumps({"books": [{"title": "Emma" if n % 2 else f"No. {n}"} for n in range(BOOKS)]}).encode()


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
    working: Scene, redis_port_process: Any, client_of: Any, ready: Any, following: Any, eventually: Any
) -> None:
    scene = working
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
        redis_port_process.check(client.job, seen)
        end = seen[-1]["payload"]
        assert end["successCount"] == BOOKS // 2
        assert len(end["enrichedBooks"]) == BOOKS


def test_a_canceled_job_frees_its_worker(working: Scene, client_of: Any, ready: Any, following: Any) -> None:
    with client_of(working.url) as client:
        for _ in range(3):
            client.start(batch(), "/api/enrich", content_type="application/json")
            with client.socket() as socket:
                ready(socket)
                following(socket, lambda frame: frame["seq"] >= 5)
                assert client.cancel() == "accepted"
                assert following(socket).events[-1]["type"] == "job_canceled"
        client.start(b'{"books": []}', "/api/enrich", content_type="application/json")
        assert client.follow().events[-1]["payload"]["totalProcessed"] == 0


def test_an_epoch_ends_only_after_the_last_try(
    scene: Scene, redis_port_process: Any, client_of: Any, eventually: Any
) -> None:
    """Two jobs whose uploads are not to be read: one comes back between two tries and ends well; one fails, once."""
    store = RedisStore(redis_port_process.url)

    def handed_out(job_id: str) -> bool:
        job = store.job(job_id)
        return isinstance(job, Job) and job.attempts == 1

    with contextlib.closing(store), client_of(scene.url) as lucky, client_of(scene.url) as unlucky:
        uploads = []
        for client in (lucky, unlucky):
            client.start(batch(), "/api/enrich", content_type="application/json")
            eventually(lambda job_id=client.job: handed_out(job_id))
            uploads.append((scene.files / client.job / UPLOAD_FILE).rename(scene.files / client.job / "away"))
        scene.start_worker(0)
        eventually(lambda: scene.tries_again() >= 4)
        assert lucky.state()["status"] == unlucky.state()["status"] == "running"
        uploads[0].rename(uploads[0].with_name(UPLOAD_FILE))
        end = lucky.follow().events[-1]
        assert (end["type"], end["payload"]["totalProcessed"]) == ("job_complete", BOOKS)
        seen = unlucky.follow().events
        assert [(event["type"], event["payload"].get("code")) for event in seen] == [("error", "GAVE_UP")]
    assert scene.tries_again() >= TRIES - 1
