"""The code of README and guide is run against a real hub, on asyncio and trio."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from towline.transport import JobCalls, StartedJob

ROOT = Path(__file__).parent.parent.parent
GUIDE = ROOT / "docs" / "guide.md"
ROW_DELAY = 0.02


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def guide_functions() -> dict[str, Callable[..., object]]:
    module = types.ModuleType("guide")
    exec(compile("\n".join(blocks(GUIDE)), str(GUIDE), "exec"), module.__dict__)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__code__.co_filename == str(GUIDE)
    }


FUNCTIONS = guide_functions()


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """The guide sets one."""
    yield
    logging.getLogger("towline").setLevel(logging.NOTSET)


async def start(hub: str) -> StartedJob:
    table = b"title,author\n" + b"Emma,Jane Austen\n" * 20
    return await JobCalls(hub).start_job("/api/imports/csv", table)


@pytest.mark.anyio
@pytest.mark.parametrize("name", FUNCTIONS)
async def test_the_guide(name: str, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    job = await start(hub)
    url = hub.replace("http", "ws") + "/ws/progress"
    function = FUNCTIONS[name]
    arguments = url, job.job, job.token.reveal()
    if inspect.iscoroutinefunction(function):
        await function(*arguments)
    else:
        await anyio.to_thread.run_sync(function, *arguments)


@pytest.mark.anyio
async def test_the_readme(hub: str, tmp_path: Path) -> None:
    (program,) = blocks(ROOT / "README.md")
    file = tmp_path / "example.py"
    file.write_text(program)
    job = await start(hub)
    environment = {
        **os.environ,
        "JOB_URL": hub.replace("http", "ws") + "/ws/progress",
        "JOB": job.job,
        "TOKEN": job.token.reveal(),
    }
    answer = await anyio.run_process([sys.executable, "-P", str(file)], env=environment, check=False)
    assert answer.returncode == 0, answer.stderr.decode()
    assert "it ended: JobComplete(" in answer.stdout.decode()


def test_the_readme_shows_the_machine_as_it_is() -> None:
    shown = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == (ROOT / "docs" / "machine" / "connection.overview.mmd").read_text()


def test_every_link_leads_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_name_in_the_docs_exists() -> None:
    import towline

    for path in [ROOT / "README.md", GUIDE]:
        for name in re.findall(r"`towline\.([A-Za-z_]+)", path.read_text()):
            assert hasattr(towline, name) or (ROOT / "towline" / name).exists() or (ROOT / name).exists(), name
