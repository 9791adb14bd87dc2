"""The programs of docs/own-server.md on the server in examples, on both backends; the table of docs/protocols.md."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import towline
from towline._facts import Answer, Ended, Follow, Item, Line, Mark, Means, ServerEvent
from towline._secret import revealed
from towline.protocols import LangGraphRun
from towline.protocols._shared.names import protocol_class
from towline.protocols._shared.recording import dump_line, load_lines

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
OWN = (ROOT / "docs" / "own-server.md").read_text(encoding="utf-8")
OWN_CODE = re.findall(r"^```python\n(.*?)^```$", OWN, re.MULTILINE | re.DOTALL)
NAMES = ("messages", "events", "polling")


def load(name: str) -> ModuleType:
    path = ROOT / "examples" / f"own_{name}.py"
    specification = importlib.util.spec_from_file_location(f"example_own_{name}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The example's server on a free port."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(load("server").app, ws="websockets-sansio", log_level="warning"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that a client may connect before the server runs
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.anyio
@pytest.mark.parametrize("name", NAMES)
async def test_a_program_follows_the_job_to_its_end(
    name: str, port: int, capsys: pytest.CaptureFixture[str], anyio_backend_name: str
) -> None:
    paths = {"messages": "ws://127.0.0.1:{}/jobs/{}/ws", "events": "http://127.0.0.1:{}/jobs/{}/events"}
    url = paths.get(name, "http://127.0.0.1:{}/jobs/{}").format(port, anyio_backend_name)
    await load(name).main(url)
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition("(")[0] for line in shown if line.startswith("JobComplete")] == ["JobComplete"]
    assert "result={'books': 318}" in shown[-1]
    fractions = re.findall(r"^Progress\(.*fraction=([0-9.]+)", "\n".join(shown), re.MULTILINE)
    assert fractions == [str(step / 4) for step in range(1, 4 if name == "polling" else 5)]


def test_the_page_shows_the_programs() -> None:
    for name in NAMES:
        source = (ROOT / "examples" / f"own_{name}.py").read_text(encoding="utf-8")
        program = source.partition("\n\nif __name__")[0].rstrip() + "\n"
        assert program in OWN_CODE
        assert len([line for line in program.splitlines() if line]) <= 15
    assert len(OWN_CODE) == len(NAMES) + 3


def test_an_event_has_the_form_that_the_page_shows() -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```$", OWN, re.MULTILINE | re.DOTALL)
    server = load("server")
    assert server._event((1, {"event": "progress", "percent": 25})) == f"{shown}\n"


def test_text_is_followed_as_the_page_says() -> None:
    """The page's protocol for data that is not JSON, on each way a text can come."""
    (text,) = [block for block in OWN_CODE if "class TextStream" in block]
    names: dict[str, Any] = {"towline": towline}
    exec(compile(text, "docs/own-server.md", "exec"), names)
    protocol = names["TextStream"]("http://127.0.0.1/jobs/7", names["each_text"])
    follow = Follow("events")
    step = Item(towline.Progress(fraction=None, status='20% "of" it'), Mark("1"))
    assert protocol.read(follow, ServerEvent("message", '20% "of" it', "1")) == (step,)
    assert protocol.read(follow, ServerEvent("message", "[DONE]")) == (Ended(towline.JobComplete()),)
    assert protocol.read(follow, Answer(204)) == (Means("ended"),)


def test_a_position_in_the_data_is_followed_as_the_page_says() -> None:
    """The page's protocol for a server that takes the position in the URL."""
    (text,) = [block for block in OWN_CODE if "class Watch" in block]
    names: dict[str, Any] = {"towline": towline}
    exec(compile(text, "docs/own-server.md", "exec"), names)
    url = "http://127.0.0.1/jobs?watch=1"
    protocol, follow = names["Watch"](url, names["each_line"], via="lines", token_in="query:key"), Follow("lines")

    for want, path in ((follow, ""), (Follow("lines", Mark("10")), "&resourceVersion=10")):
        assert revealed(protocol.ask(want, towline.Secret("t")).url) == f"{url}{path}&key=t"
    job = '{"object": {"metadata": {"resourceVersion": "10"}, "status": {"succeeded": 3}}}'
    step = Item(towline.Progress(fraction=None, processed_count=3), Mark("10"))
    assert protocol.read(follow, Line(job)) == (step,)
    assert protocol.read(follow, Line('{"type": "ERROR", "object": {"code": 410}}')) == (Means("cursor"),)
    ended = '{"object": {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}}'
    assert protocol.read(follow, Line(ended)) == (Ended(towline.JobComplete()),)
    failed = ended.replace('"Complete"', '"Failed", "message": "m"')
    assert protocol.read(follow, Line(failed)) == (Ended(towline.JobFailed(message="m")),)


def test_the_command_line_follows_a_function_that_makes_the_protocol(port: int, tmp_path: Path) -> None:
    """`make` of the page, in a module with its program for events."""
    (make,) = [block for block in OWN_CODE if block.startswith("def make")]
    (program,) = [block for block in OWN_CODE if "EventStream(url, each, with_type=True)) as" in block]
    (tmp_path / "my_module.py").write_text(f"{program}\n\n{make}")
    url = f"http://127.0.0.1:{port}/jobs/command/events"
    (command,) = re.findall(r"^towline (watch .*my_module:make --url) http\S+$", OWN, re.MULTILINE)
    towline_command = [sys.executable, "-P", "-m", "towline"]
    store = ["--json", "--store", str(tmp_path / "store")]
    environment = {**os.environ, "TOWLINE_KEY": base64.b64encode(bytes(range(32))).decode()}
    for attempt in ("followed", "taken from the record"):
        answer = subprocess.run(
            [*towline_command, *command.split(), url, *store],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (answer.returncode, answer.stderr) == (0, ""), attempt
        updates = [json.loads(line) for line in answer.stdout.splitlines()]
        types = [update["type"] for update in updates]
        assert ("progress" in types) is (attempt == "followed")
        assert (types[-1], updates[-1]["result"]) == ("job_complete", {"books": 318})


def test_the_page_s_line_of_a_recording_is_one() -> None:
    (line,) = re.findall(r"^```json\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    (read,) = load_lines([line])
    assert json.loads(dump_line(*read)) == json.loads(line)


SERVERS = re.findall(r"^\|.*\[`(\w+)`\]\(protocols/(\w+)\.md\).*$", PAGE, re.MULTILINE)


def promises(kind: Any) -> list[str]:
    """What the protocol promises; that of a run depends on how it was made."""
    if kind is LangGraphRun:
        return [kind("https://h", "t", "r", resumable=resumable).promise for resumable in (True, False)]
    return [kind.promise]


@pytest.mark.parametrize(("name", "page"), SERVERS)
def test_the_table_of_servers_and_the_pages_fit_the_protocols(name: str, page: str) -> None:
    kind = protocol_class(name)
    (row,) = [line for line in PAGE.splitlines() if f"(protocols/{page}.md)" in line]
    text = (ROOT / "docs" / "protocols" / f"{page}.md").read_text(encoding="utf-8")
    for promise in promises(kind):
        assert promise in row
        assert f"**{promise}**" in text.lower()
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert documented >= {field.name for field in fields(kind)}


def test_every_page_is_in_the_table() -> None:
    assert {f"{page}.md" for _, page in SERVERS} == {path.name for path in (ROOT / "docs" / "protocols").iterdir()}
