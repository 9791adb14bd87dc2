"""`towline import` and `towline watch`, as processes: pipes, refusals, other servers, a hub under a path."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import anyio
import pytest

from towline.storage import RecordKey, TokenStore

Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., subprocess.Popen[str]]
HEADER = "title,author,isbn\n"
GOOD_ROW = "Emma,Jane Austen,9780141439587\n"


@pytest.fixture
def books(tmp_path: Path) -> Path:
    file = tmp_path / "books.csv"
    file.write_text(HEADER + GOOD_ROW * 5 + "Persuasion,Jane Austen,9780141439580\n")
    return file


def lines_of(answer: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_a_pipe_gets_plain_lines(run: Run, hub: str, books: Path) -> None:
    answer = run("import", str(books), "--url", hub, "--backend", "trio")
    assert answer.returncode == 0
    assert "[connecting]" in answer.stdout.splitlines()
    assert answer.stdout.splitlines()[-1] == "complete: 5/6, 1 rows rejected"


def test_a_detached_job_is_watched_by_its_id_alone_and_its_end_told_again(run: Run, hub: str, books: Path) -> None:
    detached = run("import", str(books), "--url", hub, "--detach", "--json")
    assert detached.returncode == 0
    job = str(lines_of(detached)[0]["job"])
    for _ in range(2):
        # The second time the stored end is told, without a dial.
        watched = run("watch", job, "--json")
        assert watched.returncode == 0
        assert sum(line["type"] == "job_complete" for line in lines_of(watched)) == 1
    assert not [line for line in lines_of(watched) if line["type"] == "state"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)), "text"),
        ("title,author\nÉmile,Zola\n".encode("latin-1"), "UTF-8"),
    ],
    ids=["empty", "binary", "latin-1"],
)
def test_a_file_that_is_no_table_fails_the_job_clearly(
    run: Run, hub: str, tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    answer = run("import", str(file), "--url", hub)
    assert answer.returncode in (1, 5)
    assert words in answer.stdout + answer.stderr


def test_a_job_id_of_two_servers_needs_a_url(
    run: Run, hub: str, books: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = str(lines_of(run("import", str(books), "--url", hub, "--detach", "--json"))[0]["job"])
    monkeypatch.setenv("TOWLINE_KEY", environment["TOWLINE_KEY"])
    store = TokenStore(environment["TOWLINE_STORE"])
    (record,) = anyio.run(store.find, job)
    other = RecordKey("towline", "https://api.example:443/ws/progress", job)
    anyio.run(store.save, other, "t-other")
    several = run("watch", job)
    assert several.returncode == 5
    assert f"{record.key.server}, {other.server}" in several.stderr
    assert "--url" in several.stderr
    watched = run("watch", job, "--url", str(record.parameters["url"]), "--json")
    assert watched.returncode == 0
    assert sum(line["type"] == "job_complete" for line in lines_of(watched)) == 1


def test_when_nobody_reads_it_any_more_it_ends_and_says_so(begin: Begin, hub: str, tmp_path: Path) -> None:
    """As in `towline import … | head -1`. An exit code of 1 would say that the job failed."""
    file = tmp_path / "long.csv"
    file.write_text(HEADER + GOOD_ROW * 2000)
    with begin("import", str(file), "--url", hub) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "started" not in process.stdout.readline():
            pass
        process.stdout.close()
        assert process.stderr.read() == "towline: [Errno 32] Broken pipe\n"
        assert process.wait(20) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="asks a bus whether the system will sleep")
def test_ctrl_c_does_not_wait_for_what_the_machine_tells(
    environment: dict[str, str], begin: Begin, hub: str, tmp_path: Path
) -> None:
    """While a bus has not answered yet, too, somebody who has had enough is told how to come back."""
    file = tmp_path / "long.csv"
    file.write_text(HEADER + GOOD_ROW * 2000)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "bus"))
        mute.listen()
        environment["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={tmp_path / 'bus'}"
        with begin("import", str(file), "--url", hub) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while process.stdout.readline() != "[connected]\n":
                pass
            process.send_signal(signal.SIGINT)
            assert "the job continues. Resume with" in process.stderr.readline()
            mute.close()
            assert process.wait(20) == 130


def test_expected_failures_are_one_line(run: Run, hub: str, books: Path, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        cases = [
            (5, ["import", str(books), "--url", nobody], "could not connect"),
            (2, ["import", str(books), "--url", "http://example.test"], "not encrypted"),
            (2, ["import", str(books), "--url", "ftp://127.0.0.1"], "scheme"),
            (2, ["import", str(tmp_path / "nowhere.csv"), "--url", hub], "does not exist"),
            (5, ["import", str(books), "--url", nobody, "--history", str(tmp_path / "no" / "history")], "No such file"),
            (5, ["watch", "never-heard-of", "--history", str(tmp_path / "history")], "no record of job"),
            (2, ["watch", ".."], "job"),
        ]
        for code, arguments, words in cases:
            answer = run(*arguments)
            assert (answer.returncode, words in answer.stderr) == (code, True), answer.stderr


@pytest.fixture
def web_page() -> Iterator[str]:
    """A server that answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>sign in first</html>")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_answers_pages_is_told_as_such(run: Run, books: Path, web_page: str) -> None:
    answer = run("import", str(books), "--url", f"http://{web_page}")
    assert answer.returncode == 5
    assert "not an answer with a token" in answer.stderr
    answer = run("watch", "j1", "--url", f"ws://{web_page}/ws/progress", TOWLINE_TOKEN="t")
    assert answer.returncode == 4
    assert "gave up (protocol)" in answer.stderr


MOUNTED = """
import sys
import uvicorn
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.routing import Mount
from towline.server import Hub, csv_import

hub = Hub("hub.db", base_path="/jobs")
hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=0.01))

@asynccontextmanager
async def lifespan(app):
    async with hub:
        yield

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

app = Starlette(routes=[Mount("/jobs", hub)], lifespan=lifespan)
Server(uvicorn.Config(app, port=0, ws="websockets-sansio", log_config=None)).run()
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[str]:
    """A hub that is mounted under a path."""
    with subprocess.Popen([sys.executable, "-c", MOUNTED], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/jobs"
        process.terminate()


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_hub_under_a_path(run: Run, begin: Begin, mounted: str, tmp_path: Path, slash: str) -> None:
    """All its calls are there, also when the job is resumed by its id alone."""
    file = tmp_path / "long.csv"
    file.write_text(HEADER + GOOD_ROW * 500)
    job = str(lines_of(run("import", str(file), "--url", mounted + slash, "--detach", "--json"))[0]["job"])
    watched = run("watch", job, "--json")
    assert watched.returncode == 0
    lines = lines_of(watched)
    assert sum(line["type"] == "job_complete" for line in lines) == 1
    assert [line["kind"] for line in lines if line["type"] == "resynced"] in ([], ["replay"], ["snapshot"])


def test_a_hubs_url_has_no_query(run: Run, books: Path) -> None:
    answer = run("import", str(books), "--url", "http://127.0.0.1:9/jobs?tenant=a")
    assert (answer.returncode, answer.stderr) == (
        2,
        "towline: url: the URL of a hub has no query: leave out ? and what follows it\n",
    )
