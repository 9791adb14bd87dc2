"""The store's figures in full; `make soak` prints them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RIG = Path(__file__).parents[1] / "storage" / "rig.py"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("command", "promise"),
    [
        ("kill-random", "kill -9 while saving"),
        ("kill-each", "SIGKILL instead of each file-system call"),
        ("fail-each", "each call fails with ENOSPC, EIO, EROFS, EINTR, EACCES, EDQUOT"),
        ("power-cut", "power cut after each step, in every state"),
        ("flip-bits", "any bit flipped, any file cut short"),
        ("swap", "records, headers, key ids, wrapped keys exchanged"),
        ("processes", "four processes, 1,000 saves of their own and 1,000 of one record each"),
        ("strace", "the kernel refuses, or kills, by strace"),
    ],
)
def test_every_figure_is_reached(command: str, promise: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, RIG, command, "--full"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    first = figures.pop("first")
    with capsys.disabled():
        sys.stdout.write(f"\n{promise}: {figures}\n")
    assert figures["violations"] == 0, first
