"""The demo holds what it shows: one real job, every kind of drop, checked against the hub's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from towline.cli import _demo


@pytest.mark.timeout(100)
def test_the_demo_runs_in_an_empty_folder_and_finds_nothing_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "towline", "demo", "--backend", "trio"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-1].endswith("each delivered once, in order, with one end")
    assert answer.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_a_killed_client_did_not_write_is_a_finding(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"history-{number}.json").touch()
    unread = "cannot be read: history: Input data was truncated"
    assert _demo._check_histories(tmp_path) == [f"history-1.json {unread}", f"history-2.json {unread}"]
