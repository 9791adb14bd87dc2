"""Whatever is killed, refused, cut or spoiled, no save that was acknowledged is lost and no wrong value is read.

The work is done by rig.py, in a process of its own; `make soak` runs the same in full.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the rig forks and sends SIGKILL")

RIG = Path(__file__).parents[1] / "rig.py"


def run(*arguments: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, RIG, *arguments], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    return figures


@pytest.mark.parametrize(
    ("command", "cases"),
    [
        ("kill-each", 150),
        ("kill-random", 60),
        ("flip-bits", 3000),
        ("processes", 2),
    ],
)
def test_the_store_keeps_its_promises(command: str, cases: int) -> None:
    figures = run(command)
    assert figures["violations"] == 0, figures["first"]
    assert isinstance(figures["cases"], int)
    assert figures["cases"] >= cases


def test_it_holds_when_the_kernel_itself_refuses() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()[-200:]}")
    figures = run("strace")
    assert figures["violations"] == 0, figures["first"]
