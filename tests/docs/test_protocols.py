"""The programs of docs/own-server.md on the server in examples, on both backends; the table of docs/protocols.md."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from towline.protocols import LangGraphRun
from towline.protocols._shared.names import protocol_class
from towline.protocols._shared.recording import dump_line, load_lines

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
OWN = (ROOT / "docs" / "own-server.md").read_text(encoding="utf-8")
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
    shown = re.findall(r"^```python\n(.*?)^```$", OWN, re.MULTILINE | re.DOTALL)
    for name, block in zip(NAMES, shown, strict=True):
        source = (ROOT / "examples" / f"own_{name}.py").read_text(encoding="utf-8")
        assert source.partition("\n\nif __name__")[0].rstrip() == block.rstrip()
        assert len([line for line in block.splitlines() if line]) <= 15


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
