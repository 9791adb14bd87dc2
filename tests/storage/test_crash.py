"""Whatever is killed, refused, cut or spoiled, no save that was acknowledged is lost and no wrong value is read.

The work is done by rig.py, in a process of its own. `system` has more kinds of faults; `make soak` runs all in full.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the rig forks and sends SIGKILL")

RIG = Path(__file__).parent / "rig.py"


def run(*arguments: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, RIG, *arguments], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    return figures


@pytest.mark.parametrize(
    ("command", "cases"),
    [
        ("fail-each", 500),
        ("power-cut", 90),
        ("swap", 70),
    ],
)
def test_the_store_keeps_its_promises(command: str, cases: int) -> None:
    figures = run(command)
    assert figures["violations"] == 0, figures["first"]
    assert isinstance(figures["cases"], int)
    assert figures["cases"] >= cases


@pytest.mark.parametrize("command", ["power-cut", "kill-random"])
def test_the_rig_finds_a_store_out_that_writes_in_place(command: str) -> None:
    assert run(command, "--naive")["violations"] != 0
