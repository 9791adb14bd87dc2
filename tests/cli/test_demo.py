"""The demo holds what it shows: one real job, every kind of drop, checked against the hub's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(100)
def test_the_demo_ends_well() -> None:
    command = [sys.executable, "-P", "-m", "towline", "demo", str(ROOT / "examples" / "books.csv"), "--backend", "trio"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-1].endswith("each once, in order, one end")
    assert answer.stderr == ""
