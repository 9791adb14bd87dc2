"""Hubs that share a Redis: any of them serves any job, and a job outlives the hub that runs it and Redis's restarts."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROWS = 80
CSV = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(ROWS))
LEASE = 1.0
NODE = f"""
import sys
from pathlib import Path
from towline.server import Hub, Lifetimes, csv_import, serve
hub = Hub(sys.argv[1], files=Path(sys.argv[2]), lifetimes=Lifetimes(lease={LEASE}))
hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=0.02))
serve(port=0, hub=hub)
"""


class Node:
    """One hub in a process of its own."""

    def __init__(self, redis_url: str, files: Path) -> None:
        arguments = [sys.executable, "-c", NODE, redis_url, str(files)]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[-1]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def start_node(redis_process: Any, tmp_path: Path) -> Iterator[Callable[[], Node]]:
    nodes: list[Node] = []

    def start() -> Node:
        nodes.append(Node(redis_process.url, tmp_path / "files"))
        return nodes[-1]

    yield start
    for node in nodes:
        node.kill()


def check(redis: Any, job: str, seen: list[dict[str, Any]]) -> None:
    """What was seen is the log, and the import in it is whole."""
    redis.check(job, seen)
    end = seen[-1]["payload"]
    assert [e["payload"]["processedCount"] for e in seen if e["type"] == "job_progress"][-1] == ROWS
    assert end["successRate"] == f"{ROWS}/{ROWS}"
    assert [book["title"] for book in end["books"]] == [f"Book {n}" for n in range(ROWS)]


def cursor(seen: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]} if seen else None


def test_a_job_is_followed_on_another_node(start_node: Any, redis_process: Any, client_of: Any) -> None:
    one, two = start_node(), start_node()
    with client_of(one.url) as client:
        client.start(CSV)
        client.url = two.url
        seen = client.follow()
        assert seen.code == 1000
        check(redis_process, client.job, seen.events)
        with client_of(two.url) as other:
            other.job, other.token = client.job, client.token
            assert other.cancel() == "too_late"


def test_a_job_is_canceled_from_another_node(
    start_node: Any, client_of: Any, ready: Any, following: Any, eventually: Any, tmp_path: Path
) -> None:
    one, two = start_node(), start_node()
    with client_of(one.url) as client, client_of(two.url) as other:
        client.start(CSV)
        other.job, other.token = client.job, client.token
        with client.socket() as socket:
            ready(socket)
            following(socket, lambda frame: frame["seq"] >= 5)
            assert other.cancel() == "accepted"
            assert following(socket).events[-1]["type"] == "job_canceled"
        # The work is stopped where it runs: its files go.
        eventually(lambda: [path.name for path in (tmp_path / "files").iterdir()] == ["hub-id"])


def test_the_node_that_runs_the_job_dies(
    start_node: Any, redis_process: Any, client_of: Any, ready: Any, following: Any
) -> None:
    """The client is on the other node: it keeps its socket, and sees the job go on there after the lease ran out."""
    one, two = start_node(), start_node()
    with client_of(one.url) as client:
        client.start(CSV)
        client.url = two.url
        with client.socket() as socket:
            ready(socket)
            seen = following(socket, lambda frame: frame["seq"] >= 20).events
            one.kill()
            rest = following(socket)
        assert rest.code == 1000
        check(redis_process, client.job, seen + rest.events)


def test_the_node_of_the_client_dies(
    start_node: Any, redis_process: Any, client_of: Any, ready: Any, following: Any
) -> None:
    one, two = start_node(), start_node()
    with client_of(one.url) as client:
        client.start(CSV)
        seen: list[dict[str, Any]] = []
        client.url = two.url
        with client.socket() as socket:
            ready(socket)
            seen += following(socket, lambda frame: frame["seq"] >= 20).events
            two.kill()
            seen += following(socket).events
        client.url = one.url
        seen += client.follow(cursor(seen)).events
        check(redis_process, client.job, seen)


def test_a_client_leaves_a_half_open_socket_on_another_node(
    start_node: Any, client_of: Any, ready: Any, following: Any
) -> None:
    """The second socket of a client replaces the first wherever that is; a watcher with the same token stays."""
    one, two = start_node(), start_node()
    with client_of(one.url) as client:
        client.start(CSV)
        with client.socket() as first, client.socket() as watcher:
            ready(first, {"client": "c", "socket": 1})
            ready(watcher)
            seen = following(first, lambda frame: frame["seq"] >= 5)
            client.url = two.url
            with client.socket() as second:
                ready(second, {"client": "c", "socket": 2, **seen.cursor})
                assert following(first).code == 4509
                assert following(second).code == 1000
            assert following(watcher).code == 1000


def test_redis_is_killed_and_comes_back(
    start_node: Any, redis_process: Any, client_of: Any, ready: Any, following: Any, eventually: Any
) -> None:
    """Nothing that was acknowledged is lost; the job goes on, or is taken up again."""
    node = start_node()
    with client_of(node.url) as client:
        client.start(CSV)
        seen: list[dict[str, Any]] = []
        with client.socket() as socket:
            ready(socket)
            seen += following(socket, lambda frame: frame["seq"] >= 20).events
            redis_process.stop()
            assert client.http.get("/healthz").status_code == 503
            assert client.http.get(f"/api/job-state/{client.job}", headers=client.auth).status_code == 503
            redis_process.start()
            more = following(socket)
            seen += more.events
        eventually(lambda: client.http.get("/healthz").status_code == 200)
        if more.code != 1000:
            assert more.code == 1013
            seen += client.follow(cursor(seen)).events
        check(redis_process, client.job, seen)
