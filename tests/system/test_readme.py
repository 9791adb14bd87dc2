"""What the README says to type, typed: in an environment with nothing but the wheel, and in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wheels import ROOT, build_wheel

README = (ROOT / "README.md").read_text()
INSTALL, SERVE = "pip install 'towline[cli,server]'\n", "towline serve --sample\n"
Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the hub is stopped by a signal")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `towline` and `python` in a new environment, after the README's `pip install`."""
    assert blocks("sh") == [INSTALL + SERVE]
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "pip", "install", "--quiet", f"{wheel}[cli,server]"]
    subprocess.run(command, check=True, timeout=170)
    return folder / "bin"


@pytest.fixture
def start(programs: Path, tmp_path: Path) -> Start:
    """Start a program of that environment in an empty folder, for a user who has no files yet."""
    folder, home = tmp_path / "empty", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    environment = {**kept, "PATH": str(programs), "HOME": str(home), "COLUMNS": "80"}

    def call(*command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [programs / command[0], *command[1:]],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return call


def finish(process: subprocess.Popen[str], timeout: float = 150) -> str:
    """Wait for its good end; returns what it printed."""
    with process:
        output, errors = process.communicate(timeout=timeout)
        assert (process.returncode, errors) == (0, ""), output + errors
    return output


@pytest.mark.timeout(400)
def test_the_sample_is_followed_by_command_and_program(start: Start, tmp_path: Path) -> None:
    announced, printed = blocks("text")
    program, _ = blocks("python")
    (tmp_path / "empty" / "program.py").write_text(program)
    # As printed, but for the port, which another test may have.
    with start(*SERVE.split(), "--port", "0") as hub:
        assert hub.stdout is not None
        lines = [hub.stdout.readline() for _ in announced.splitlines()]
        assert re.sub(r":\d+", ":8470", "".join(lines)) == announced
        following = start("python", "program.py")
        watched = finish(start(*announced.splitlines()[2].split()))
        output = finish(following)
        hub.terminate()
        assert hub.wait(20) == 0
    assert watched.endswith("complete: 306/318, 12 rows rejected\n")
    first, last = printed.split("...\n")
    assert output.startswith(first)
    assert output.endswith(last)


@pytest.mark.timeout(400)
def test_the_demo_and_the_version(start: Start, tmp_path: Path) -> None:
    assert "`towline demo`" in README
    assert "each delivered once, in order, with one end" in finish(start("towline", "demo"))
    assert list((tmp_path / "empty").iterdir()) == []
    version = finish(start("python", "-c", "import towline; print(towline.__version__)"))
    assert finish(start("towline", "--version")) == f"towline {version}"
    assert "..." not in finish(start("towline", "--help")).partition("Commands:")[2]
    with start("towline", "diagram", "--check") as refused:
        assert refused.stderr is not None
        assert "add --out FOLDER" in refused.stderr.read()
        assert refused.wait(20) == 2
