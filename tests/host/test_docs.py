"""The code in docs/host.md runs, and the names it speaks of exist."""

import re
from pathlib import Path
from typing import Any

import anyio
import pytest

import towline
import towline.host
from towline.testing import ScriptedServer, run_virtual

GUIDE = (Path(__file__).parents[2] / "docs" / "host.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", ["main", "at_a_terminal"])
def test_the_guide_runs(example: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")  # a real bus lives in real time
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL):
        exec(block, names)

    async def main() -> None:
        async with ScriptedServer() as server:
            job = server.job("j1", token="t1")
            connection = towline.Connection

            def in_memory(url: str, **options: Any) -> towline.Connection:
                return connection(url, network=server.network, **options)

            monkeypatch.setattr(towline, "Connection", in_memory)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(names[example], "ws://hub/ws/progress", "t1")
                await server.wait_ready()
                job.complete({"books": [], "errors": [], "successRate": "0/0"})

    run_virtual(main)
    told = capsys.readouterr().out
    assert ("sources:" in told) is (example == "main")
    assert "JobComplete" in told


def test_the_names_exist() -> None:
    for name in re.findall(r"towline\.host\.(\w+)", GUIDE):
        assert hasattr(towline.host, name), name
    for name in re.findall(r"\bhost\.(\w+)\(", GUIDE):
        assert hasattr(towline.host.Host, name) or hasattr(towline.host, name), name
    for path in re.findall(r"\]\((\.\./examples/\w+\.py)\)", GUIDE):
        assert (Path(__file__).parents[2] / "docs" / path).exists(), path
    for name in ("report_network", "report_wake", "background", "foreground"):
        assert f"line.{name}(" in GUIDE
        assert hasattr(towline.Connection, name)
