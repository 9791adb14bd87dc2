"""The code of README and guide is run against a real hub, on asyncio and trio."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import towline
from towline.cli.follow._start import StartedJob, start_job

ROOT = Path(__file__).parent.parent.parent
GUIDE = ROOT / "docs" / "guide.md"
README = ROOT / "README.md"
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


async def start(hub: str) -> StartedJob:
    table = b"title,author\n" + b"Emma,Jane Austen\n" * 20
    return await start_job(f"{hub}/api/imports/csv", table)


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


def readme(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readme_s_program_prints_what_the_readme_shows(tmp_path: Path) -> None:
    program, _ = readme("python")
    announced, printed = readme("text")
    (tmp_path / "program.py").write_text(program)
    serve = [sys.executable, "-P", "-m", "towline", "serve", "--sample", "--port", "0", "--row-delay", "0.01"]
    with subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        lines = [hub.stdout.readline() for _ in announced.splitlines()]
        port = lines[0].rpartition(":")[2].rstrip()
        assert "".join(lines).replace(port, "8470") == announced
        answer = subprocess.run(
            [sys.executable, "-P", "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=250
        )
        hub.terminate()
    assert (answer.returncode, answer.stderr) == (0, "")
    check_printed(answer.stdout, printed)


def check_printed(output: str, shown: str) -> None:
    """Compare what the program printed with the readme, which leaves the middle out.

    A replay is delivered as it comes, so that a slow machine may print its first lines before the state has changed.
    """
    output = re.sub("^syncing ", "connected ", output, flags=re.MULTILINE)
    first, last = shown.split("...\n")
    assert output.startswith(first[: first.index("\n") + 1])
    assert output.endswith(last)
    for line in output.splitlines():
        assert re.fullmatch(r"(connected|idle) (JobStarted|Progress|JobComplete) \d+", line), line


@pytest.mark.anyio
async def test_the_readme_s_function(hub: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, function = readme("python")
    names: dict[str, Any] = {"towline": towline}
    exec(compile(function, str(README), "exec"), names)
    job = await start(hub)
    outcome = await names["follow"](hub.replace("http", "ws") + "/ws/progress", job.job, job.token.reveal())
    assert isinstance(outcome, towline.JobComplete)
    assert "20 importing" in capsys.readouterr().out


def test_the_readme_is_short_and_every_block_of_it_is_run() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert len(readme("python")) + len(readme("text")) + len(readme("sh")) == text.count("```") // 2 == 5


def test_every_link_leads_somewhere() -> None:
    for path in [README, ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_name_in_the_docs_exists() -> None:
    for path in [README, GUIDE]:
        for name in re.findall(r"`towline\.([A-Za-z_]+)", path.read_text()):
            assert hasattr(towline, name) or (ROOT / "towline" / name).exists() or (ROOT / name).exists(), name
